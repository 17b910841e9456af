"""Checkpoints compared without writing anything: their Hugging Face tensors are read, mapped, encoded and
frozen as in an export, shard by shard in the memory that was planned; each is compared where it lies, with
the same shard of another checkpoint, or with a folder's files. One process does all of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

from pp_export.core.errors import OptionError
from pp_export.distributed import backends
from pp_export.distributed.world import World
from pp_export.options.kinds import NO_OUTPUT
from pp_export.options.texts import parse_bytes
from pp_export.planning.capacity import Capacity
from pp_export.planning.export_plan import ExportPlan
from pp_export.planning.file_layout import TensorPlace
from pp_export.planning.rank_plan import RankPlan
from pp_export.steps.capacity import capacity_of
from pp_export.steps.compared import ComparedCheckpoint
from pp_export.steps.transfer import Frozen, Transfer
from pp_export.steps.workers import Crew, Progress, located
from pp_export.verification.side_by_side import (
    STEP_BYTES,
    Found,
    StoredSide,
    Tolerance,
    ValueDifference,
    differences,
    summed,
)
from pp_export.verification.weights import StoredTensor

OnBytes = Callable[[int], None]

THREAD_BYTES = STEP_BYTES + (26 << 20)
"""What a thread takes that compares: a step of a file, and what is computed of a block that differs."""


@dataclass(frozen=True)
class Walk:
    """A checkpoint, and the plan by which its tensors are assembled."""

    side: ComparedCheckpoint
    plan: ExportPlan

    @property
    def own(self) -> RankPlan:
        return self.plan.part_of(0)


def plan_walks(sides: Sequence[ComparedCheckpoint], names: Sequence[str]) -> tuple[Walk, ...]:
    """Plans for the tensors `names` of one or two checkpoints, which all have them, in one process: shard by
    shard the second gives those of the first, in their order. They share the cores and the memory that the
    options of the first side say. Raises OptionError where the least they need is more than a limit.
    """
    if not names:
        return ()
    whole, count = capacity_of(sides[0].options), len(sides)
    memory = whole.memory_bytes
    if memory is not None:
        memory = max(0, memory - whole.threads * THREAD_BYTES) // count
    each = Capacity(max(1, whole.threads // count), memory)
    first = Walk(sides[0], sides[0].plan(names, each, None))
    like = {place.name: shard.file for shard in first.plan.shards for place in shard.tensors}
    walks = (first, *(Walk(side, side.plan(names, each, like)) for side in sides[1:]))
    limit, planned = sides[0].options.memory_limit, planned_bytes(walks)
    if limit is not None and planned > parse_bytes(limit):
        raise OptionError(
            "--memory-limit is less than the comparison needs for one shard in flight",
            expected=f"at least {planned:,} bytes",
            got=limit,
            advice="fewer --threads need less",
        )
    return walks


def planned_bytes(walks: Sequence[Walk]) -> int:
    """The peak of anonymous memory; interpreter and libraries are there once."""
    parts = [walk.own for walk in walks]
    if not parts:
        return 0
    base = max(part.base_bytes for part in parts)
    threads = sum(part.capacity.threads for part in parts)
    return base + sum(part.peak_bytes - part.base_bytes for part in parts) + threads * THREAD_BYTES


class Comparing:
    """The comparison of `walks`, or of one with the `stored` tensors of a folder; in `found` is what differs.

    `on_bytes` is told how many bytes of both sides were compared, by one thread at a time.
    """

    def __init__(
        self,
        walks: Sequence[Walk],
        stored: Mapping[str, StoredTensor],
        tolerance: Tolerance,
        on_bytes: OnBytes,
    ) -> None:
        self._walks, self._stored, self._tolerance, self._on_bytes = walks, stored, tolerance, on_bytes
        self._progress = [Progress() for _ in walks]
        self._lock = threading.Lock()
        self._num_bytes = self._of_folder = 0
        self.found: dict[str, ValueDifference] = {}

    @property
    def num_bytes_read(self) -> int:
        """Bytes that were read of the checkpoints, and of the folder's tensors."""
        of_checkpoints: int = sum(each.snapshot()["read"] for each in self._progress)
        return self._of_folder + of_checkpoints

    def run(self, world: World) -> None:
        """Compare everything; called by the main thread of a world of one. Raises the first error."""
        world.liveness.counters = self._counters
        crew = Crew(world)
        with ExitStack() as stack:
            transfers: list[Transfer] = []
            frozen: list[Iterator[Frozen]] = []
            for walk, progress in zip(self._walks, self._progress):
                source, own = walk.side.source, walk.own
                backend = backends.expected("auto", ())
                transfer = stack.enter_context(
                    Transfer(own, world, backend, NO_OUTPUT, progress, values_on=None, crew=crew)
                )
                reader = stack.enter_context(source.open(walk.side.inputs.catalog))
                transfers.append(transfer)
                frozen.append(transfer.freeze(transfer.map(transfer.gather(transfer.read(reader)))))

            def compare(shards: tuple[Frozen, ...]) -> None:
                self._compare(shards)
                for transfer, shard in zip(transfers, shards):
                    transfer.done_with(shard)

            threads = sum(walk.own.capacity.threads for walk in self._walks)
            together = zip(*frozen, strict=True)
            crew.exhaust("finisher", crew.in_parallel("comparer", together, compare, threads))
            crew.run(lambda: None)

    def _compare(self, shards: tuple[Frozen, ...]) -> None:
        first = shards[0].shard
        with located(0, operation="compare", file=first.file), ExitStack() as stack:
            read = self._reading(shards[1:], stack)
            for place, own in zip(first.range.tensors, first.range.own_places):
                found = list(self._differences(place, first.data[own.begin : own.end], read))
                if found:
                    value = summed(place.name, place.spec.num_elements, found)
                    with self._lock:
                        self.found[place.name] = value

    def _differences(
        self, place: TensorPlace, data: memoryview, read: Callable[[str, int, int], memoryview]
    ) -> Iterator[Found]:
        for begin in range(0, len(data), STEP_BYTES):
            step = data[begin : begin + STEP_BYTES]
            other = read(place.name, begin, len(step))
            yield from differences(step, other, place.spec.dtype.safetensors_name, self._tolerance)
            with self._lock:
                self._num_bytes += 2 * len(step)
                self._on_bytes(2 * len(step))

    def _reading(self, others: Sequence[Frozen], stack: ExitStack) -> Callable[[str, int, int], memoryview]:
        """What gives bytes of a tensor of the other side: of the frozen shard, or else of the folder."""
        if others:
            shard = others[0].shard
            places = {place.name: place for place in shard.range.own_places}

            def of_shard(name: str, begin: int, num_bytes: int) -> memoryview:
                at = places[name].begin + begin
                return shard.data[at : at + num_bytes]

            return of_shard
        side = stack.enter_context(closing(StoredSide()))

        def of_folder(name: str, begin: int, num_bytes: int) -> memoryview:
            data = side.read(self._stored[name], begin, num_bytes)
            with self._lock:
                self._of_folder += num_bytes
            return data

        return of_folder

    def _counters(self) -> dict[str, object]:
        """What tells that work goes on."""
        posted = [each.snapshot() for each in self._progress]
        doing = {
            f"{n}: {name}": what for n, each in enumerate(posted) for name, what in each["doing"].items()
        }
        read = sum(each["read"] for each in posted)
        return {"read": read, "compared": self._num_bytes, "doing": doing}
