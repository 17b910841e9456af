"""SIGTERM and SIGINT as requests to stop, raised once; meant for the command line only."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from pp_export.core.errors import StopRequest

_NUMBERS = (signal.SIGTERM, signal.SIGINT)
_heard: list[int] = []
_unheeded: list[StopRequest] = []


def install() -> None:
    """From now on a signal raises StopRequest in the main thread; called by the command line, never by the
    library.
    """
    _heard.clear()
    _unheeded.clear()
    for number in _NUMBERS:
        signal.signal(number, _interrupt)


def settle() -> None:
    """The end has begun: from now on signals raise nothing. Without effect where `install` was not called,
    and in other threads than the main one, in which no signal raises anything.
    """
    if threading.current_thread() is threading.main_thread():
        _unheeded.clear()
        _quiet()


def postpone() -> None:
    """From now on signals are only remembered: what is done next must not be half done. `resume` ends it."""
    if threading.current_thread() is threading.main_thread():
        _quiet()


def check() -> None:
    """Raise the StopRequest of a signal again, if there was one and nothing ended for it: where Python is
    in a finalizer, it drops what is raised. Called wherever the main thread waits.
    """
    if _unheeded and threading.current_thread() is threading.main_thread():
        raise _unheeded[0]


def has_come() -> bool:
    """Whether a signal has come since `install`, also while that raised nothing."""
    return bool(_heard)


def resume() -> None:
    """After `settle` or `postpone`: signals raise again, unless one has come."""
    for number in _NUMBERS:
        if signal.getsignal(number) is _remember and not _heard:
            signal.signal(number, _interrupt)


@contextmanager
def held() -> Iterator[None]:
    """What is done inside no signal disturbs; one that comes raises StopRequest at its end."""
    is_raising = signal.getsignal(_NUMBERS[0]) is _interrupt
    _quiet()
    yield
    if is_raising and _heard:
        raise _request(_heard[0])
    if is_raising:
        resume()


def _quiet() -> None:
    for number in _NUMBERS:
        if signal.getsignal(number) is _interrupt:
            signal.signal(number, _remember)


def _remember(number: int, _frame: object) -> None:
    _heard.append(number)


def _interrupt(number: int, _frame: object) -> NoReturn:
    _heard.append(number)
    _quiet()
    _unheeded.append(_request(number))
    raise _unheeded[0]


def _request(number: int) -> StopRequest:
    return StopRequest(signal.Signals(number).name)
