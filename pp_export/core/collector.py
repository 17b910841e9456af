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
_PAUSES: list[bool] = []
"""One for each pause that goes on: whether there were collections before the first of them."""


@contextmanager
def paused_collector() -> Iterator[Callable[[], None]]:
    """No collection until what this gives is called, or the context left; what was made by then is not looked
    at before the context is left. A job that has frozen values of its own keeps them as they are.
    """
    may_freeze = gc.get_freeze_count() == 0
    frozen, paused = False, True
    _begin()

    def resume() -> None:
        nonlocal frozen, paused
        if may_freeze and paused and _PAUSES[0]:
            gc.freeze()
            frozen = True
        if paused:
            paused = False
            _end()

    try:
        yield resume
    finally:
        if paused:
            _end()
        if frozen:
            gc.unfreeze()


def _begin() -> None:
    with _LOCK:
        _PAUSES.append(_PAUSES[0] if _PAUSES else gc.isenabled())
        gc.disable()


def _end() -> None:
    with _LOCK:
        if _PAUSES.pop() and not _PAUSES:
            gc.enable()
