"""Claims of `pp_export.distributed.heartbeat`: rank 0 gives signs of life while it gets on, and only then."""

from __future__ import annotations

import threading
import time

import pytest

from pp_export.distributed import heartbeat
from pp_export.distributed.alone import OwnKeys
from pp_export.distributed.heartbeat import Heartbeat, last_beat


def test_a_thread_that_is_held_in_one_call_gives_no_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beats come while the thread works or polls, stop while it is blocked, and go on after it."""
    monkeypatch.setattr(heartbeat, "_BEAT_SECONDS", 0.02)
    store = OwnKeys()
    beating = Heartbeat(store)

    def beats(act: str) -> int:
        before, until = int(last_beat(store) or b"0"), time.monotonic() + 1.0
        if act == "blocked":
            threading.Event().wait(1.0)
        while time.monotonic() < until:
            if act == "polling":
                time.sleep(0.005)
        return int(last_beat(store) or b"0") - before

    assert beats("working") > 5
    assert beats("polling") > 5
    assert beats("blocked") <= 3
    assert beats("polling") > 5
    beating.stop()
