"""The ranks of an export: what they tell each other, apart from tensors.

*Control* goes through a key-value store: small values, counters, the first failure. The main thread only ever
polls it, so that it can always hear that another rank failed. *Data* goes point to point through a carrier,
whose calls block, so only worker threads make them.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch

from pp_export.core import errors
from pp_export.core.errors import ExportError, PeerError, StoppedError
from pp_export.distributed.liveness import Heartbeat, Watchdog

T = TypeVar("T")

_FAILURE, _SPEAKER, _RELEASED, _PULSE, _VERDICT = "failure", "speaker", "released", "pulse", "verdict"


class Store(Protocol):
    """Keys and values that all ranks see; everything that goes wrong with it is a PeerError."""

    def set(self, key: str, value: bytes) -> None: ...

    def set_first(self, key: str, value: str) -> bytes:
        """Set `key` unless it is set; its value then."""

    def get(self, key: str) -> bytes: ...

    def add(self, key: str, amount: int) -> int: ...

    def check(self, key: str) -> bool: ...

    def delete(self, key: str) -> None: ...


class Carrier(Protocol):
    """Moves host memory between ranks."""

    def send(self, message: torch.Tensor, to: int, tag: int) -> None: ...

    def receive(self, into: Mapping[int, torch.Tensor], tag: int) -> None: ...

    def interrupt(self) -> None:
        """End what other threads of this rank are blocked in: it raises there. Of no use afterwards."""

    def close(self) -> None:
        """Give back what was taken to make it."""


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
        self,
        rank: int,
        size: int,
        store: Store,
        make_carrier: Callable[[], Carrier] | None = None,
        *,
        stall_seconds: float,
    ) -> None:
        self.rank, self.size = rank, size
        self._store, self._make_carrier = store, make_carrier
        self._carrier: Carrier | None = None
        self._stall_seconds = stall_seconds
        self.counters: Callable[[], Mapping[str, Any]] = dict
        self.workers: list[threading.Thread] = []
        self._own_keys: list[str] = []
        self._poll_seconds = max(0.02, size / 16384)
        self._num_steps = 0
        if rank == 0:
            self._store.set("run", f"{time.time_ns():x}".encode())
        self.run_id = self._run_id()
        self._posted = 0.0
        self._beats = 0
        self.is_reporter = rank == 0
        """Whether this rank cleans up and reports after a failure; see `elect_reporter`."""
        is_watched = rank == 0 and size > 1
        # Not a method of this world: the two would keep each other alive where Python's collector is off.
        self._pulse = Heartbeat(lambda number: store.set(_PULSE, b"%d" % number)) if is_watched else None

    def _run_id(self) -> str:
        """What rank 0 called this run; in a training job it may come minutes later."""
        deadline = time.monotonic() + self._stall_seconds
        while not self._store.check("run"):
            if time.monotonic() > deadline:
                raise PeerError(
                    f"rank 0 has not come within {self._stall_seconds:.0f} s", where={"rank": self.rank}
                )
            time.sleep(self._poll_seconds)
        return self._store.get("run").decode()

    def connect(self) -> None:
        """Make what carries tensors, unless it is there; called by all, who are all there when it begins."""
        if self._carrier is None and self._make_carrier is not None:
            make = self._make_carrier
            self.together(lambda: None)
            self._carrier = make()

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

    def gather(self, value: bytes) -> list[bytes]:
        """The values of all ranks, in rank order, on rank 0; elsewhere nothing. Called by all.

        Values that are the same on several ranks (replicas) are sent once.
        """
        name = self._next_step()
        digest = hashlib.sha256(value).hexdigest()
        if not self._store.check(f"{name}/{digest}"):
            self._own_keys.append(f"{name}/{digest}")
            self._store.set(f"{name}/{digest}", value)
        self._store.set(f"{name}/{self.rank}", digest.encode())
        self.together(lambda: None)
        digests = [self._store.get(f"{name}/{r}").decode() for r in range(self.size if self.rank == 0 else 0)]
        values = {digest: self._store.get(f"{name}/{digest}") for digest in set(digests)}
        return [values[digest] for digest in digests]

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
            first = self._store.get(_FAILURE).decode()
            failure = Failure(**json.loads(self._store.get(f"failed/{first}")))
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
        """StoredItem that this rank failed; every other rank raises PeerError at its next poll."""
        record = json.dumps({"rank": self.rank, "error": error.to_json()})
        with suppress(PeerError):  # the store may be what failed
            self._store.set(f"failed/{self.rank}", record.encode())
            self._store.set_first(_FAILURE, str(self.rank))

    def elect_reporter(self, grace_seconds: float) -> bool:
        """Whether this rank cleans up and reports after the failure: rank 0, or, where that gives no sign of
        life during the grace, the first rank that asks.
        """
        with suppress(PeerError):
            if self.rank == 0 or not self._is_rank_0_alive(grace_seconds):
                self.is_reporter = self._store.set_first(_SPEAKER, str(self.rank)) == b"%d" % self.rank
        return self.is_reporter

    def _is_rank_0_alive(self, grace_seconds: float) -> bool:
        deadline, pulse = time.monotonic() + grace_seconds, self.pulse()
        while time.monotonic() < deadline:
            if self._store.check(_SPEAKER) or self._store.check("failed/0") or self.pulse() != pulse:
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

    def end_transfers(self, seconds: float = 5.0) -> None:
        """After a failure: end the transfers of this rank's workers, and wait for those for a while."""
        if self._carrier is not None:
            self._carrier.interrupt()
        deadline = time.monotonic() + seconds
        for worker in self.workers:
            worker.join(max(0.0, deadline - time.monotonic()))

    def agree(self, cause: ExportError | None, seconds: float = 20.0) -> ExportError | None:
        """The error that all ranks raise: the speaker's `cause`; None where it can't be heard."""
        deadline = time.monotonic() + seconds
        with suppress(PeerError):
            if self.is_reporter and cause is not None:
                self._store.set(_VERDICT, json.dumps(cause.to_json()).encode())
                return cause
            while time.monotonic() < deadline:
                if self._store.check(_VERDICT):
                    return errors.from_json(json.loads(self._store.get(_VERDICT)))
                time.sleep(self._poll_seconds)
        return cause

    def leave_after_failure(self, seconds: float = 20.0) -> None:
        """Return when the rank that speaks has reported, since a launcher ends all ranks as soon as one
        exits.
        """
        deadline = time.monotonic() + seconds
        with suppress(PeerError):
            if self.is_reporter:
                self._store.set(_RELEASED, b"")
            while time.monotonic() < deadline and not self._store.check(_RELEASED):
                time.sleep(self._poll_seconds)
        self._end_pulse()

    def close(self, seconds: float = 10.0) -> None:
        """Leave the group and the store as they were before; called by all ranks, after success or
        failure.
        """
        self._end_pulse()
        with suppress(PeerError):
            self._forget(time.monotonic() + seconds)
        if self._carrier is not None and not any(worker.is_alive() for worker in self.workers):
            self._carrier.close()
        self._carrier = self._make_carrier = None  # sockets end with the last reference
        self.workers = []

    def _forget(self, deadline: float) -> None:
        """Delete the keys of this world. Rank 0 does it, when all have left: who is still there needs
        them.
        """
        touched = {"steps": self._num_steps, "keys": self._own_keys}
        self._store.set(f"left/{self.rank}", json.dumps(touched).encode())
        self._store.add("left", 1)
        if self.rank != 0:
            return
        while self._store.add("left", 0) < self.size:
            if time.monotonic() > deadline:
                return
            time.sleep(self._poll_seconds)
        left = [json.loads(self._store.get(f"left/{rank}")) for rank in range(self.size)]
        steps = [f"step/{n}" for n in range(1, max(one["steps"] for one in left) + 1)]
        for name in ("progress", "failed", "left", *steps):
            for rank in range(self.size):
                self._store.delete(f"{name}/{rank}")
        common = (_FAILURE, _SPEAKER, _RELEASED, _VERDICT, _PULSE, "run", "left")
        for name in (*common, *steps, *(key for one in left for key in one["keys"])):
            self._store.delete(name)

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
        watch = Watchdog(self, self._stall_seconds)
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
