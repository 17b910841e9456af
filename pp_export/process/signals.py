"""SIGTERM and SIGINT of the command line: the first stops the work, no later one disturbs the cleaning up."""

from __future__ import annotations

import signal
import threading
from typing import NoReturn

from pp_export.core.errors import StoppedError

_NUMBERS = (signal.SIGTERM, signal.SIGINT)
_remembered: list[int] = []


def install() -> None:
    """From now on a signal raises StoppedError in the main thread; called by the command line, never by the
    library.
    """
    for number in _NUMBERS:
        signal.signal(number, _interrupt)
    if _remembered:
        _interrupt(_remembered.pop(), None)


def settle() -> None:
    """From now on signals change nothing; without effect where `install` was not called, and in other threads
    than the main one, in which no signal raises anything.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in _NUMBERS:
        if signal.getsignal(number) in (_interrupt, _remember):
            signal.signal(number, signal.SIG_IGN)


def postpone() -> None:
    """From now on a signal is only remembered, and `install` raises it; without effect where `settle` is."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in _NUMBERS:
        if signal.getsignal(number) is _interrupt:
            signal.signal(number, _remember)


def _remember(number: int, _frame: object) -> None:
    _remembered.append(number)


def _interrupt(number: int, _frame: object) -> NoReturn:
    settle()
    raise StoppedError(f"stopped by {signal.Signals(number).name}")
