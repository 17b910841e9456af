"""Claims of `pp_export.process.signals`: no code takes a signal for a failure of its own; none is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress

import pytest

from pp_export.core.errors import StoppedError, StopRequest, as_export_error
from pp_export.process import signals
from pp_export.torch_file import unpickler


@pytest.fixture(autouse=True)
def installed() -> Iterator[None]:
    """The handlers of the command line, for one test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signals.install()
    yield
    signals.settle()
    for number, handler in before.items():
        signal.signal(number, handler)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_is_no_exception() -> None:
    """Code that expects anything from damaged input, as the reader of pickles does, doesn't catch it."""
    with pytest.raises(StopRequest) as caught, suppress(Exception):
        stop()
    error = as_export_error(caught.value)
    assert (type(error), error.what) == (StoppedError, "stopped by SIGTERM")


def test_a_signal_amid_a_pickle_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM while `.metadata` is read stops the export, and the checkpoint is not called broken."""
    monkeypatch.setattr(unpickler._AllowListUnpickler, "load", lambda _: stop())
    with pytest.raises(StopRequest):
        unpickler.load(b"\x80\x02N.", ".metadata")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_in_a_finalizer_is_not_lost() -> None:
    """Python drops what is raised in a finalizer: it is raised again where the main thread waits next."""

    class Final:
        def __del__(self) -> None:
            stop()

    Final()
    with pytest.raises(StopRequest):
        signals.check()
    signals.settle()
    signals.check()


def test_only_the_first_signal_disturbs() -> None:
    """Signals that follow, while all is being ended, change nothing."""
    with pytest.raises(StopRequest):
        stop()
    stop()
    os.kill(os.getpid(), signal.SIGINT)


PROGRAM = """
import os, signal
from pp_export.core.errors import StopRequest
from pp_export.process import signals

def send():
    os.kill(os.getpid(), signal.SIGTERM)

signals.install()
signals.settle()
signals.resume()
assert not signals.has_come()
done = []
try:
    with signals.held():
        send()
        done.append("to its end")
except StopRequest as error:
    done.append(str(error))
assert done == ["to its end", "SIGTERM"], done
assert signals.has_come()
signals.settle()
signals.resume()
send()
with signals.held():
    send()
print("nothing disturbs the rest")
"""


def test_a_signal_that_is_held_back_is_heard_once() -> None:
    """While it raises nothing it is remembered; it raises at the end of what must not be disturbed; none
    that comes later changes anything.
    """
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "nothing disturbs the rest\n", "")
