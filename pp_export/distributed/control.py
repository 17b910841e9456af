"""What ranks tell each other, apart from tensors: small values, over the store."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from pp_export.core.errors import ExportError, PeerError
from pp_export.distributed.abort import Abort
from pp_export.distributed.liveness import Liveness, Watchdog
from pp_export.distributed.store import Member

T = TypeVar("T")

_LEFT = "left"


class Control:
    """The steps that all ranks take together, in the same order; main thread only.

    A wait only polls: it posts this rank's progress, raises PeerError as soon as another rank failed, and
    also when nobody makes progress any more.
    """

    def __init__(self, member: Member, liveness: Liveness, abort: Abort) -> None:
        self._member, self._store, self._liveness, self._abort = member, member.store, liveness, abort
        self._num_steps = 0
        self._own_keys: list[str] = []

    def share(self, produce: Callable[[], bytes]) -> bytes:
        """The bytes that `produce` gives on rank 0, on every rank; called by all. A failure of rank 0 reaches
        all.
        """
        name = self._next_step()
        if self._member.rank == 0:
            value = produce()
            if self._member.size > 1:
                self._store.set(name, value)
            return value
        self._wait(lambda: self._store.check(name), lambda: [0])
        return self._store.get(name)

    def scatter(self, make: Callable[[], Sequence[bytes]]) -> bytes:
        """This rank's own of the values that `make` gives on rank 0, one for each rank; called by all. A
        failure of rank 0 reaches all.
        """
        name, rank = self._next_step(), self._member.rank
        if rank == 0:
            values = make()
            assert len(values) == self._member.size
            for other in range(1, self._member.size):
                self._store.set(f"{name}/{other}", values[other])
            return values[0]
        self._wait(lambda: self._store.check(f"{name}/{rank}"), lambda: [0])
        return self._store.get(f"{name}/{rank}")

    def on_first(self, act: Callable[[], T]) -> T | None:
        """Rank 0 acts, and nobody goes on before it has; called by all. Its value on rank 0, None elsewhere.
        A failure of rank 0 reaches all.
        """
        values: list[T] = []

        def produce() -> bytes:
            values.append(act())
            return b""

        self.share(produce)
        return values[0] if values else None

    def together(self, act: Callable[[], T]) -> T:
        """Every rank acts; nobody goes on before all have. The first failure is raised on every rank."""
        name, ranks = self._next_step(), range(self._member.size)
        value = act()
        self._store.set(f"{name}/{self._member.rank}", b"")
        self._store.add(name, 1)
        self._wait(
            lambda: self._store.add(name, 0) == len(ranks),
            lambda: [rank for rank in ranks if not self._store.check(f"{name}/{rank}")],
        )
        return value

    def gather(self, value: bytes) -> list[bytes]:
        """The values of all ranks, in rank order, on rank 0; elsewhere nothing. Called by all.

        Values that are the same on several ranks (replicas) are sent once.
        """
        name, rank, size = self._next_step(), self._member.rank, self._member.size
        digest = hashlib.sha256(value).hexdigest()
        if not self._store.check(f"{name}/{digest}"):
            self._own_keys.append(f"{name}/{digest}")
            self._store.set(f"{name}/{digest}", value)
        self._store.set(f"{name}/{rank}", digest.encode())
        self.together(lambda: None)
        digests = [self._store.get(f"{name}/{r}").decode() for r in range(size if rank == 0 else 0)]
        values = {digest: self._store.get(f"{name}/{digest}") for digest in set(digests)}
        return [values[digest] for digest in digests]

    def same(self, facts: Mapping[str, str]) -> None:
        """Raise on every rank unless all `facts` are the same on all; the first that differs is named."""
        first: dict[str, str] = json.loads(self.share(lambda: json.dumps(facts).encode()))

        def compare() -> None:
            for what, value in facts.items():
                if value != first.get(what):
                    raise ExportError(
                        f"the ranks disagree on {what}",
                        where={"rank": self._member.rank},
                        expected=f"{first.get(what)} (rank 0)",
                        got=value,
                        advice="start all ranks with the same options and the same version of pp_export",
                    )

        self.together(compare)

    def wait(self, done: Callable[[], bool]) -> None:
        """Poll `done` until it is true; raises as soon as a rank failed, or when no rank makes progress any
        more.
        """
        self._wait(done, lambda: list(range(self._member.size)))

    def check(self) -> None:
        """Raise PeerError if a rank has failed."""
        failure = self._abort.first_failure() if self._member.size > 1 else None
        if failure is not None:
            raise PeerError(
                f"rank {failure.rank} failed: {failure.error['what']}", where={"rank": failure.rank}
            )

    def leave(self, seconds: float) -> bool:
        """Say that this rank takes no more steps. True on rank 0 when all have said so within `seconds`: who
        has not still needs the keys.
        """
        touched = {"steps": self._num_steps, "keys": self._own_keys}
        self._store.set(f"{_LEFT}/{self._member.rank}", json.dumps(touched).encode())
        self._store.add(_LEFT, 1)
        return self._member.rank == 0 and self._member.poll(
            lambda: self._store.add(_LEFT, 0) >= self._member.size, seconds
        )

    def remove_keys(self) -> None:
        """Remove what the steps of all ranks put into the store; called on rank 0, when all have left."""
        ranks = range(self._member.size)
        left = [json.loads(self._store.get(f"{_LEFT}/{rank}")) for rank in ranks]
        steps = [_step(number) for number in range(1, max(one["steps"] for one in left) + 1)]
        for name in (_LEFT, *steps):
            for key in (name, *(f"{name}/{rank}" for rank in ranks)):
                self._store.delete(key)
        for key in (key for one in left for key in one["keys"]):
            self._store.delete(key)

    def _next_step(self) -> str:
        self._num_steps += 1
        return _step(self._num_steps)

    def _wait(self, done: Callable[[], bool], awaited: Callable[[], list[int]]) -> None:
        """Poll `done`, and meanwhile watch the ranks that are still `awaited`."""
        watchdog = Watchdog(self._liveness)
        while not done():
            self.check()
            self._liveness.post_progress()
            watchdog.look(awaited)
            time.sleep(self._member.poll_seconds)


def _step(number: int) -> str:
    return f"step/{number}"
