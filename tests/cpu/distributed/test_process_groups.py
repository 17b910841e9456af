"""Claims of `pp_export.distributed.process_groups`: a world beside a job's own ranks moves bytes, can be
broken off, and leaves the job's groups and store as they were.
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist
from torch.distributed import HashStore, Store  # type: ignore[attr-defined]

from pp_export.core.errors import PeerError
from pp_export.distributed import process_groups
from pp_export.distributed.process_groups import SharedKeys
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


# --- the store


@pytest.fixture
def store() -> Store:
    store = HashStore()
    store.set_timeout(timedelta(milliseconds=300))
    return store


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 20, 25])
def test_values_of_any_size_are_kept(store: Store, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """A value comes back as it was, in one piece or several, and nothing of it is left when it is deleted."""
    monkeypatch.setattr(process_groups, "_PIECE_BYTES", 10)
    keys, value = SharedKeys(store), bytes(range(size))
    keys.set("k", value)
    assert keys.check("k")
    assert keys.get("k") == value
    assert store.num_keys() == (1 if size <= 10 else 1 + -(-size // 10))
    keys.delete("k")
    assert not keys.check("k")
    assert store.num_keys() == 0


@pytest.mark.parametrize("value", [b"#2", b"=", b"\0\xff"])
def test_values_are_never_taken_for_pieces(store: Store, value: bytes) -> None:
    """Whatever bytes a value begins with, they are its own."""
    keys = SharedKeys(store)
    keys.set("k", value)
    assert keys.get("k") == value


def test_the_first_value_stays(store: Store) -> None:
    """`set_first` gives the value that was there first, and `get` the same."""
    keys = SharedKeys(store)
    assert [keys.set_first("k", value) for value in ("0", "1")] == [b"0", b"0"]
    assert keys.get("k") == b"0"
    keys.set("known", b"kept")
    assert keys.set_first("known", "other") == b"kept"


def test_counters_count_and_can_be_deleted(store: Store) -> None:
    """`add` gives the new sum; a counter is deleted like a value, and deleting what isn't there is fine."""
    keys = SharedKeys(store)
    assert [keys.add("n", 2), keys.add("n", 0), keys.add("n", 1)] == [2, 2, 3]
    keys.delete("n")
    keys.delete("n")
    assert store.num_keys() == 0


def test_a_store_that_does_not_answer_is_a_peer_error(store: Store) -> None:
    """Whatever goes wrong in the store is a PeerError with torch's reason in one line."""
    with pytest.raises(PeerError, match="store does not answer") as caught:
        SharedKeys(store).get("absent")
    assert caught.value.got
    assert "\n" not in caught.value.got


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
