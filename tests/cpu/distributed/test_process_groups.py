"""Claims of `pp_export.distributed.process_groups`: a world beside a job's own ranks moves bytes, can be
broken off, and leaves the job's groups and store as they were.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch.distributed as dist

from pp_export.core.errors import PeerError
from pp_export.distributed import process_groups
from tests.fixtures.processes import run_python, torchrun

NUM_RANKS = 3
WORLDS = ("first", "broken off", "second")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What every rank of a job found, in rank order."""
    folder = tmp_path_factory.mktemp("transfers")
    command = torchrun(NUM_RANKS, "-m", "tests.fixtures.transfers", str(folder))
    run_python(command, folder / "printed", timeout_s=90).checked()
    return [json.loads(path.read_text()) for path in sorted(folder.glob("rank*.json"))]


@pytest.mark.parametrize("world", WORLDS)
def test_bytes_arrive(found: list[dict[str, Any]], world: str) -> None:
    """Ranks send and receive in a ring in each round; so do those of a world after one was broken off."""
    assert [rank[world] for rank in found] == [[10 + (rank - 1) % NUM_RANKS] for rank in range(NUM_RANKS)]


def test_blocked_transfers_end_when_broken_off(found: list[dict[str, Any]]) -> None:
    """Receives that nobody sends to, and sends that nobody receives, end within seconds with an error that
    names the peer.
    """
    for rank in found:
        assert rank["blocked"] == [True]
        assert rank["alive"] == [False]
        assert rank["seconds"] < 10  # a rank may wait the grace of 6 s out, see the late rank below
        assert len(rank["worker errors"]) == 1
        assert all(what.startswith("the connection to rank ") for what in rank["worker errors"])


def test_broken_off_worlds_end_with_one_error(found: list[dict[str, Any]]) -> None:
    """The failure of one rank is what all raise, not the broken connections that followed."""
    assert [rank["error"] for rank in found] == [found[0]["error"]] * NUM_RANKS
    assert (found[0]["error"]["what"], found[0]["error"]["where"]) == ("no space", {"rank": "1"})


@pytest.mark.parametrize("world", WORLDS)
def test_the_job_is_as_it_was(found: list[dict[str, Any]], world: str) -> None:
    """After closing, also after breaking off, groups, default group and the store's timeout are as before."""
    for rank in found:
        before, after = dict(rank["before"]), dict(rank[f"after {world}"])
        assert after == before
        assert rank["during"] == before["groups"], "the registry doesn't know the export's groups"
        assert rank["all_reduce"] == NUM_RANKS


def test_the_store_keeps_no_key_of_an_export(found: list[dict[str, Any]]) -> None:
    """The job's store is after every export what it was before, also after one that was broken off."""
    for rank in found:
        assert {rank[f"after {world}"]["keys"] for world in WORLDS} == {rank["before"]["keys"]}


# --- ways to make a world


def test_a_process_without_ranks_is_a_world_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a process group, and with a world size of one, no group is made and no backend is needed."""
    monkeypatch.setenv("WORLD_SIZE", "1")
    for make in (process_groups.beside, process_groups.join):
        world = make(stall_seconds=5)
        assert (world.rank, world.size) == (0, 1)
        world.close()
    assert not dist.is_initialized()


def test_ranks_without_an_address_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher's environment that lacks something is a PeerError that says what to check."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(PeerError, match="could not find each other") as caught:
        process_groups.join(stall_seconds=5)
    assert caught.value.where == {"rank": "1"}
    assert "MASTER_ADDR" in str(caught.value.advice)
    assert not dist.is_initialized()
