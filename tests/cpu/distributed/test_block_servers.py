"""Claims of `pp_export.distributed.block_servers`: blocks of processes with real stores work as one world,
and end as one when the process that serves a block is killed or stopped.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pp_export.core.errors import PeerError
from pp_export.distributed.address import listener_towards
from pp_export.distributed.block_servers import tcp_blocks
from tests.fixtures.processes import run_python

NUM_RANKS = 5
"""In blocks of three: rank 3 serves ranks 3 and 4."""
HURT = {"nobody": ("none", 0), "killed": ("SIGKILL", 3), "stopped": ("SIGSTOP", 3), "rank 0": ("SIGSTOP", 0)}


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What the ranks of each job printed."""
    folder = tmp_path_factory.mktemp("town")

    def run(name: str) -> list[dict[str, Any]]:
        how, victim = HURT[name]
        seconds = "0" if how == "none" else "60"
        command = ["-m", "tests.fixtures.town_job", str(NUM_RANKS), how, str(victim), seconds]
        done = run_python(command, folder / name, timeout_s=120).checked()
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(HURT, pool.map(run, HURT)))


def test_steps_go_through_real_stores(jobs: dict[str, list[dict[str, Any]]]) -> None:
    """Every rank gets its values and sees all files that were announced; nothing is left in the
    launcher's store.
    """
    *ranks, last = jobs["nobody"]
    assert sorted(found["rank"] for found in ranks) == list(range(NUM_RANKS))
    for found in ranks:
        assert found["gathered"] == (NUM_RANKS if found["rank"] == 0 else 0)
        assert (found["own"], found["shared"], found["known"]) == (f"to {found['rank']}", "shared", True)
    assert last == {"keys": 0}


@pytest.mark.parametrize("name", [name for name in HURT if name != "nobody"])
def test_a_rank_that_is_hurt_ends_all(jobs: dict[str, list[dict[str, Any]]], name: str) -> None:
    """All other ranks, those of its block too, raise one error in bounded time; it names the rank."""
    *ranks, _ = jobs[name]
    _, victim = HURT[name]
    assert sorted(found["rank"] for found in ranks) == [rank for rank in range(NUM_RANKS) if rank != victim]
    for found in ranks:
        assert found["raised"] == ranks[0]["raised"]
        assert found["raised"]["kind"] == "PeerError"
        assert found["seconds"] < 40
        assert f"rank {victim} ended without a word" in found["raised"]["findings"][0]


def test_few_ranks_are_one_block() -> None:
    """No store is served where one does."""
    assert [tcp_blocks(n, patience_seconds=5) is None for n in (1, 2, 128, 129)] == [True, True, True, False]


def test_a_store_listens_on_one_address_only() -> None:
    """It listens where the way to the launcher's host begins, not on all interfaces."""
    listener, host = listener_towards("127.0.0.1", 29500)
    with listener:
        assert listener.getsockname()[0] == host == "127.0.0.1"
        assert listener.getsockname()[1] != 29500


@pytest.mark.asks_elsewhere
def test_a_block_without_a_way_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that can't be made, and one that can't be reached, are PeerErrors that say what to check."""
    blocks = tcp_blocks(200, patience_seconds=5)
    assert blocks is not None
    monkeypatch.setenv("MASTER_ADDR", "256.256.256.256")
    with pytest.raises(PeerError, match="no store for a block of ranks could be made") as caught:
        blocks.serve()
    assert "can all nodes reach each other" in str(caught.value.advice)


def test_a_served_store_is_found_at_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is set at one end is seen at the other, and nobody answers after it was closed."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    blocks = tcp_blocks(200, patience_seconds=5)
    assert blocks is not None
    served, address = blocks.serve()
    found = blocks.connect(address, whose="the store of rank 128", meanwhile=lambda: None)
    served.set("k", b"\0\xff")
    assert found.get("k") == b"\0\xff"
    served.close()
    with pytest.raises(PeerError, match="the store of rank 128 does not answer"):
        [found.check("k") for _ in range(1000)]
