"""How the ranks of an export come together before it begins, or find out in bounded time who doesn't come.

Every rank posts that it is here, and waits for the verdict: rank 0's that the export begins, or that of
whoever gives up first. Verdicts have numbers, and the first one of a number is the only one: so all ranks
that are here go on, or none does. Numbers count verdicts and not calls, so a rank that missed an export,
or came too late for it, takes part in the next one.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from pp_export.core import errors
from pp_export.core.errors import ExportError, PeerError, StopRequest
from pp_export.distributed.store import Member, Store, missing, pauses

GRACE_SECONDS = 30.0
"""How long a rank that was missed waits for a next export to the same place, before it takes itself for
late.
"""
_BEAT_SECONDS = 0.5
_MAX_NAMED = 8


@dataclass(frozen=True)
class Verdict:
    """The `number`-th verdict: the export `about` something begins, or doesn't for the `error`, where the
    ranks `absent` had not come. Nobody needs keys any more that are left of the exports `unclean`.
    """

    number: int
    about: str
    error: dict[str, Any] | None = None
    absent: tuple[int, ...] = ()
    unclean: tuple[int, ...] = ()

    @classmethod
    def from_bytes(cls, image: bytes) -> Verdict:
        value = json.loads(image)
        return cls(**value | {"absent": tuple(value["absent"]), "unclean": tuple(value["unclean"])})

    @property
    def failure(self) -> ExportError | None:
        """Why no export begins."""
        return None if self.error is None else errors.from_json(self.error)


class Meeting:
    """One call of one rank, for an export `about` something; `last` is the number of the last verdict that
    this rank has heard. Waits end after `seconds` in which nobody came. `hint` tells a user what to look
    at where ranks are missing.
    """

    def __init__(self, member: Member, *, about: str, last: int, seconds: float, hint: str) -> None:
        self._member, self._store, self._rank = member, member.store, member.rank
        self._about, self._seconds, self._hint = about, seconds, hint
        self.number = last
        """The last verdict before this meeting's."""
        before = None
        while (found := self._verdict()) is not None:
            self.number, before = found.number, found
        self._was_missed = before is not None and self._rank in before.absent and before.about == about
        self._here = [f"here/{self.number}/{rank}" for rank in range(member.size)]
        self._beat = _beat(self.number + 1)

    def hold(self, meanwhile: Callable[[], None], unclean: Sequence[int] = ()) -> Verdict:
        """The verdict; called by every rank, once. `meanwhile` is called in every poll. What is raised
        here ends the meeting of all; a StopRequest becomes its verdict. Raises PeerError where this rank
        is late for an export that the others have given up.
        """
        self._store.set(self._here[self._rank], b"")
        try:
            verdict = self._wait(meanwhile, tuple(unclean))
        except StopRequest as stop:
            try:
                verdict = self._conclude(stop.as_error().at(rank=self._rank), self._absent())
            except PeerError:  # nor can the store be asked, so nobody can be told
                raise stop from None
        except PeerError:
            raise
        except BaseException:
            self._conclude(PeerError(f"rank {self._rank} was interrupted", where={"rank": self._rank}), [])
            raise
        finally:
            with suppress(PeerError):
                self._store.delete(self._here[self._rank])
        return verdict

    def _wait(self, meanwhile: Callable[[], None], unclean: tuple[int, ...]) -> Verdict:
        began = moved = time.monotonic()
        looked, seen = -math.inf, object()
        is_first, beat = self._rank == 0, 0
        for pause in pauses(self._member.poll_seconds):
            now = time.monotonic()
            if (verdict := self._verdict()) is not None:
                return verdict
            if is_first and not (absent := self._absent()):
                return self._conclude(None, [], unclean)
            if now - looked >= min(_BEAT_SECONDS, self._seconds / 4):
                looked, beat = now, beat + 1
                if is_first:
                    self._store.set(self._beat, b"%d" % beat)
                news: object = absent if is_first else self._last_beat()
                if news != seen:
                    moved, seen = now, news
            meanwhile()
            if self._was_missed and now - began > min(GRACE_SECONDS, self._seconds):
                raise self._too_late()
            if now - moved > self._seconds:
                absent = self._absent() or [0]
                return self._conclude(self._never_came(absent), absent)
            time.sleep(pause)
        raise AssertionError("pauses have no end")

    def _conclude(
        self, error: ExportError | None, absent: Sequence[int], unclean: tuple[int, ...] = ()
    ) -> Verdict:
        """This rank's verdict, or the one that was there before."""
        told = None if error is None else error.to_json()
        own = Verdict(self.number + 1, self._about, told, tuple(absent), unclean)
        first = self._store.set_first(_verdict(own.number), json.dumps(asdict(own)))
        return Verdict.from_bytes(first)

    def _verdict(self) -> Verdict | None:
        """The verdict after the last one."""
        key = _verdict(self.number + 1)
        return Verdict.from_bytes(self._store.get(key)) if self._store.check(key) else None

    def _absent(self) -> list[int]:
        return [int(key.rpartition("/")[2]) for key in missing(self._store, self._here)]

    def _last_beat(self) -> bytes:
        return self._store.get(self._beat) if self._store.check(self._beat) else b""

    def _never_came(self, absent: Sequence[int]) -> PeerError:
        named = ", ".join(map(str, absent[:_MAX_NAMED]))
        if len(absent) > _MAX_NAMED:
            named += f" and {len(absent) - _MAX_NAMED} more"
        has = "rank {} has" if len(absent) == 1 else "ranks {} have"
        return PeerError(
            f"no progress for {self._seconds:.0f} s: {has.format(named)} not come",
            where={"rank": named},
            expected=f"{self._member.size} ranks",
            got=f"{self._member.size - len(absent)} ranks, which have waited for the others",
            advice=self._hint,
        )

    def _too_late(self) -> PeerError:
        return PeerError(
            "the other ranks have given up this export: this rank came too late",
            where={"rank": self._rank},
            advice="call it on all ranks at about the same time, or allow more time (--stall-seconds)",
        )


def forget(store: Store, numbers: Sequence[int]) -> None:
    """Remove verdicts; called by rank 0 when all ranks have heard them: to get a key that goes meanwhile
    takes until the store's own timeout.
    """
    for number in numbers:
        store.delete(_verdict(number))
        store.delete(_beat(number))


def _verdict(number: int) -> str:
    return f"verdict/{number}"


def _beat(number: int) -> str:
    return f"beat/{number}"
