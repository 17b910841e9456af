"""Claims of `pp_export.distributed.process_groups`: a world beside a job's own ranks moves bytes, can be
broken off, and leaves the job's groups and store as they were.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed import HashStore, Store  # type: ignore[attr-defined]

from pp_export import export
from pp_export.core.errors import ExportError, OptionError, PeerError, TargetError
from pp_export.distributed import liveness, process_groups
from pp_export.distributed.process_groups import SharedKeys
from pp_export.distributed.world import World
from pp_export.export import abort
from tests.cpu.distributed.test_world import RANKS, error_of, on_all, world_of
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
    """Ranks send and receive in a ring at once; so do those of a world made after one was broken off."""
    assert [rank[world] for rank in found] == [[10 + (rank - 1) % NUM_RANKS] for rank in range(NUM_RANKS)]


def test_blocked_transfers_end_when_broken_off(found: list[dict[str, Any]]) -> None:
    """Receives that nobody sends to, and sends that nobody receives, end within seconds with an error that
    names the peer.
    """
    for rank in found:
        assert rank["blocked"] == [True, True]
        assert rank["alive"] == [False, False]
        assert rank["seconds"] < 10  # a rank may wait the grace of 6 s out, see the late rank below
        assert len(rank["worker errors"]) == 2
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
        assert before.pop("keys") <= after.pop("keys")
        assert after == before
        assert rank["during"] == len(before["groups"]) + 1
        assert rank["all_reduce"] == NUM_RANKS


def test_the_store_keeps_no_key_of_an_export(found: list[dict[str, Any]]) -> None:
    """What is left in the job's store is what torch leaves there for any group that is made and destroyed."""
    for rank in found:
        counts = [rank[name]["keys"] for name in ("before", *(f"after {world}" for world in WORLDS))]
        assert {after - before for before, after in itertools.pairwise(counts)} == {rank["keys of a group"]}


# --- the store


