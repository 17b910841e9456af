"""How all ranks end with one error when one of them fails."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from pp_export.core import errors
from pp_export.core.errors import ExportError, PeerError, StoppedError
from pp_export.distributed.heartbeat import last_beat
from pp_export.distributed.store import Member, Store, missing

_POLL_SECONDS, _SELDOM_SECONDS = 0.02, 2.0
_FIRST, _REPORTER, _VERDICT, _RELEASED = "failure", "reporter", "verdict", "released"


@dataclass(frozen=True)
class Failure:
    """What one rank said before it stopped."""

    rank: int
    error: dict[str, Any]
    is_hearsay: bool = False
    """Whether the rank only heard that another one failed."""

    def heard(self) -> PeerError:
        """What another rank raises that hears of it. It names the rank where that one saw the cause."""
        where = self.error["where"].get("rank", self.rank)
        return Hearsay(f"rank {self.rank} failed: {self.error['what']}", where={"rank": where})

    @property
    def is_origin(self) -> bool:
        """Whether the rank failed by itself, not because another one had."""
        return self.error["kind"] not in (PeerError.__name__, StoppedError.__name__)

    @property
    def is_stop(self) -> bool:
        """Whether the rank was told to stop."""
        return bool(self.error["kind"] == StoppedError.__name__)

    def names(self, rank: int) -> bool:
        """Whether it is what the rank saw of another one's end."""
        return str(rank) in str(self.error["where"].get("rank", "")).split(", ")


class Hearsay(PeerError):  # noqa: N818  a PeerError, for all but its cause
    """That another rank has said of its failure."""

    def to_json(self) -> dict[str, object]:
        return {**super().to_json(), "kind": PeerError.__name__}


