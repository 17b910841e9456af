"""How all ranks end with one error when one of them fails."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pp_export.core import errors
from pp_export.core.errors import ExportError, PeerError, StoppedError
from pp_export.distributed.liveness import Liveness
from pp_export.distributed.store import Member

_FIRST, _REPORTER, _VERDICT, _RELEASED = "failure", "reporter", "verdict", "released"


@dataclass(frozen=True)
class Failure:
    """What one rank said before it stopped."""

    rank: int
    error: dict[str, Any]

    @property
    def is_origin(self) -> bool:
        """Whether the rank failed by itself, not because another one had."""
        return self.error["kind"] not in (PeerError.__name__, StoppedError.__name__)


class Abort:
    """What a rank says and hears after a failure; main thread only.

    Every rank calls, in this order: `fail`, `elect_reporter`, on the reporter `failures`, then `agree`, and
    before its process ends `leave_after_failure`.
    """

    def __init__(self, member: Member, liveness: Liveness) -> None:
        self._member, self._store, self._liveness = member, member.store, liveness
        self.is_reporter = member.rank == 0
        """Whether this rank cleans up and reports after a failure; see `elect_reporter`."""

    def fail(self, error: ExportError) -> None:
        """Say that this rank failed; every other rank raises PeerError at its next poll."""
        said = json.dumps({"rank": self._member.rank, "error": error.to_json()})
        with suppress(PeerError):  # the store may be what failed
            self._store.set(_failed(self._member.rank), said.encode())
            self._store.set_first(_FIRST, str(self._member.rank))

    def first_failure(self) -> Failure | None:
        """The failure that was said first, if there is one."""
        if not self._store.check(_FIRST):
            return None
        return self._failure_of(int(self._store.get(_FIRST)))

    def elect_reporter(self, grace_seconds: float) -> bool:
        """Whether this rank cleans up and reports after the failure: rank 0, or, where that gives no sign of
        life during the grace, the first rank that asks.
        """
        own = str(self._member.rank)
        with suppress(PeerError):
            if self._member.rank == 0 or not self._is_rank_0_alive(grace_seconds):
                self.is_reporter = self._store.set_first(_REPORTER, own) == own.encode()
        return self.is_reporter

    def failures(self, grace_seconds: float) -> tuple[list[Failure], list[int]]:
        """What the ranks said, and the ranks that said nothing within the grace; called on the reporter.

        Without a store nobody can be heard, and all stop for that reason: no failure, and nobody silent.
        """
        ranks = range(self._member.size)
        silent = list(ranks)

        def all_spoke() -> bool:
            silent[:] = [rank for rank in silent if not self._store.check(_failed(rank))]
            return not silent

        try:
            self._member.poll(all_spoke, grace_seconds)
            return [self._failure_of(rank) for rank in ranks if rank not in silent], silent
        except PeerError:
            return [], []

    def agree(self, cause: ExportError | None, seconds: float = 20.0) -> ExportError | None:
        """The error that all ranks raise: the reporter's `cause`; None where it can't be heard."""
        with suppress(PeerError):
            if self.is_reporter and cause is not None:
                self._store.set(_VERDICT, json.dumps(cause.to_json()).encode())
            elif self._member.poll(lambda: self._store.check(_VERDICT), seconds):
                return errors.from_json(json.loads(self._store.get(_VERDICT)))
        return cause

    def leave_after_failure(self, seconds: float = 20.0) -> None:
        """Return when the reporter has reported, since a launcher ends all ranks as soon as one exits."""
        with suppress(PeerError):
            if self.is_reporter:
                self._store.set(_RELEASED, b"")
            self._member.poll(lambda: self._store.check(_RELEASED), seconds)
        self._liveness.stop()

    def remove_keys(self) -> None:
        """Remove what all ranks said; called on rank 0, when all have left."""
        ranks = range(self._member.size)
        for key in (_FIRST, _REPORTER, _VERDICT, _RELEASED, *(_failed(rank) for rank in ranks)):
            self._store.delete(key)

    def _is_rank_0_alive(self, grace_seconds: float) -> bool:
        beat, signs = self._liveness.last_beat(), (_REPORTER, _failed(0))
        return self._member.poll(
            lambda: any(map(self._store.check, signs)) or self._liveness.last_beat() != beat, grace_seconds
        )

    def _failure_of(self, rank: int) -> Failure:
        return Failure(**json.loads(self._store.get(_failed(rank))))


def _failed(rank: int) -> str:
    return f"failed/{rank}"
