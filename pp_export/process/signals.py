"""SIGTERM and SIGINT of the command line: the first stops the work, no later one disturbs the cleaning up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from pp_export.core.errors import StoppedError

_NUMBERS = (signal.SIGTERM, signal.SIGINT)


_heard: list[int] = []


def install() -> None:
    """From now on a signal raises StoppedError in the main thread; called by the command line, never by the
    library.
    """
    for number in _NUMBERS:
        signal.signal(number, _interrupt)


def settle() -> None:
    """From now on signals raise nothing; without effect where `install` was not called, and in other threads
    than the main one, in which no signal raises anything.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in _NUMBERS:
        if signal.getsignal(number) is _interrupt:
            signal.signal(number, _remember)


def has_come() -> bool:
    """Whether a signal has come since `install`, also while that raised nothing."""
    return bool(_heard)


def resume() -> None:
    """After `settle`: signals raise again, unless one has come."""
    for number in _NUMBERS:
        if signal.getsignal(number) is _remember and not _heard:
            signal.signal(number, _interrupt)


@contextmanager
def held() -> Iterator[None]:
    """What is done inside no signal disturbs; one that comes raises StoppedError at its end."""
    is_raising = signal.getsignal(_NUMBERS[0]) is _interrupt
    settle()
    yield
    if is_raising and _heard:
        raise StoppedError(f"stopped by {signal.Signals(_heard[0]).name}")
    if is_raising:
        resume()


def _remember(number: int, _frame: object) -> None:
    _heard.append(number)


def _interrupt(number: int, _frame: object) -> NoReturn:
    _heard.append(number)
    settle()
    raise StoppedError(f"stopped by {signal.Signals(number).name}")
