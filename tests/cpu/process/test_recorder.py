"""What workers did, recorded by themselves."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pp_export.process import recorder as module
from pp_export.process.recorder import Recorder


def test_a_span_lasts_as_long_as_its_block() -> None:
    """It begins and ends with the block, in order, and has the bytes and file that were given or added."""
    recorder = Recorder()
    began = time.perf_counter()
    with recorder.span("reads", num_bytes=3, file="a") as span:
        time.sleep(0.02)
        span.num_bytes += 4
    with recorder.span("writes"):
        pass
    lasted = time.perf_counter() - began
    [lane] = recorder.timeline(0).lanes
    reads, writes = lane.spans
    assert (reads.word, reads.num_bytes, reads.file) == ("reads", 7, "a")
    assert 0.02 <= reads.end - reads.begin <= lasted
    assert reads.end <= writes.begin <= writes.end


def test_what_fails_is_recorded_too() -> None:
    """An error passes through, and its span ends."""
    recorder = Recorder()
    with pytest.raises(ValueError, match="no"), recorder.span("reads", num_bytes=1):
        raise ValueError("no")
    with recorder.span("waits"):
        pass
    assert [span.word for span in recorder.timeline(0).lanes[0].spans] == ["reads", "waits"]


def test_spans_of_a_lane_never_overlap() -> None:
    """An inner span interrupts the outer one; bytes are counted once."""
    recorder = Recorder()
    with recorder.span("reads", num_bytes=5):
        with recorder.span("waits"):
            time.sleep(0.001)
        with recorder.span("waits"):
            pass
    [lane] = recorder.timeline(0).lanes
    assert [span.word for span in lane.spans] == ["reads", "waits", "reads", "waits", "reads"]
    assert sum(span.num_bytes for span in lane.spans) == 5
    assert all(a.end <= b.begin for a, b in zip(lane.spans, lane.spans[1:]))


def test_each_thread_has_a_lane() -> None:
    """Threads that live at once have lanes of their own, numbered where they share a name; one that comes
    after another of its name takes over its lane.
    """
    recorder, both = Recorder(), threading.Barrier(2)

    def work() -> None:
        with recorder.span("hashes", num_bytes=1):
            both.wait(10)

    for _ in range(5):
        with ThreadPoolExecutor(2, thread_name_prefix="hasher") as pool:
            for done in [pool.submit(work), pool.submit(work)]:
                done.result()
    writer = threading.Thread(target=lambda: recorder.span("writes").__enter__().__exit__(None, None, None))
    writer.name = "writer"
    writer.start()
    writer.join()
    lanes = recorder.timeline(7).lanes
    assert [(lane.worker, len(lane.spans)) for lane in lanes] == [
        ("hasher 1", 5),
        ("hasher 2", 5),
        ("writer", 1),
    ]


def test_memory_is_bounded_whatever_the_number_of_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lane never holds more than its limit, and still counts every byte of every word."""
    monkeypatch.setattr(module, "MAX_SPANS", 64)
    recorder = Recorder()
    for number in range(1000):
        with recorder.span("reads" if number % 3 else "pastes", num_bytes=number):
            pass
        [lane] = recorder.timeline(0).lanes
        assert len(lane.spans) <= 64
    assert sum(span.num_merged for span in lane.spans) == 1000
    assert sum(span.num_bytes for span in lane.spans if span.word == "reads") == sum(
        number for number in range(1000) if number % 3
    )


def test_the_zero_is_the_time_of_day() -> None:
    """Recorders of several processes can be put beside each other: their zeros are Unix time."""
    before = time.time_ns()
    recorder = Recorder()
    assert before <= recorder.began_ns <= time.time_ns()
    assert recorder.timeline(3).began_ns == recorder.began_ns