@pytest.fixture
def store() -> Store:
    store = HashStore()
    store.set_timeout(timedelta(milliseconds=300))
    return store


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 gives a sign of life more often than every second, and nobody is waited for long."""
    monkeypatch.setattr(liveness, "_BEAT_SECONDS", 0.02)
    monkeypatch.setattr(export, "_GRACE_SECONDS", 0.6)


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
        world = make("nccl", stall_seconds=5)
        assert (world.rank, world.size) == (0, 1)
        world.close()
    assert not dist.is_initialized()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_nccl_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several ranks with --backend nccl and no GPU are told what to use instead."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(OptionError, match="needs a GPU") as caught:
        process_groups.join("nccl", stall_seconds=5)
    assert caught.value.advice == "use --backend gloo"


def test_ranks_without_an_address_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher's environment that lacks something is a PeerError that says what to check."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(PeerError, match="could not find each other") as caught:
        process_groups.join("gloo", stall_seconds=5)
    assert caught.value.where == {"rank": "1"}
    assert "MASTER_ADDR" in str(caught.value.advice)
    assert not dist.is_initialized()


# --- the end of a world


def steps_of(world: World) -> None:
    """Every kind of step, as an export makes them."""
    world.gather(b"x")
    world.share(lambda: b"x")
    world.same("the plan", "x")
    world.post_progress({})


@pytest.mark.parametrize("guilty", [None, *RANKS])
def test_close_leaves_no_key(store: Store, guilty: int | None) -> None:
    """After success, and after a failure of any rank, the store has the keys that it had before; another
    world goes over it.
    """
    store.set("the job's own", "kept")

    def act(world: World) -> str:
        def fail_at_last(world: World) -> None:
            steps_of(world)
            world.together(lambda: 1 / 0 if world.rank == guilty else 0)

        try:
            fail_at_last(world)
        except (ExportError, ZeroDivisionError) as error:
            own = error if isinstance(error, ExportError) else TargetError("divided")
            return abort(world, None, own).what
        return "ok"

    assert set(on_all(act, store)) == {"ok" if guilty is None else "divided"}
    assert store.num_keys() == 1
    assert on_all(lambda world: world.share(lambda: b"again"), store, name="x") == [b"again"] * NUM_RANKS
    assert store.num_keys() == 1
    assert store.get("the job's own") == b"kept"


def after_a_failure(store: Store) -> tuple[World, threading.Thread]:
    """Rank 1 that is still busy when rank 0 has failed, spoken and closed."""
    first, late = (World(n, 2, SharedKeys(store), stall_seconds=5) for n in (0, 1))
    assert first.pulse() is not None
    assert abort(first, None, TargetError("full")).what == "full"
    closing = threading.Thread(target=first.close, args=(3,))
    closing.start()
    time.sleep(0.1)
    return late, closing


def test_a_late_rank_still_hears_the_failure(store: Store) -> None:
    """A rank that listens only when the others have closed hears who failed, as long as they wait for it."""
    late, closing = after_a_failure(store)
    try:
        with pytest.raises(PeerError, match="rank 0 failed: full"):
            late.check()
    finally:
        late.close(0)
        closing.join(5)


def test_a_late_rank_does_not_wait_for_a_sign_of_life(store: Store) -> None:
    """Where rank 0 has spoken, nobody waits the grace out to find out whether it lives."""
    late, closing = after_a_failure(store)
    try:
        late.fail(PeerError("heard"))
        begun = time.monotonic()
        assert late.elect_reporter(1) is False
        waited = time.monotonic() - begun
        verdict = late.agree(None, 1)
        assert verdict is not None
        assert verdict.what == "full"
        assert waited < 0.5
    finally:
        late.close(0)
        closing.join(5)


def test_close_leaves_no_key_of_steps_that_rank_0_never_took(store: Store) -> None:
    """Rank 0 fails before the first step, when the others already wait in it."""
    arrived = threading.Barrier(NUM_RANKS)

    def act(world: World) -> None:
        def first(world: World) -> None:
            if world.rank == 0:
                arrived.wait(10)
                time.sleep(0.1)
                raise TargetError("full")
            arrived.wait(10)
            world.gather(b"x")

        error_of(world, first)

    on_all(act, store)
    assert store.num_keys() == 0


def test_no_beat_comes_after_the_end(store: Store) -> None:
    """A pulse that is being posted while the world closes leaves no key behind."""

    class SlowKeys(SharedKeys):
        def set(self, key: str, value: bytes) -> None:
            time.sleep(0.2 if key == "pulse" else 0)
            super().set(key, value)

    world = World(0, 2, SlowKeys(store), stall_seconds=20)
    World(1, 2, SharedKeys(store), stall_seconds=20).close()
    time.sleep(0.1)
    world.close()
    time.sleep(0.4)
    assert [key for key in ("run", "pulse") if store.check([key])] == []


def test_close_does_not_wait_for_ranks_that_are_gone(store: Store) -> None:
    """Rank 0 leaves after its patience, although no other rank does."""
    world = world_of(0, store)
    begun = time.monotonic()
    world.close(0.1)
    assert time.monotonic() - begun < 2


def test_leaving_waits_for_the_report(store: Store) -> None:
    """After a failure the other ranks leave when the speaker has reported, not before."""
    speaker, other = (world_of(rank, store) for rank in (0, 1))
    left: list[float] = []

    def leave() -> None:
        other.leave_after_failure(10)
        left.append(time.monotonic())

    thread = threading.Thread(target=leave)
    thread.start()
    time.sleep(0.2)
    assert left == []
    speaker.leave_after_failure(10)
    thread.join(5)
    assert len(left) == 1


@dataclass
class FakeCarrier:
    """Notes what is done with it; `receive` blocks until it is interrupted."""

    done: list[str] = field(default_factory=list)
    broken: threading.Event = field(default_factory=threading.Event)
    ends_transfers: bool = True

    def send(self, message: torch.Tensor, to: int, tag: int) -> None:
        self.done.append(f"send {len(message)} to {to}")

    def receive(self, into: Mapping[int, torch.Tensor], tag: int) -> None:
        self.broken.wait(10)

    def interrupt(self) -> None:
        self.done.append("interrupt")
        if self.ends_transfers:
            self.broken.set()

    def close(self) -> None:
        self.done.append("close")


@pytest.fixture
def carrier() -> Iterator[FakeCarrier]:
    carrier = FakeCarrier()
    yield carrier
    carrier.broken.set()


def blocked(carrier: FakeCarrier, store: Store) -> World:
    """A world with one worker that waits for a message."""
    world = World(0, 1, SharedKeys(store), lambda: carrier, stall_seconds=20)
    world.connect()
    into = {1: torch.empty(1, dtype=torch.uint8)}
    world.workers = [threading.Thread(target=lambda: world.receive(into, 0))]
    world.workers[0].start()
    return world


def test_workers_have_ended_when_broken_off(carrier: FakeCarrier, store: Store) -> None:
    """`end_transfers` interrupts the carrier and returns when workers are done; then `close` closes it."""
    world = blocked(carrier, store)
    world.end_transfers(5)
    assert not world.workers[0].is_alive()
    world.close()
    assert carrier.done == ["interrupt", "close"]


def test_a_carrier_in_use_is_not_closed(carrier: FakeCarrier, store: Store) -> None:
    """A worker that can't be ended is waited for in vain for a while, and its carrier stays."""
    carrier.ends_transfers = False
    world = blocked(carrier, store)
    begun = time.monotonic()
    world.end_transfers(0.1)
    assert 0.1 <= time.monotonic() - begun < 2
    world.close()
    assert carrier.done == ["interrupt"]
