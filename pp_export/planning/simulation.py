"""Tasks, workers and what they share, simulated from event to event.

Knows nothing of exports (`planning.flow` says what their tasks are). The effort is linear in the tasks, but
for the logarithm of a heap.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from math import inf


class Shared:
    """A resource of `capacity` per second, shared equally by the tasks that use it at a time, of which none
    gets more than `most`. With a capacity of n and a most of 1, it is n cores.
    """

    def __init__(self, capacity: float, most: float = inf) -> None:
        self._capacity, self._most = capacity, most
        self._users: list[tuple[float, int, Task]] = []
        self._num_joined = 0
        self._now, self._had = 0.0, 0.0  # what a task that has always been here would have had
        self.event = 0

    def join(self, now: float, amount: float, task: Task) -> None:
        """`task` uses it from now on until it has had `amount`."""
        self._advance(now)
        self._num_joined += 1
        heapq.heappush(self._users, (self._had + amount, self._num_joined, task))

    def next_end(self) -> float | None:
        """When the next task has had its amount, if none joins meanwhile."""
        if not self._users:
            return None
        return self._now + max(0.0, self._users[0][0] - self._had) / self._rate

    def leave(self, now: float) -> list[Task]:
        """The tasks that have had their amount; called at the `next_end`."""
        self._advance(now)
        self._had = max(self._had, self._users[0][0])  # whatever was rounded
        left = []
        while self._users and self._users[0][0] <= self._had:
            left.append(heapq.heappop(self._users)[2])
        return left

    @property
    def _rate(self) -> float:
        return min(self._most, self._capacity / len(self._users))

    def _advance(self, now: float) -> None:
        if self._users:
            self._had += (now - self._now) * self._rate
        self._now = now


class Worker:
    """Does tasks in the order in which they can be done, up to `num_slots` at once."""

    def __init__(self, num_slots: int) -> None:
        self.waiting: deque[Task] = deque()
        self.free_slots = list(range(num_slots))


class Task:
    """Something that `worker` does as soon as the tasks that it is `after` have ended: it uses an amount of
    each of its `uses`, side by side. `begin`, `end` and `slot` say what became of it.
    """

    __slots__ = ("begin", "end", "num_awaited", "num_using", "slot", "then", "uses", "worker")

    def __init__(
        self, worker: Worker, uses: Iterable[tuple[Shared, float]], after: Iterable[Task] = ()
    ) -> None:
        self.worker = worker
        self.uses = [(shared, amount) for shared, amount in uses if amount > 0]
        self.then: list[Task] = []
        self.num_awaited = self.num_using = self.slot = 0
        self.begin = self.end = 0.0
        for each in after:
            each.then.append(self)
            self.num_awaited += 1


def run(tasks: Iterable[Task]) -> float:
    """Let all tasks happen, in their order where several could; returns when the last ends."""
    ready = deque(task for task in tasks if not task.num_awaited)
    events: list[tuple[float, int, Shared]] = []
    changed: dict[Shared, None] = {}
    now, number = 0.0, 0

    def begin(task: Task, slot: int) -> None:
        task.begin, task.slot, task.num_using = now, slot, len(task.uses)
        for shared, amount in task.uses:
            shared.join(now, amount, task)
            changed[shared] = None
        if not task.uses:
            end(task)

    def end(task: Task) -> None:
        task.end = now
        for following in task.then:
            following.num_awaited -= 1
            if not following.num_awaited:
                ready.append(following)
        if task.worker.waiting:
            begin(task.worker.waiting.popleft(), task.slot)
        else:
            heapq.heappush(task.worker.free_slots, task.slot)

    while True:
        while ready:
            task = ready.popleft()
            if task.worker.free_slots:
                begin(task, heapq.heappop(task.worker.free_slots))
            else:
                task.worker.waiting.append(task)
        for shared in changed:
            number += 1
            shared.event = number
            if (at := shared.next_end()) is not None:
                heapq.heappush(events, (at, number, shared))
        changed.clear()
        while events and events[0][2].event != events[0][1]:
            heapq.heappop(events)  # who uses it has changed since
        if not events:
            return now
        now, _, shared = heapq.heappop(events)
        changed[shared] = None
        for task in shared.leave(now):
            task.num_using -= 1
            if not task.num_using:
                end(task)
