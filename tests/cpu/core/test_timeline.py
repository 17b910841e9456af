"""Timelines as values: merging, a common zero, JSON both ways."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from pp_export.core.timeline import WORDS, Lane, RankTimeline, Span, Timeline, coarse

_WORDS = st.sampled_from(WORDS)
_MICROSECONDS = st.integers(0, 10**7)
_FILES = st.sampled_from(["", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"])


@st.composite
def lanes(draw: st.DrawFn) -> Lane:
    """What one worker did, with pauses."""
    at, spans = 0, []
    for _ in range(draw(st.integers(0, 60))):
        begin = at + draw(_MICROSECONDS)
        at = begin + draw(_MICROSECONDS)
        spans.append(Span(draw(_WORDS), begin / 1e6, at / 1e6, draw(st.integers(0, 2**40)), draw(_FILES)))
    return Lane("reader", tuple(spans))


@given(lanes(), st.integers(len(WORDS), 40))
def test_merging_keeps_bytes_and_busy_time(lane: Lane, limit: int) -> None:
    """However coarse a lane is told, it has no more spans than the limit, and each word's bytes, number and
    busy seconds are what they were.
    """
    merged = coarse(lane.spans, limit)
    assert len(merged) <= limit
    if len(lane.spans) <= limit:
        assert merged == list(lane.spans)
    for word in WORDS:
        before = [span for span in lane.spans if span.word == word]
        after = [span for span in merged if span.word == word]
        assert sum(span.num_bytes for span in after) == sum(span.num_bytes for span in before)
        assert sum(span.num_merged for span in after) == len(before)
        busy = sum(span.end - span.begin for span in before)
        assert abs(sum(span.busy_seconds for span in after) - busy) < 1e-3
        if before:
            assert (after[0].begin, max(span.end for span in after)) == (before[0].begin, before[-1].end)


def test_a_merged_span_names_a_file_only_if_it_is_of_one() -> None:
    """Spans of several files have none when they are merged; of one, they keep it."""
    first, second = Span("reads", 0, 1, 5, "a"), Span("reads", 3, 4, 6, "b")
    assert first.with_next(second) == Span("reads", 0, 4, 11, "", 2, 2)
    assert first.with_next(second).busy_seconds == 2
    assert first.with_next(second._replace(file="a")).file == "a"


@given(st.lists(lanes(), max_size=3), st.integers(0, 2**62), st.integers(len(WORDS), 40))
def test_json_gives_the_timeline_back(all_lanes: list[Lane], began_ns: int, limit: int) -> None:
    """A timeline, merged or not, is the same after a walk through JSON text."""
    for rank in (RankTimeline(3, began_ns, tuple(all_lanes)), RankTimeline(3, 0, ()).coarse(limit)):
        whole = Timeline({"export": (0.5, 1.25)}, (rank, rank.coarse(limit)))
        assert Timeline.from_json(json.loads(json.dumps(whole.to_json()))) == whole


def test_json_is_compact() -> None:
    """A span costs no more than some numbers, however long the name of its file."""
    file = "model-00001-of-00191.safetensors"
    spans = tuple(Span("hashes", at, at + 0.5, 8 << 20, file) for at in range(1000))
    text = json.dumps(RankTimeline(0, 0, (Lane("hasher", spans),)).to_json())
    assert len(text) < 45 * 1000
    assert text.count(file) == 1


def test_the_earliest_rank_is_the_zero_of_all() -> None:
    """Ranks that began at other times stand where they belong beside each other, in the order of ranks."""
    lane = Lane("reader", (Span("reads", 0.25, 1.0),))
    late, early = RankTimeline(0, 2_500_000_000, (lane,)), RankTimeline(1, 1_000_000_000, (lane,))
    merged = Timeline.of([early, late], {"export": (0.0, 2.0)})
    assert [each.rank for each in merged.ranks] == [0, 1]
    assert {each.began_ns for each in merged.ranks} == {1_000_000_000}
    assert [each.lanes[0].spans[0].begin for each in merged.ranks] == [1.75, 0.25]
    assert merged.end == 2.5
