"""Arenas: memory in a ring."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pp_export.process.ring_buffer import Region, RingBuffer, pages

_BOOLEANS = st.booleans()


def never() -> None:
    raise AssertionError("the arena made its user wait")


@settings(deadline=None)
@given(st.data())
def test_live_regions_never_share_a_byte(data: st.DataObject) -> None:
    """However regions are taken and given back, live ones are disjoint, aligned and long enough."""
    arena = RingBuffer(8 * pages(1))
    live: list[Region] = []
    for _ in range(data.draw(st.integers(1, 40))):
        gives = bool(live) and data.draw(_BOOLEANS)
        if gives:
            arena.give_back(live.pop(data.draw(st.integers(0, len(live) - 1))))
        num_bytes = data.draw(st.integers(1, 3 * pages(1)))
        try:
            region = arena.take(num_bytes, never)
        except AssertionError:
            continue
        assert len(region.view) == num_bytes
        assert region.begin % pages(1) == 0
        live.append(region)
        for number, held in enumerate(live):
            held.view[:] = bytes([number % 251]) * len(held.view)
        for number, held in enumerate(live):
            assert bytes(held.view) == bytes([number % 251]) * len(held.view)


def test_an_empty_arena_gives_all_of_its_memory() -> None:
    """Whatever was taken before, an arena without live regions gives a region of its full size."""
    arena = RingBuffer(4 * pages(1))
    for num_pages in (3, 1, 2, 4):
        region = arena.take(num_pages * pages(1), never)
        arena.give_back(region)
    assert len(arena.take(4 * pages(1), never).view) == 4 * pages(1)


def test_a_region_too_many_waits_until_one_is_given_back() -> None:
    """Taking more than is free waits, and goes on as soon as there is room."""
    arena = RingBuffer(2 * pages(1))
    first = arena.take(2 * pages(1), never)
    taken: list[Region] = []
    waiting = threading.Thread(target=lambda: taken.append(arena.take(1, lambda: None)))
    waiting.start()
    waiting.join(0.3)
    assert not taken
    arena.give_back(first)
    waiting.join(10)
    assert len(taken) == 1


def test_waiting_ends_with_what_the_check_raises() -> None:
    """A worker that waits for memory ends when its export does."""
    arena = RingBuffer(pages(1))
    arena.take(1, never)
    with pytest.raises(AssertionError, match="made its user wait"):
        arena.take(1, never)


def test_more_than_the_arena_has_is_refused_at_once() -> None:
    """A region larger than the arena would wait for ever."""
    with pytest.raises(ValueError, match="can't give"):
        RingBuffer(pages(1)).take(pages(1) + 1, never)
