"""Tasks that share what there is, against times worked out by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pp_export.planning.simulation import Shared, Task, Worker, run

_AMOUNTS = st.lists(st.floats(0.01, 100), min_size=1, max_size=20)


def each_alone(shared: Shared, amounts: list[float]) -> list[Task]:
    """A task of a worker of its own for each amount."""
    return [Task(Worker(1), [(shared, amount)]) for amount in amounts]


def test_what_is_shared_is_shared_equally() -> None:
    """Two that use a disk of 10 a second have 5 each, until the smaller has ended."""
    small, large = each_alone(Shared(10), [20, 50])
    assert run([small, large]) == pytest.approx(7)
    assert small.end == pytest.approx(4)


def test_nobody_gets_more_than_one_core() -> None:
    """One task on four cores takes as long as on one; five share four."""
    (alone,) = each_alone(Shared(4, most=1), [3])
    assert run([alone]) == pytest.approx(3)
    assert run(each_alone(Shared(4, most=1), [4] * 5)) == pytest.approx(5)


def test_a_task_ends_when_it_has_had_all_that_it_uses() -> None:
    """Reading takes as long as the disk or the core needs, whichever is slower."""
    disk, core = Shared(10), Shared(1, most=1)
    task = Task(Worker(1), [(disk, 20), (core, 5)])
    assert run([task]) == pytest.approx(5)
    assert run([Task(Worker(1), [(disk, 80), (core, 5)])]) == pytest.approx(8)


def test_tasks_wait_for_others_and_for_their_worker() -> None:
    """A worker with one slot does one after another; what comes after two begins when both have ended."""
    core = Shared(8, most=1)
    worker = Worker(1)
    first, second = Task(worker, [(core, 2)]), Task(worker, [(core, 3)])
    last = Task(Worker(1), [(core, 1)], [first, second])
    assert run([first, second, last]) == pytest.approx(6)
    assert [second.begin, last.begin] == pytest.approx([2, 5])
    assert first.slot == second.slot == 0


def test_what_uses_nothing_takes_no_time() -> None:
    """A task without an amount ends when it begins, and those after it go on."""
    core = Shared(1, most=1)
    nothing = Task(Worker(1), [(core, 0)])
    assert run([nothing, Task(Worker(1), [(core, 2)], [nothing])]) == pytest.approx(2)


@settings(deadline=None)
@given(_AMOUNTS, st.floats(0.1, 50))
def test_no_capacity_is_lost(amounts: list[float], capacity: float) -> None:
    """However many share something, it is busy until all have had theirs; smaller amounts end earlier."""
    tasks = each_alone(Shared(capacity), amounts)
    assert run(tasks) == pytest.approx(sum(amounts) / capacity)
    ends = [task.end for _, task in sorted(zip(amounts, tasks), key=lambda pair: pair[0])]
    assert ends == sorted(ends)


@settings(deadline=None)
@given(_AMOUNTS, st.integers(1, 5))
def test_slots_are_never_used_twice_at_once(amounts: list[float], num_slots: int) -> None:
    """Tasks in one slot of a worker come one after another, and all are done."""
    worker, core = Worker(num_slots), Shared(100, most=1)
    tasks = [Task(worker, [(core, amount)]) for amount in amounts]
    run(tasks)
    for slot in range(num_slots):
        turns = sorted((task.begin, task.end) for task in tasks if task.slot == slot)
        assert all(end <= begin + 1e-9 for (_, end), (begin, _) in pairwise(turns))
    assert sorted(task.end - task.begin for task in tasks) == pytest.approx(sorted(amounts))
    assert {task.slot for task in tasks} <= set(range(num_slots))
