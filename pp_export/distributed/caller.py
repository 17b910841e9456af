"""Calls into torch that may never return, made by a thread of their own: whoever waits for them is never
deaf.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYetError
from typing import Any, TypeVar

from pp_export.core.errors import PeerError

T = TypeVar("T")

_LOOK_SECONDS = 1.0


class Caller:
    """A thread that makes calls which may never return; it starts with the first. `whose` they are stands
    in the PeerError of one that hasn't returned after `seconds`; `meanwhile` is called every second until
    then, and may raise.
    """

    def __init__(self, whose: str, seconds: float, meanwhile: Callable[[], None] | None = None) -> None:
        self._whose, self._seconds, self._meanwhile = whose, seconds, meanwhile
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._abandoned: Future[Any] | None = None
        self._lock, self._thread = threading.Lock(), None  # type: threading.Lock, threading.Thread | None

    def call(self, call: Callable[[], T]) -> T:
        """What `call` returns or raises. PeerError where it does neither in time."""
        with self._lock:
            if self._thread is None:
                # not a method of this object: the thread would keep it alive
                self._thread = threading.Thread(target=_serve, args=(self._calls,), daemon=True, name="store")
                self._thread.start()
        answer: Future[T] = Future()
        # Who waits no more for a call that doesn't return, after a signal say, is not held up by it again.
        seconds = min(self._seconds, _LOOK_SECONDS) if self._is_held_up() else self._seconds
        self._calls.put((call, answer))
        try:
            return self._wait(answer, seconds)
        except BaseException:
            if not answer.done():
                self._abandoned = answer
            raise

    def _wait(self, answer: Future[T], seconds: float) -> T:
        deadline = time.monotonic() + seconds
        while True:
            try:
                return answer.result(min(_LOOK_SECONDS, seconds))
            except NotYetError:
                if answer.done():
                    continue
            if self._meanwhile is not None:
                self._meanwhile()
            if time.monotonic() > deadline:
                raise PeerError(
                    f"{self._whose} has not answered for {seconds:.0f} s",
                    advice="is that process stopped, or its node gone? (see --stall-seconds)",
                )

    def _is_held_up(self) -> bool:
        """Whether a call that nobody waits for any more keeps the thread."""
        return self._abandoned is not None and not self._abandoned.done()

    def end(self) -> None:
        """End the thread; wait for that, but not for one that a call holds up for ever."""
        self._calls.put(None)
        if self._thread is not None:
            self._thread.join(_LOOK_SECONDS)


def _serve(calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None]) -> None:
    while (one := calls.get()) is not None:
        call, answer = one
        try:
            answer.set_result(call())
        except BaseException as error:  # noqa: BLE001  raised again by whoever waits for it
            answer.set_exception(error)
        del one, call, answer
