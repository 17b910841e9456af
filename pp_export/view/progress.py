"""How far an export is: a bar for each stage, or for all, on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from pp_export.process.log import logger
from pp_export.view.text import human_bytes, prepare

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from pp_export.distributed.world import World
    from pp_export.planning.export_plan import ExportPlan
    from pp_export.steps.inputs import ExportInputs

_BAR_SECONDS, _LINE_SECONDS = 0.2, 5.0
_MAX_STAGES = 8


class ExportView:
    """Rank 0's view of all ranks while bytes move: bars, or now and then lines, per stage, for what is
    written, and for what is re-read as soon as anything is.
    """

    def __init__(self, world: World, *, verifies: bool) -> None:
        self._world, self._verifies = world, verifies
        self._plan: ExportPlan | None = None
        self._parts: list[_Part] = []
        self._bars = _bars() if world.rank == 0 and sys.stderr.isatty() else None
        self._tasks: dict[tuple[str, str], TaskID] = {}
        self._begun = 0.0
        self._shown = 0.0

    def __enter__(self) -> ExportView:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def plan(self, inputs: ExportInputs, plan: ExportPlan) -> None:
        """The plan is known."""
        self._plan = plan
        self._parts = _parts_of(plan, verifies=self._verifies)
        if self._world.rank == 0:
            logger.info(
                "exporting %s: %d tensors, %s, in %d files by %d ranks in %d stages",
                inputs.architecture.serves[0] if inputs.architecture.serves else inputs.architecture.name,
                sum(len(shard.tensors) for shard in plan.shards),
                human_bytes(plan.total_size),
                len(plan.files),
                plan.world_size,
                len(plan.stages),
            )

    def poll(self) -> None:
        """Called often while bytes move."""
        now, pause = time.monotonic(), _BAR_SECONDS if self._bars else _LINE_SECONDS
        if self._world.rank != 0 or self._plan is None or now - self._shown < pause:
            return
        begun = self._begun = self._begun or now
        self._shown = now
        if begun == now:
            prepare()
        if self._bars is None and begun == now:
            return
        posted = self._world.liveness.progress_of(range(self._world.size))
        for part in self._parts:
            files = sum(posted.get(rank, {}).get("shards", 0) for rank in part.ranks)
            for phase, counter in (("export", "written"), ("verify", "verified")):
                done = sum(posted.get(rank, {}).get(counter, 0) for rank in part.ranks)
                if done or phase == "export":
                    self._show(part, phase, done, files, now - begun)

    def _show(self, part: _Part, phase: str, done: int, num_done: int, seconds: float) -> None:
        count, total = part.amounts[phase]
        if not count:
            return
        note = f"{num_done} of {count} {part.what}" if phase == "export" else f"{count} shards"
        if self._bars is None:
            rate, so_far, whole = map(human_bytes, (done / max(seconds, 1e-3), done, total))
            logger.info("%s %s: %s of %s, %s/s, %s", phase, part.name, so_far, whole, rate, note)
            return
        key = (phase, part.name)
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task(f"{phase} {part.name}", total=total, note=note)
        self._bars.update(self._tasks[key], completed=done, note=note)


@dataclass(frozen=True)
class _Part:
    """Ranks that are shown together, and for each phase how many files, or ranges, and bytes they have."""

    name: str
    ranks: Sequence[int]
    what: str
    amounts: Mapping[str, tuple[int, int]]


def _parts_of(plan: ExportPlan, *, verifies: bool) -> list[_Part]:
    """The stages of a plan, or all ranks together, where stages are many or ranks of none verify."""
    verifiers = plan.verifiers()
    groups = {f"stage {number}": ranks for number, ranks in enumerate(plan.stages)}
    if len(groups) > _MAX_STAGES or not set(verifiers) <= {rank for ranks in plan.stages for rank in ranks}:
        groups = {"all": tuple(range(plan.world_size))}
    name_of = {rank: name for name, ranks in groups.items() for rank in ranks}
    sizes: dict[tuple[str, str], list[int]] = {
        (name, phase): [] for name in groups for phase in ("export", "verify")
    }
    for shard in plan.to_make:
        sizes[name_of[shard.leader], "export"].append(shard.num_bytes)
    for ranges, rank in zip(plan.files, verifiers):
        num_bytes = ranges[0].range.file_bytes
        if ranges[0].file in plan.kept.files:
            continue
        if verifies or len(ranges) > 1:  # the SHA-256 of a file of several ranges is known only then
            sizes[name_of[rank], "verify"].append(num_bytes)
    what = "shards" if len(plan.shards) == len(plan.files) else "ranges of shards"
    return [
        _Part(name, ranks, what, {phase: (len(s), sum(s)) for (of, phase), s in sizes.items() if of == name})
        for name, ranks in groups.items()
    ]


@contextmanager
def bytes_bar(what: str) -> Iterator[Callable[[int], None]]:
    """A bar for bytes of unknown total, on a terminal only."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    with _bars() as bars:
        task = bars.add_task(what, total=None, note="")
        yield lambda count: bars.update(task, advance=count)


@contextmanager
def compared_bytes() -> Iterator[ComparedBytes]:
    """The view of a comparison, shown from its beginning on."""
    if not sys.stderr.isatty():
        yield ComparedBytes(None)
        return
    with _bars() as bars:
        yield ComparedBytes(bars)


class ComparedBytes:
    """How many bytes of both sides are compared: a bar, or now and then a line."""

    def __init__(self, bars: Progress | None) -> None:
        self._bars, self._done, self._total = bars, 0, 0
        self._begun = self._shown = time.monotonic()
        self._task = None if bars is None else bars.add_task("reading metadata", total=None, note="")

    def total(self, num_bytes: int) -> None:
        """All metadata are read; so many bytes are to be compared."""
        self._total, self._begun = num_bytes, time.monotonic()
        self._shown = self._begun
        if self._bars is not None and self._task is not None:
            self._bars.reset(self._task, total=num_bytes, description="comparing")

    def add(self, num_bytes: int) -> None:
        """So many more are compared; called by one thread at a time."""
        self._done += num_bytes
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, advance=num_bytes)
            return
        now = time.monotonic()
        if now - self._shown < _LINE_SECONDS:
            return
        self._shown = now
        rate = self._done / max(now - self._begun, 1e-3)
        logger.info("compared %s of %s, %s/s", *map(human_bytes, (self._done, self._total, rate)))


def _bars() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description:<22}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True))