class Abort:
    """What a rank says and hears after a failure; main thread only.

    Every rank calls, in this order: `fail`, `elect_reporter`, then the reporter `failures` and `conclude`,
    the others `conclusion`, and before its process ends `leave_after_failure`. All of it goes over the
    world's store, `member`'s, whatever happened to the ranks of a block. That there is a failure is also
    said in the block's store, where its ranks hear it at once; they ask the world's now and then.
    """

    def __init__(self, member: Member) -> None:
        self._member, self._store = member, member.store
        self._ears = [_Ear(member.store, _POLL_SECONDS)]
        self._heard: Failure | None = None
        self.is_reporter = member.rank == 0
        """Whether this rank cleans up and reports after a failure; see `elect_reporter`."""
        self.absent: Collection[int] = ()
        """Ranks that never came, for which nobody waits."""
        self.is_witness = True
        """Whether this rank knows most of the cause: it failed itself, or reports what it found."""
        self._spoke: list[int] = []

    def listen_in(self, block: Store, *, is_first: bool) -> None:
        """Say and hear failures in the store of the block as well; there its first rank brings those of
        other blocks, and the others listen only seldom in the world's.
        """
        seldom = max(_SELDOM_SECONDS, self._member.size / 4096)
        self._ears = [
            _Ear(block, _POLL_SECONDS),
            _Ear(self._store, _POLL_SECONDS if is_first else seldom),
        ]

    def fail(self, error: ExportError) -> None:
        """Say that this rank failed; every other rank raises PeerError at one of its next polls."""
        own = Failure(self._member.rank, error.to_json(), isinstance(error, Hearsay))
        for store, failure in [(self._store, own), *((ear.store, self._heard or own) for ear in self._ears)]:
            with suppress(PeerError):  # the store may be what failed
                store.set(_failed(failure.rank), json.dumps(asdict(failure)).encode())
                store.set_first(_FIRST, str(failure.rank))

    def first_failure(self) -> Failure | None:
        """The failure that was said first, if there is one; asked in every poll."""
        for ear in self._ears if self._member.size > 1 else ():
            heard = ear.hear()
            if heard is not None:
                self._heard = heard
                return heard
        return None

    def elect_reporter(self, grace_seconds: float) -> bool:
        """Whether this rank cleans up and reports after the failure: rank 0, or, where that gives no sign
        of life during the grace, the first rank that asks. Without a store each does, since nobody can be
        heard; rank 0 first.
        """
        own = str(self._member.rank)
        try:
            if self._member.rank == 0 or not self._is_rank_0_alive(grace_seconds):
                self.is_reporter = self._store.set_first(_REPORTER, own) == own.encode()
        except PeerError:
            if self._member.rank != 0:
                time.sleep(grace_seconds / 2)
            self.is_reporter = True
        return self.is_reporter

    def failures(self, grace_seconds: float) -> tuple[list[Failure], list[int]]:
        """What the ranks said, and the ranks that said nothing within the grace; called on the reporter.

        Without a store nobody can be heard, and all stop for that reason: no failure, and nobody silent.
        """
        keys = {_failed(rank): rank for rank in range(self._member.size) if rank not in self.absent}
        silent = list(keys)

        def all_spoke() -> bool:
            silent[:] = missing(self._store, silent)
            return not silent

        try:
            self._member.poll(all_spoke, grace_seconds)
            spoke = sorted(keys.keys() - set(silent), key=keys.__getitem__)
            said = [_from_bytes(image) for image in self._store.get_many(spoke)]
            self._spoke = [failure.rank for failure in said]
            return said, [keys[key] for key in silent]
        except PeerError:
            return [], []

    def conclude(self, cause: ExportError, witness: int) -> None:
        """Tell all ranks the cause, and the rank that knows most of it; called by the reporter."""
        self.is_witness = witness == self._member.rank
        with suppress(PeerError):
            self._store.set(_VERDICT, json.dumps([cause.to_json(), witness]).encode())

    def conclusion(self, seconds: float = 20.0) -> ExportError | None:
        """The error that all ranks raise, from the reporter; None where it can't be heard."""
        with suppress(PeerError):
            if self._member.poll(lambda: self._store.check(_VERDICT), seconds):
                cause, witness = json.loads(self._store.get(_VERDICT))
                self.is_witness = witness == self._member.rank
                return errors.from_json(cause)
        return None

    def leave_after_failure(self, seconds: float = 20.0) -> None:
        """Return when the reporter has reported, since a launcher ends all ranks as soon as one exits; on
        the reporter, when all who spoke have heard it, since its process may be what serves the store.
        """
        with suppress(PeerError):
            if self.is_reporter:
                self._store.set(_RELEASED, b"")
                leaving = [_left(rank) for rank in self._spoke if rank != self._member.rank]
                self._member.poll(lambda: not missing(self._store, leaving), seconds / 4)
            else:
                self._member.poll(lambda: self._store.check(_RELEASED), seconds)
                self._store.set(_left(self._member.rank), b"")

    def _is_rank_0_alive(self, grace_seconds: float) -> bool:
        if 0 in self.absent:
            return False
        beat, signs = last_beat(self._store), (_REPORTER, _failed(0))
        return self._member.poll(
            lambda: any(map(self._store.check, signs)) or last_beat(self._store) != beat, grace_seconds
        )


class _Ear:
    """Where a rank listens for failures, at most every `pause` seconds."""

    def __init__(self, store: Store, pause: float) -> None:
        self.store, self._pause, self._listened = store, pause, -math.inf

    def hear(self) -> Failure | None:
        now = time.monotonic()
        if now - self._listened < self._pause:
            return None
        self._listened = now
        if not self.store.check(_FIRST):
            return None
        return _from_bytes(self.store.get(_failed(int(self.store.get(_FIRST)))))


def check(store: Store) -> None:
    """Raise PeerError if a store knows of a failure; any thread may call."""
    failure = _Ear(store, 0.0).hear()
    if failure is not None:
        raise failure.heard()


def _failed(rank: int) -> str:
    return f"failed/{rank}"


def _left(rank: int) -> str:
    return f"left/{rank}"


def _from_bytes(image: bytes) -> Failure:
    return Failure(**json.loads(image))
