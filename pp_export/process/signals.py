"""SIGTERM and SIGINT of the command line: the first stops the work, no later one disturbs the cleaning up."""

from __future__ import annotations

import signal
import threading
from typing import NoReturn

from pp_export.core.errors import StopRequest

_NUMBERS = (signal.SIGTERM, signal.SIGINT)
_unheard: list[StopRequest] = []


def install() -> None:
    """From now on a signal raises StopRequest in the main thread; called by the command line, never by the
    library.
    """
    _unheard.clear()
    for number in _NUMBERS:
        signal.signal(number, _interrupt)


def settle() -> None:
    """The end has begun: from now on signals change nothing. Without effect where `install` was not
    called, and in other threads than the main one, in which no signal raises anything.
    """
    if threading.current_thread() is threading.main_thread():
        _unheard.clear()
        _ignore()


def check() -> None:
    """Raise the StopRequest of a signal again, if there was one and nothing ended for it: where Python is
    in a finalizer, it drops what is raised. Called wherever the main thread waits.
    """
    if _unheard and threading.current_thread() is threading.main_thread():
        raise _unheard[0]


def _ignore() -> None:
    for number in _NUMBERS:
        if signal.getsignal(number) is _interrupt:
            signal.signal(number, signal.SIG_IGN)


def _interrupt(number: int, _frame: object) -> NoReturn:
    _ignore()
    _unheard.append(StopRequest(signal.Signals(number).name))
    raise _unheard[0]
