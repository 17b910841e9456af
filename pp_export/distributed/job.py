"""What a rank remembers between the exports of one job."""

from __future__ import annotations

from collections.abc import Callable

from pp_export.distributed.meeting import Meeting, Verdict, forget
from pp_export.distributed.store import Member, Store

Keys = Callable[[str], Store]
"""The keys of the job's store that begin with a prefix."""

_MEETING = "meeting"


class Job:
    """Rank `rank` of a job of `size` ranks, whose exports follow one another. No key stays in the store
    when all ranks have left one; what stays otherwise is removed at the next, when all are there.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self._last = 0
        self._unclean: list[int] = []
        self._unforgotten: list[int] = []
        self._own_keys: dict[int, list[str]] = {}

    def meet(
        self, keys: Keys, *, about: str, seconds: float, hint: str, meanwhile: Callable[[], None]
    ) -> Verdict:
        """The verdict of the next meeting, as in `Meeting`."""
        store = keys(_MEETING)
        try:
            member = Member(self.rank, self.size, store)
            meeting = Meeting(member, about=about, last=self._last, seconds=seconds, hint=hint)
            passed = range(self._last + 1, meeting.number + 1)  # given up without this rank
            self._unclean += passed
            self._unforgotten += passed
            self._last = meeting.number
            verdict = meeting.hold(meanwhile, self._unclean)
        finally:
            store.close()
        self._last = verdict.number
        self._unforgotten.append(verdict.number)
        if verdict.error is None:
            self._remove(keys, verdict.unclean)
            self._unclean.clear()
        return verdict

    def closed(self, verdict: Verdict, keys: Keys, own_keys: list[str], all_have_left: bool) -> None:
        """The export of a verdict is over on this rank, and so it is on all, if they `all_have_left`."""
        if not all_have_left:
            self._own_keys[verdict.number] = own_keys
            self._unclean.append(verdict.number)
        elif verdict.error is None:  # a rank that never came must still be able to hear it
            store = keys(_MEETING)
            forget(store, self._unforgotten)
            store.close()
            self._unforgotten.clear()

    def _remove(self, keys: Keys, unclean: tuple[int, ...]) -> None:
        for number in unclean:
            if left := self._own_keys.get(number):
                store = keys(run_prefix(number))
                for key in left:
                    store.delete(key)
                store.close()
        self._own_keys.clear()


def run_prefix(number: int) -> str:
    """What the keys of the export of the `number`-th verdict begin with."""
    return f"run/{number}"
