"""Claims of docs/clients.md that hold without the clients: it is what was recorded, and `verify` names every
fault that clients were given.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pp_export.verification import verify_folder
from tests.clients import outcomes
from tests.clients.faults import FAULTS, write_damaged
from tests.clients.folders import DAMAGED, DAMAGED_TIED, write_exports
from tests.clients.page import PAGE, page
from tests.fixtures.releases import transformers_5

pytestmark = transformers_5


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("exports")
    write_exports(root, {"plain": DAMAGED, "tied": DAMAGED_TIED})
    return root


def test_the_page_is_made_of_what_was_recorded() -> None:
    """`python -m tests.clients.record` writes both."""
    assert PAGE.read_text(encoding="utf-8") == page(outcomes.recorded())


@pytest.mark.parametrize("fault", FAULTS)
def test_verify_names_each_fault(fault: str, exports: Path, tmp_path: Path) -> None:
    """An export without a fault verifies, and with it `verify` says what the page says."""
    export = exports / ("tied" if FAULTS[fault].tied else "plain") / "export"
    assert verify_folder(export).ok
    found = {each.kind for each in verify_folder(write_damaged(fault, export, tmp_path / "damaged")).faults}
    assert found
    assert sorted(found) == outcomes.recorded()["verify"][fault]
