"""The one door to other ranks: `torch.distributed` is imported here and nowhere else.

Two kinds of traffic, never mixed. *Control* goes through the rendezvous store: small values, counters, the
first failure. The main thread only ever polls it, so that it can always hear that another rank failed. *Data*
goes point to point over a process group (Gloo for host memory, NCCL for device memory); those calls block, so
only worker threads make them.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import HashStore, PrefixStore, Store, rendezvous  # type: ignore[attr-defined]

from pp_export.errors import ExportError, OptionError, PeerError, StoppedError
from pp_export.watch import Pulse, StallWatch

T = TypeVar("T")

# Waiting is bounded by lack of progress (see World.wait), so the group's own clock only has to be far away.
_GROUP_TIMEOUT = timedelta(days=7)
_STORE_TIMEOUT = timedelta(seconds=60)
_FAILURE, _SPEAKER, _RELEASED, _PULSE = "failure", "speaker", "released", "pulse"


@dataclass(frozen=True)
class Failure:
    """What one rank reported before it stopped."""

    rank: int
    error: dict[str, Any]

    @property
    def is_origin(self) -> bool:
        """Whether the rank failed by itself, not because another one had."""
        return self.error["kind"] not in (PeerError.__name__, StoppedError.__name__)


class World:
    """The ranks of this export. A world of one needs no launcher and no process group."""

    def __init__(
        self, rank: int, size: int, store: Store, carrier: _Carrier | None, *, stall_seconds: float
    ) -> None:
        self.rank, self.size = rank, size
        self._store, self._carrier = _Control(store), carrier
        self._stall_seconds = stall_seconds
        self.counters: Callable[[], Mapping[str, Any]] = dict
        self._poll_seconds = max(0.02, size / 16384)
        self._num_steps = 0
        if rank == 0:
            self._store.set("run", f"{time.time_ns():x}".encode())
        self.run_id = self._store.get("run").decode()
        self._posted = 0.0
        self._beats = 0
        self.speaks = rank == 0
        """Whether this rank cleans up and reports after a failure; see `take_the_floor`."""
        is_watched = rank == 0 and size > 1
        self._pulse = Pulse(lambda n: self._store.set(_PULSE, b"%d" % n)) if is_watched else None

    @classmethod
    def join(cls, backend: str, *, stall_seconds: float) -> World:
        """Join the ranks that the launcher's environment (RANK, WORLD_SIZE, MASTER_ADDR, ...) names; called
        by all.
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls(0, 1, HashStore(), None, stall_seconds=stall_seconds)
        if backend == "nccl" and not torch.cuda.is_available():
            raise OptionError("--backend nccl needs a GPU on every rank", advice="use --backend gloo")
        try:
            store, rank, size = next(iter(rendezvous("env://")))
            store.set_timeout(_STORE_TIMEOUT)
            data = PrefixStore("data", store)
            dist.init_process_group(backend, store=data, rank=rank, world_size=size, timeout=_GROUP_TIMEOUT)
            carrier: _Carrier = _NcclCarrier(rank, size) if backend == "nccl" else _GlooCarrier()
        except (RuntimeError, ValueError) as error:
            raise PeerError(
                f"the ranks could not find each other: {_first_line(error)}",
                where={"rank": os.environ.get("RANK")},
                advice="check MASTER_ADDR, MASTER_PORT and that every node started with the same world size",
            ) from error
        return cls(rank, size, PrefixStore("pp_export", store), carrier, stall_seconds=stall_seconds)

    # Control, main thread only.

    def share(self, produce: Callable[[], bytes]) -> bytes:
        """The bytes that `produce` gives on rank 0, on every rank; called by all. A failure of rank 0 reaches
        all.
        """
        name = self._next_step()
        if self.rank == 0:
            value = produce()
            if self.size > 1:
                self._store.set(name, value)
            return value
        self._wait(lambda: self._store.check(name), [0])
        return self._store.get(name)

    def together(self, act: Callable[[], T]) -> T:
        """Every rank acts; nobody goes on before all have. The first failure is raised on every rank."""
        name = self._next_step()
        value = act()
        self._store.set(f"{name}/{self.rank}", b"")
        self._store.add(name, 1)
        self._wait(lambda: self._store.add(name, 0) == self.size, range(self.size), f"{name}/")
        return value

    def gather(self, value: str) -> list[str]:
        """The values of all ranks, in rank order, on rank 0; elsewhere nothing. Called by all."""
        name = f"gathered/{self._num_steps + 1}"
        self.together(lambda: self._store.set(f"{name}/{self.rank}", value.encode()))
        return (
            [self._store.get(f"{name}/{rank}").decode() for rank in range(self.size)]
            if self.rank == 0
            else []
        )

    def same(self, what: str, value: str) -> None:
        """Raise on every rank unless `value` is the same on all."""
        first = self.share(value.encode).decode()

        def compare() -> None:
            if value != first:
                raise ExportError(
                    f"the ranks disagree on {what}",
                    where={"rank": self.rank},
                    expected=f"{first} (rank 0)",
                    got=value,
                    advice="start all ranks with the same options and the same version of pp_export",
                )

        self.together(compare)

    def wait(self, done: Callable[[], bool]) -> None:
        """Poll `done` until it is true; raises as soon as a rank failed, or when no rank makes progress any
        more.
        """
        self._wait(done, range(self.size))

    def check(self) -> None:
        """Raise PeerError if a rank has failed."""
        if self.size > 1 and self._store.check(_FAILURE):
            failure = Failure(**json.loads(self._store.get(_FAILURE)))
            raise PeerError(
                f"rank {failure.rank} failed: {failure.error['what']}", where={"rank": failure.rank}
            )

    def post_progress(self, counters: Mapping[str, Any]) -> None:
        """Let rank 0 see how far this rank is; cheap enough to be called in every poll."""
        now = time.monotonic()
        if now - self._posted >= max(0.2, self._poll_seconds):
            self._posted, self._beats = now, self._beats + 1
            value = json.dumps({"beat": self._beats, **counters}).encode()
            self._store.set(f"progress/{self.rank}", value)

    def progress_of(self, ranks: Iterable[int]) -> dict[int, dict[str, Any]]:
        """The last progress that the given ranks posted."""
        keys = {rank: f"progress/{rank}" for rank in ranks}
        return {
            rank: json.loads(self._store.get(key)) for rank, key in keys.items() if self._store.check(key)
        }

    # Failure, main thread only.

    def fail(self, error: ExportError) -> None:
        """Record that this rank failed; every other rank raises PeerError at its next poll."""
        record = json.dumps({"rank": self.rank, "error": error.to_json()})
        with suppress(PeerError):  # the store may be what failed
            self._store.set(f"failed/{self.rank}", record.encode())
            self._store.set_first(_FAILURE, record)

    def take_the_floor(self, grace_seconds: float) -> bool:
        """Whether this rank cleans up and reports after the failure: rank 0, or, where that gives no sign of
        life during the grace, the first rank that asks.
        """
        with suppress(PeerError):
            if self.rank == 0 or not self._is_rank_0_alive(grace_seconds):
                self.speaks = self._store.set_first(_SPEAKER, str(self.rank)) == b"%d" % self.rank
        return self.speaks

    def _is_rank_0_alive(self, grace_seconds: float) -> bool:
        deadline, pulse = time.monotonic() + grace_seconds, self.pulse()
        while time.monotonic() < deadline:
            if self._store.check("failed/0") or self.pulse() != pulse:
                return True
            time.sleep(self._poll_seconds)
        return False

    def failures(self, grace_seconds: float) -> tuple[list[Failure], list[int]]:
        """What the ranks reported, and the ranks that said nothing within the grace; called after a failure
        on the rank that speaks. Without a store nobody can be heard, and all stop for that reason.
        """
        deadline = time.monotonic() + grace_seconds
        silent = list(range(self.size))
        try:
            while silent and time.monotonic() < deadline:
                silent = [rank for rank in silent if not self._store.check(f"failed/{rank}")]
                time.sleep(self._poll_seconds if silent else 0)
            heard = [rank for rank in range(self.size) if rank not in silent]
            return [Failure(**json.loads(self._store.get(f"failed/{rank}"))) for rank in heard], silent
        except PeerError:
            return [], []

    def leave_after_failure(self, seconds: float = 20.0) -> None:
        """Return when the rank that speaks has cleaned up, since the launcher ends all ranks as soon as one
        exits.
        """
        deadline = time.monotonic() + seconds
        with suppress(PeerError):
            if self.speaks:
                self._store.set(_RELEASED, b"")
            while time.monotonic() < deadline and not self._store.check(_RELEASED):
                time.sleep(self._poll_seconds)
        self._end_pulse()

    def close(self) -> None:
        """Leave the group after success; all ranks have passed the last step."""
        self._end_pulse()
        if self._carrier is not None:
            dist.destroy_process_group()

    def _end_pulse(self) -> None:
        if self._pulse is not None:
            self._pulse.stop()

    # Data, worker threads only.

    def send(self, message: torch.Tensor, to: int, tag: int) -> None:
        """Send a uint8 tensor in host memory to rank `to`; blocks until it may be reused."""
        assert self._carrier is not None
        self._carrier.send(message, to, tag)

    def receive(self, into: dict[int, torch.Tensor], tag: int) -> None:
        """Fill each uint8 tensor (host memory) with the message of its rank; blocks until all are in."""
        if into:
            assert self._carrier is not None
            self._carrier.receive(into, tag)

    def _next_step(self) -> str:
        self._num_steps += 1
        return f"step/{self._num_steps}"

    def _wait(self, done: Callable[[], bool], ranks: Iterable[int], arrived: str = "") -> None:
        watch = StallWatch(self, self._stall_seconds)
        while not done():
            self.check()
            self.post_progress(self.counters())
            watch.look(ranks, arrived)
            time.sleep(self._poll_seconds)

    # What the watch needs to know.

    def has_arrived(self, rank: int, step: str) -> bool:
        return bool(step) and self._store.check(f"{step}{rank}")

    def pulse(self) -> bytes:
        """What rank 0 posted last as a sign of life."""
        return self._store.get(_PULSE) if self._store.check(_PULSE) else b""


