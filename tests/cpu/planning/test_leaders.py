"""Claims of `pp_export.planning.leaders`: leaders are near the bytes, and have about as much to write."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from pp_export.planning.leaders import choose_leaders

SETS = st.lists(st.sets(st.integers(0, 11), min_size=1), min_size=1, max_size=4)


def test_who_holds_the_most_leads() -> None:
    """Each file goes to the rank that holds the most of it, also where that is not its turn."""
    sets = [(0,), (1,), (2,)]
    needs = [{0: 2, 2: 6}, {2: 5, 1: 3}, {0: 8}, {0: 7, 1: 1}, {1: 5, 0: 3}, {1: 8}]
    assert choose_leaders([8] * 6, needs, sets, [0, 1, 2]) == [2, 2, 0, 0, 1, 1]


def test_a_node_comes_before_a_rank() -> None:
    """A leader among those who hold most of a file together is taken before the one that holds the most
    alone, but on another node.
    """
    sets = [(rank,) for rank in range(9)]
    assert choose_leaders([10], [{**dict.fromkeys(range(7), 1), 8: 3}], sets, range(9)) == [0]
    assert choose_leaders([10], [{0: 1, 8: 3}], sets, range(9)) == [8]


def test_a_full_leader_is_passed_over() -> None:
    """A rank that holds everything leads 20% more than its share and no more; the others lead the rest."""
    led = Counter(choose_leaders([1] * 100, [{0: 1}] * 100, [(3,), (0, 1, 2, 3)], range(4)))
    assert led[3] == 30
    assert sum(led.values()) == 100
    assert max(led[rank] for rank in range(3)) - min(led[rank] for rank in range(3)) <= 1


def test_what_anyone_can_lead_leaves_room_for_what_only_one_should() -> None:
    """A large file that all hold goes to who has the fewest files of his own to come."""
    sets = [(0,), (1,), (0, 1)]
    needs = [{2: 30}, {0: 20}, {0: 20}, {1: 10}]
    assert choose_leaders([30, 20, 20, 10], needs, sets, [0, 1]) == [1, 0, 0, 1]


@settings(deadline=None)
@given(st.data(), SETS, st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(1, 12))
def test_nobody_leads_much_more_than_a_share(
    data: st.DataObject, sets: list[set[int]], sizes: list[int], num_leaders: int
) -> None:
    """Whoever holds what, nobody has more than 20% above a fair share; or, with few large files, more than
    the mean and the file that came last.
    """
    needs = [{data.draw(st.integers(0, len(sets) - 1)): size} for size in sizes]
    leaders = choose_leaders(sizes, needs, [sorted(ranks) for ranks in sets], range(num_leaders))
    led: Counter[int] = Counter()
    for size, leader in zip(sizes, leaders):
        assert leader < num_leaders
        led[leader] += size
    fair = max(*sizes, -(-sum(sizes) // num_leaders))  # whole bytes
    smallest = min(size for size, leader in zip(sizes, leaders) if led[leader] == max(led.values()))
    assert max(led.values()) <= max(1.2 * fair, sum(sizes) / num_leaders + smallest)
