"""How far an export is: what is waited for, and what was written and verified, in all and by stage.

Rank 0 knows it of all ranks, and tells whoever shows it: the command line, a job's callback, a handle.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pp_export.core.errors import ExportError
from pp_export.core.json_values import to_json_value
from pp_export.core.words import counted
from pp_export.process.log import logger

if TYPE_CHECKING:
    from pp_export.distributed.world import World
    from pp_export.planning.export_plan import ExportPlan
    from pp_export.steps.inputs import ExportInputs


class Step:
    """What is waited for, in words."""

    READING, PLANNING = "reading the checkpoint's metadata", "planning"
    CHECKING = "re-reading what an earlier run has written"
    MOVING, CONFIRMING = "moving bytes", "waiting for the model's own definition"
    COMPLETING, PUBLISHING, DONE = "completing the folder", "publishing", "published"


SCHEMA_VERSION = 1
_PAUSE_SECONDS = 0.2
_MAX_STAGES = 8


@dataclass(frozen=True)
class PartProgress:
    """Ranks that are counted together, a stage or all of them: bytes written and read back, of how many, and
    how many `files` of `num_files` (shards, or ranges of shards where several ranks write one) are written.
    """

    name: str
    files: int
    num_files: int
    written: int
    to_write: int
    verified: int
    to_verify: int


@dataclass(frozen=True)
class ExportProgress:
    """How far an export is. `seconds` have passed since bytes began to move, until they all had; sizes are
    in bytes. `parts` are empty until the plan is known; `about` says in a line what is exported then.
    `files_are` names what parts count: shards, or ranges of shards.
    """

    step: str = Step.READING
    about: str = ""
    seconds: float = 0.0
    files_are: str = "shards"
    parts: tuple[PartProgress, ...] = ()

    @property
    def total(self) -> PartProgress:
        """All parts together."""
        sums = [
            sum(getattr(part, name) for part in self.parts)
            for name in ("files", "num_files", "written", "to_write", "verified", "to_verify")
        ]
        return PartProgress("all", *sums)

    @property
    def bytes_per_second(self) -> float:
        """The rate of what is written, as the report's summary gives it at the end."""
        return self.total.written / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """How long it will take at the pace so far; None while nobody can know."""
        total = self.total
        done, whole = total.written + total.verified, total.to_write + total.to_verify
        if not done or self.seconds <= 0:
            return None
        return self.seconds * (whole - done) / done

    def to_json(self) -> dict[str, Any]:
        """The progress as JSON values, as `--progress json` prints it; see `schemas/progress.json`."""
        return {
            "schema_version": SCHEMA_VERSION,
            **to_json_value(self),
            "total": to_json_value(self.total),
            "bytes_per_second": self.bytes_per_second,
            "seconds_left": self.seconds_left,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ExportProgress:
        """The progress that `to_json` gave."""
        named = {each.name: value[each.name] for each in dataclasses.fields(cls)}
        return cls(**{**named, "parts": tuple(PartProgress(**part) for part in named["parts"])})


OnProgress = Callable[[ExportProgress], None]


def ignore(_: ExportProgress) -> None:
    """What is called where nobody wants to know."""


@dataclass
class Telling:
    """Tells `on_progress` of all ranks, on rank 0 (elsewhere nothing): at each step, and in polls now and
    then; main thread only. What the callback raises ends the export.
    """

    world: World
    on_progress: OnProgress
    verifies: bool
    _step: str = Step.READING
    _about: str = ""
    _parts: Sequence[_Part] = ()
    _files_are: str = "shards"
    _began: float | None = None
    _ended: float | None = None
    _told: float = field(default=0.0)

    def step(self, name: str) -> None:
        """From now on, `name` is what is waited for."""
        now = time.monotonic()
        if name == Step.MOVING:
            self._began = now
        elif self._began is not None and self._ended is None:
            self._ended = now
        self._step = name
        self._tell(now)

    def plan(self, inputs: ExportInputs, plan: ExportPlan) -> None:
        """The plan is known; called on rank 0."""
        serves, num_tensors = inputs.architecture.serves, sum(len(shard.tensors) for shard in plan.shards)
        self._about = (
            f"{serves[0] if serves else inputs.architecture.name}: {counted(num_tensors, 'tensor')}"
            f" in {counted(len(plan.files), 'file')} by {counted(plan.world_size, 'rank')}"
            f" in {counted(len(plan.stages), 'stage')}"
        )
        self._parts = _parts_of(plan, verifies=self.verifies)
        self._files_are = "shards" if len(plan.shards) == len(plan.files) else "ranges of shards"

    def poll(self) -> None:
        """Called often while ranks work."""
        now = time.monotonic()
        if now - self._told >= _PAUSE_SECONDS:
            self._tell(now)

    def _tell(self, now: float) -> None:
        if self.world.rank != 0 or self.on_progress is ignore:
            return
        self._told = now
        seconds = 0.0 if self._began is None else (self._ended or now) - self._began
        posted: Mapping[int, Mapping[str, Any]] = {}
        if self._parts and self._step != Step.DONE:
            posted = self.world.liveness.progress_of(range(self.world.size))
        parts = tuple(self._count(part, posted) for part in self._parts)
        try:
            self.on_progress(ExportProgress(self._step, self._about, seconds, self._files_are, parts))
        except Exception as error:
            if self._step == Step.DONE:
                logger.warning("the export is published; its progress could not be told: %r", error)
                return
            if isinstance(error, ExportError):
                raise
            raise ExportError(
                f"the callback on_progress failed: {error!r}",
                advice="correct the callback: what it raises ends the export",
            ) from error

    def _count(self, part: _Part, posted: Mapping[int, Mapping[str, Any]]) -> PartProgress:
        if self._step == Step.DONE:
            files, written, verified = part.num_files, part.to_write, part.to_verify
        else:
            own = [posted.get(rank, {}) for rank in part.ranks]
            files, written, verified = (
                sum(each.get(name, 0) for each in own) for name in ("shards", "written", "verified")
            )
        return PartProgress(
            part.name, files, part.num_files, written, part.to_write, verified, part.to_verify
        )


@dataclass(frozen=True)
class _Part:
    """Ranks that are counted together, and what they have to do."""

    name: str
    ranks: Sequence[int]
    num_files: int
    to_write: int
    to_verify: int


def _parts_of(plan: ExportPlan, *, verifies: bool) -> list[_Part]:
    """The stages of a plan, or all ranks together, where stages are many or ranks of none verify."""
    verifiers = plan.verifiers()
    groups = {f"stage {number}": ranks for number, ranks in enumerate(plan.stages)}
    if len(groups) > _MAX_STAGES or not set(verifiers) <= {rank for ranks in plan.stages for rank in ranks}:
        groups = {"all": tuple(range(plan.world_size))}
    name_of = {rank: name for name, ranks in groups.items() for rank in ranks}
    to_write: dict[str, list[int]] = {name: [] for name in groups}
    to_verify = dict.fromkeys(groups, 0)
    for shard in plan.to_make:
        to_write[name_of[shard.leader]].append(shard.num_bytes)
    for ranges, rank in zip(plan.files, verifiers):
        if ranges[0].file in plan.kept.files:
            continue
        if verifies or len(ranges) > 1:  # the SHA-256 of a file of several ranges is known only then
            to_verify[name_of[rank]] += ranges[0].range.file_bytes
    return [
        _Part(name, ranks, len(to_write[name]), sum(to_write[name]), to_verify[name])
        for name, ranks in groups.items()
    ]
