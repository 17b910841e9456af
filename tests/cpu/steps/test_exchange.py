"""Claims of `pp_export.steps.exchange`: no plan makes ranks wait for each other for ever, what arrives is
what was read, and nothing else goes over the wire.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.fixtures.processes import run_python, torchrun

PLANS_EACH = 70


@pytest.fixture(scope="module", params=[2, 3, 4])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What every rank found in its random plans, in rank order."""
    folder, size = tmp_path_factory.mktemp("plans"), request.param
    arguments = [str(folder), "gloo", "cpu", str(1000 * size), str(PLANS_EACH)]
    command = torchrun(size, "-m", "tests.fixtures.random_plans", *arguments)
    run_python(command, folder / "printed", timeout_s=300).checked()
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(size)]


def test_random_plans_come_to_their_end(found: list[dict[str, Any]]) -> None:
    """70 plans for each of 2, 3 and 4 ranks, with any leaders and readers and 8 KB buckets, are all walked;
    every file has the bytes that one rank alone makes, and exactly the planned bytes went over every link.
    """
    for rank in found:
        assert (rank["walked"], rank["faults"]) == (PLANS_EACH, [])


def test_random_plans_are_what_they_should_be(found: list[dict[str, Any]]) -> None:
    """They have many rounds, most of them exchange, and ranks have nothing to do in many rounds."""
    for rank in found:
        assert rank["rounds"] > 3 * PLANS_EACH
        assert rank["idle"] > PLANS_EACH
        assert rank["grouped"] > PLANS_EACH / 2
