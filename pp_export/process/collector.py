"""Python's garbage collector, kept from looking again and again at the millions of values of a plan.

None of them is garbage: more than half of the time of describing and planning went into finding that out.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def paused_collector() -> Iterator[Callable[[], None]]:
    """No collection until what this gives is called, or the context left; what was made by then is not looked
    at before the context is left. A job that has frozen values of its own keeps them as they are.
    """
    was_enabled, may_freeze = gc.isenabled(), gc.get_freeze_count() == 0
    gc.disable()

    def resume() -> None:
        if was_enabled:
            if may_freeze:
                gc.freeze()
            gc.enable()

    try:
        yield resume
    finally:
        if was_enabled:
            gc.enable()
            if may_freeze:
                gc.unfreeze()