class _Control:
    """The rendezvous store. It lives with another process, so whatever goes wrong with it is a PeerError."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def set(self, key: str, value: bytes) -> None:
        self._guard(lambda: self._store.set(key, value))  # type: ignore[arg-type]

    def set_first(self, key: str, value: str) -> bytes:
        """Set `key` unless it is set; its value then."""
        return bytes(self._guard(lambda: self._store.compare_set(key, "", value)))

    def get(self, key: str) -> bytes:
        return bytes(self._guard(lambda: self._store.get(key)))

    def add(self, key: str, amount: int) -> int:
        return self._guard(lambda: self._store.add(key, amount))

    def check(self, key: str) -> bool:
        return self._guard(lambda: self._store.check([key]))

    def _guard(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except RuntimeError as error:
            raise PeerError(
                "the launcher's store does not answer: its process or node is gone", got=_first_line(error)
            ) from error


class _Carrier:
    """Moves host memory between ranks."""

    def send(self, message: torch.Tensor, to: int, tag: int) -> None:
        raise AssertionError

    def receive(self, into: dict[int, torch.Tensor], tag: int) -> None:
        raise AssertionError


class _GlooCarrier(_Carrier):
    def send(self, message: torch.Tensor, to: int, tag: int) -> None:
        _broken(to, lambda: dist.send(message, to, tag=tag))

    def receive(self, into: dict[int, torch.Tensor], tag: int) -> None:
        posted = {}
        for rank, message in into.items():
            posted[rank] = _broken(rank, partial(dist.irecv, message, rank, tag=tag))
        for rank, work in posted.items():
            assert work is not None
            _broken(rank, work.wait)


class _NcclCarrier(_Carrier):
    """NCCL moves device memory: messages are staged through it, a bucket at a time.

    NCCL runs the operations of one communicator in order, so two ranks that send to each other on the same
    one would wait for each other. Messages to higher and to lower ranks therefore have a group each.
    """

    def __init__(self, rank: int, size: int) -> None:
        self._rank = rank
        self._device = torch.device(
            "cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
        )
        torch.cuda.set_device(self._device)
        ranks = list(range(size))
        self._up: dist.ProcessGroup = dist.new_group(ranks, timeout=_GROUP_TIMEOUT)
        self._down: dist.ProcessGroup = dist.new_group(ranks, timeout=_GROUP_TIMEOUT)
        self._streams = {"send": torch.cuda.Stream(self._device), "receive": torch.cuda.Stream(self._device)}  # type: ignore[no-untyped-call]

    def send(self, message: torch.Tensor, to: int, tag: int) -> None:
        def act() -> None:
            with torch.cuda.device(self._device), torch.cuda.stream(self._streams["send"]):
                on_device = message.to(self._device, non_blocking=True)
                dist.send(on_device, to, group=self._group(self._rank, to))
                self._streams["send"].synchronize()

        _broken(to, act)

    def receive(self, into: dict[int, torch.Tensor], tag: int) -> None:
        with torch.cuda.device(self._device), torch.cuda.stream(self._streams["receive"]):
            for rank, message in into.items():
                on_device = torch.empty(len(message), dtype=torch.uint8, device=self._device)
                _broken(rank, partial(dist.recv, on_device, rank, group=self._group(rank, self._rank)))
                message.copy_(on_device)

    def _group(self, sender: int, receiver: int) -> dist.ProcessGroup:
        return self._up if sender < receiver else self._down


def _broken(peer: int, call: Callable[[], T]) -> T:
    try:
        return call()
    except (RuntimeError, ValueError) as error:
        raise PeerError(
            f"the connection to rank {peer} broke", where={"rank": peer}, got=_first_line(error)
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
