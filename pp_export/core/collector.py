"""Python's garbage collector, kept from looking again and again at the millions of values of a plan.

None of them is garbage: more than half of the time of describing and planning went into finding that out.
The collector is one for all threads of a process, so their pauses are counted: the first turns it off and the
last turns it on again, and none takes another's pause for what the job wants.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LOCK = threading.Lock()
_PAUSES: dict[object, bool] = {}
"""The pauses that go on: whether there shall be collections when the last of them ends."""


@contextmanager
def paused_collector() -> Iterator[Callable[[], None]]:
    """No collection until what this gives is called, or the context left; what was made by then is not looked
    at before the context is left. A job that has frozen values of its own keeps them as they are.
    """
    may_freeze = gc.get_freeze_count() == 0
    frozen, pause = False, object()

    def resume() -> None:
        nonlocal frozen
        if may_freeze and _PAUSES.get(pause):
            gc.freeze()
            frozen = True
        _end(pause)

    try:
        _begin(pause)  # a signal may end it halfway
        yield resume
    finally:
        _end(pause)
        if frozen:
            gc.unfreeze()


def _begin(pause: object) -> None:
    with _LOCK:
        # Others turn collections off and on too, torch around its state dicts: on again in the middle of a
        # pause means that they were on before.
        _PAUSES[pause] = gc.isenabled() or any(_PAUSES.values())
        gc.disable()


def _end(pause: object) -> None:
    """Ends it unless it has ended, or never begun."""
    with _LOCK:
        is_wanted = _PAUSES.pop(pause, False)
        if is_wanted and _PAUSES:
            _PAUSES.update(dict.fromkeys(_PAUSES, True))
        elif is_wanted:
            gc.enable()
