"""Claims of `process/signals.py`, in a process of its own: a signal stops the work once, and is not lost."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import os, signal
from pp_export.core.errors import StoppedError
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
except StoppedError as error:
    done.append(str(error))
assert done == ["to its end", "stopped by SIGTERM"], done
assert signals.has_come()
signals.settle()
signals.resume()
send()
with signals.held():
    send()
print("nothing disturbs the rest")
"""


def test_a_signal_is_heard_once() -> None:
    """While it raises nothing it is remembered; it raises at the end of what must not be disturbed; none
    that comes later changes anything.
    """
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "nothing disturbs the rest\n", "")
