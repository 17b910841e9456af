"""Claims: vLLM loads a model of each kind that we write, and answers as transformers does.

`make test-vllm` installs vLLM for the CPU in an environment of its own and runs this; see `vllm.txt`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.clients import outcomes, with_vllm
from tests.clients.asking import VLLM, versions
from tests.clients.explained import EXPLAINED
from tests.clients.folders import QUANTIZED
from tests.clients.outcomes import RIGHT, Outcomes
from tests.fixtures.releases import transformers_5

pytestmark = [
    pytest.mark.skipif(not os.environ.get(VLLM), reason="vLLM is not installed"),
    transformers_5,
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    return with_vllm.of_models(tmp_path_factory.mktemp("vllm") / "models")


@pytest.mark.parametrize("kind", [*with_vllm.KINDS, *QUANTIZED, "adapter"])
def test_it_answers_as_transformers(kind: str, models: Outcomes) -> None:
    """Log-probabilities within what the order of additions makes, and the same greedy tokens."""
    is_right = models["vllm"][kind] == [RIGHT]
    assert is_right != (kind in EXPLAINED.get("vllm", {})), models["vllm"][kind]


def test_the_page_tells_what_it_says_to_faults(tmp_path: Path) -> None:
    """Each cell of the table that was filled is what happens; of another version it isn't claimed."""
    recorded = outcomes.recorded()
    if versions(["vllm"])["vllm"] != recorded["versions"].get("vllm"):
        pytest.skip("the page tells of another version")
    now = outcomes.of_faults(tmp_path / "faults", ("vllm",))
    told = recorded["faults"].get("vllm", {})
    assert outcomes.kinds({"vllm": {fault: now["vllm"][fault] for fault in told}}) == outcomes.kinds(
        {"vllm": told}
    )
