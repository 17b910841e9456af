"""Claims of `pp_export.core.collector`: collections stop, go on, and are afterwards as they were."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator
from unittest.mock import patch

import pytest

from pp_export.core import collector
from pp_export.core.collector import paused_collector


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Whatever a test does to the collector is undone; what other tests' threads still do plays no part."""
    gc.unfreeze()
    gc.enable()
    with patch.object(collector, "_PAUSES", {}):
        yield
    gc.unfreeze()
    gc.enable()


def num_collections() -> int:
    return sum(generation["collections"] for generation in gc.get_stats())


def make_values() -> list[list[int]]:
    return [[number] for number in range(50_000)]


def test_nothing_is_collected_before_it_is_resumed() -> None:
    """Many values are made without a collection; afterwards there are collections again, which don't look at
    what was made, and at the end all is as it was.
    """
    with paused_collector() as resume:
        before = num_collections()
        values = make_values()
        assert num_collections() == before
        resume()
        assert gc.isenabled()
        assert gc.get_freeze_count() > len(values)
        assert make_values()
        assert num_collections() > before
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_a_failure_leaves_the_collector_as_it_was() -> None:
    """Also where it was never resumed."""
    with pytest.raises(ValueError, match="broken"), paused_collector():
        raise ValueError("broken")
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_a_pause_that_is_interrupted_as_it_begins_ends() -> None:
    """A signal's exception in the middle of its beginning leaves no pause that nobody ends."""
    with (
        patch.object(gc, "disable", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
        paused_collector(),
    ):
        raise AssertionError
    with paused_collector():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_what_others_turn_on_meanwhile_is_on_at_the_end() -> None:
    """Somebody else, as torch does around its state dicts, had collections off when a first pause began, and
    turns them on before a second one begins: at the end of both they are on, whichever ends first.
    """
    for ends_first in (0, 1):
        pauses = [paused_collector(), paused_collector()]
        gc.disable()
        pauses[0].__enter__()
        gc.enable()
        pauses[1].__enter__()
        assert not gc.isenabled()
        pauses[ends_first].__exit__(None, None, None)
        assert not gc.isenabled()
        pauses[1 - ends_first].__exit__(None, None, None)
        assert gc.isenabled()


def test_a_job_s_own_choice_stays() -> None:
    """A job that runs without collections, or has frozen values, finds both as they were."""
    gc.freeze()
    count = gc.get_freeze_count()
    with paused_collector() as resume:
        made = make_values()
        resume()
        assert gc.isenabled()
    assert made
    assert 0 < gc.get_freeze_count() <= count
    gc.disable()
    with paused_collector() as resume:
        resume()
        assert not gc.isenabled()
    assert not gc.isenabled()


def test_the_pause_of_another_thread_stays() -> None:
    """Collections go on when the last of those that pause them has ended, whichever began."""
    first, second = paused_collector(), paused_collector()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not gc.isenabled()
    second.__exit__(None, None, None)
    assert gc.isenabled()


def test_threads_that_pause_at_any_time_leave_it_on() -> None:
    """A pause that begins while another ends isn't taken for the job's own choice, which would last."""

    def pause_often() -> None:
        for _ in range(3000):
            with paused_collector():
                pass

    threads = [threading.Thread(target=pause_often) for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert gc.isenabled()
