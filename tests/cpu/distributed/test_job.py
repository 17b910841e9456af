"""Claims of `pp_export.distributed.job` and `meeting`, in a job of real processes: a rank that misses an
export is named by the others, one that is late is told, and the next export of the job works; no key
stays.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.missed_calls import NUM_RANKS, STALL_SECONDS
from tests.fixtures.processes import run_python


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank of the job found, in rank order."""
    folder: Path = tmp_path_factory.mktemp("missed")
    ended = run_python(["-m", "tests.fixtures.missed_calls"], folder, timeout_s=180).checked()
    lines = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    return sorted(lines, key=lambda line: int(line["rank"]))


@pytest.mark.parametrize("victim", range(NUM_RANKS))
def test_a_rank_that_never_calls_is_named(found: list[dict[str, Any]], victim: int) -> None:
    """All others raise the same error within the stall time, which names it."""
    errors = [rank[f"without {victim}"]["error"] for rank in found if rank["rank"] != victim]
    assert errors == [errors[0]] * (NUM_RANKS - 1)
    assert errors[0]["what"] == f"no progress for {STALL_SECONDS:.0f} s: rank {victim} has not come"
    assert (errors[0]["kind"], errors[0]["where"]) == ("PeerError", {"rank": str(victim)})


@pytest.mark.parametrize("how", ["after 2 was missed", "after 0 was missed", "after 1 was late"])
def test_the_next_export_works(found: list[dict[str, Any]], how: str) -> None:
    """Ranks that have called a different number of times export together, wherever the next one goes to."""
    assert [rank[how].get("ranks") for rank in found] == [NUM_RANKS, 0, 0], [rank[how] for rank in found]


def test_a_late_rank_is_told(found: list[dict[str, Any]]) -> None:
    """It doesn't take part in what the others have given up, nor do they wait for it."""
    late = found[1]["late"]
    assert late["error"]["what"] == "the other ranks have given up this export: this rank came too late"
    assert late["seconds"] < 3 * STALL_SECONDS + 5


@pytest.mark.parametrize("when", ["keys after 2", "keys after 0", "after"])
def test_no_key_stays(found: list[dict[str, Any]], when: str) -> None:
    """What exports that failed had left in the job's store is gone when one has worked."""
    assert [rank[when] for rank in found] == [rank["before"] for rank in found]
