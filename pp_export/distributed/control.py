"""What ranks tell each other, apart from tensors: small values, through a tree of stores."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

from pp_export.core.errors import ExportError
from pp_export.distributed.abort import Abort
from pp_export.distributed.circle import Circle
from pp_export.distributed.liveness import Liveness, Watchdog
from pp_export.distributed.store import Member, Store, pauses
from pp_export.distributed.tree import Seat, Tree

T = TypeVar("T")


class Waiting:
    """How a rank waits for others: it polls, posts its progress, and raises PeerError as soon as one of
    them failed, or when nobody makes progress any more.
    """

    def __init__(self, liveness: Liveness, abort: Abort, poll_seconds: float) -> None:
        self._liveness, self._abort, self._poll_seconds = liveness, abort, poll_seconds
        self.step = 0
        self.meanwhile: Callable[[], None] = lambda: None

    def __call__(self, done: Callable[[], bool], awaited: Callable[[], list[int]]) -> None:
        """Return when `done` is true; meanwhile watch the ranks that are still `awaited`."""
        self._liveness.step = self.step
        watchdog = Watchdog(self._liveness)
        for pause in pauses(self._poll_seconds):
            if done():
                return
            self.check()
            self._liveness.post_progress()
            watchdog.look(awaited)
            time.sleep(pause)

    def check(self) -> None:
        """Raise PeerError if a rank has failed."""
        self.meanwhile()
        failure = self._abort.first_failure()
        if failure is not None:
            raise failure.heard()


class Control:
    """The steps that all ranks take together, in the same order; main thread only. A step costs each store
    as many requests as it has members, a few times. Every wait is a `Waiting`.
    """

    def __init__(self, seat: Seat, main: Store, block: Store, liveness: Liveness, abort: Abort) -> None:
        self._seat = seat
        members = seat.members
        own = Member(seat.rank - members[0], len(members), block)
        self._wait = Waiting(liveness, abort, poll_seconds=max(0.02, own.size / 2560))
        firsts = None
        if seat.is_first and seat.num_blocks > 1:
            member = Member(seat.block, seat.num_blocks, main)
            firsts = Circle("firsts", member, seat.ranks_of, self._wait)
        self._tree = Tree(seat, Circle("block", own, lambda n: [members[n]], self._wait), firsts)

    def share(self, produce: Callable[[], bytes]) -> bytes:
        """The bytes that `produce` gives on rank 0, on every rank; called by all. A failure of rank 0
        reaches all.
        """
        step = self._next_step()
        return self._tree.share(step, produce() if self._seat.rank == 0 else None)

    def scatter(self, make: Callable[[], Sequence[bytes]]) -> bytes:
        """This rank's own of the values that `make` gives on rank 0, one for each rank; called by all. A
        failure of rank 0 reaches all.
        """
        step = self._next_step()
        return self._tree.scatter(step, make() if self._seat.rank == 0 else None)

    def on_first(self, act: Callable[[], T]) -> T | None:
        """Rank 0 acts, and nobody goes on before it has; called by all. Its value on rank 0, None
        elsewhere. A failure of rank 0 reaches all.
        """
        values: list[T] = []

        def produce() -> bytes:
            values.append(act())
            return b""

        self.share(produce)
        return values[0] if values else None

    def together(self, act: Callable[[], T]) -> T:
        """Every rank acts; nobody goes on before all have. The first failure is raised on every rank."""
        step = self._next_step()
        value = act()
        self._tree.gather(step, b"")
        self._tree.share(step, b"" if self._seat.rank == 0 else None)
        return value

    def gather(self, value: bytes) -> list[bytes]:
        """The values of all ranks, in rank order, on rank 0, which waits for them; elsewhere nothing.
        Called by all.

        Values that are the same on several ranks (replicas) are sent once.
        """
        return self._tree.gather(self._next_step(), value)

    def same(self, facts: Mapping[str, str]) -> None:
        """Raise on every rank unless all `facts` are the same on all; the first that differs is named."""
        first: dict[str, str] = json.loads(self.share(lambda: json.dumps(facts).encode()))

        def compare() -> None:
            for what, value in facts.items():
                if value != first.get(what):
                    raise ExportError(
                        f"the ranks disagree on {what}",
                        where={"rank": self._seat.rank},
                        expected=f"{first.get(what)} (rank 0)",
                        got=value,
                        advice="start all ranks with the same options and the same version of pp_export",
                    )

        self.together(compare)

    def wait(self, done: Callable[[], bool]) -> None:
        """Poll `done` until it is true; raises as soon as a rank failed, or when no rank makes progress
        any more.
        """
        self._wait(done, lambda: list(range(self._seat.size)))

    def also_check(self, check: Callable[[], None]) -> None:
        """Call `check`, which may raise, as well wherever this rank waits."""
        self._wait.meanwhile = check

    def check(self) -> None:
        """Raise PeerError if a rank has failed."""
        self._wait.check()

    def leave(self, keys: list[str], seconds: float, absent: Collection[int] = ()) -> list[str] | None:
        """Say that this rank takes no more steps, and which keys of the world's store are its own. On rank
        0 those of all ranks, on the first rank of a block those of the block; None where a rank has not
        said so within `seconds`: it still needs them. Nobody waits for ranks that never came.
        """
        return self._tree.leave(keys, seconds, absent)

    def _next_step(self) -> str:
        self._wait.step += 1
        return f"{self._wait.step}"
