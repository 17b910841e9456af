"""What a training program calls: export a checkpoint, now or in the background, or the model as it is in
memory.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import torch

from pp_export.background import BackgroundExport
from pp_export.checkpoint.source import CheckpointSource, ModelSource
from pp_export.core.errors import ExportError, OptionError
from pp_export.core.options import ExportOptions, TargetOptions, options_from
from pp_export.distributed import process_groups
from pp_export.distributed.world import World
from pp_export.export import abort, export
from pp_export.steps import inputs, report
from pp_export.steps.report import ExportReport

if TYPE_CHECKING:
    from pp_export.planning.export_plan import ExportPlan
    from pp_export.steps.inputs import ExportInputs
    from pp_export.view.console import ExportView

Folder = str | Path


@overload
def export_checkpoint(
    checkpoint: Folder,
    *,
    reference: Folder,
    output: Folder,
    background: Literal[False] = False,
    **options: Any,
) -> ExportReport: ...


@overload
def export_checkpoint(
    checkpoint: Folder, *, reference: Folder, output: Folder, background: Literal[True], **options: Any
) -> BackgroundExport: ...


def export_checkpoint(
    checkpoint: Folder, *, reference: Folder, output: Folder, background: bool = False, **options: Any
) -> ExportReport | BackgroundExport:
    """Export a checkpoint folder; called by one process, which need not be part of any group.

    `options` are the fields of `ExportOptions`. In the background the work is done by a process of its own,
    on the CPU and with the memory that `plan` shows, while the caller goes on; the handle waits for it.
    Raises ExportError, and the target is then what it was before.
    """
    values = {"checkpoint": checkpoint, "reference": reference, "output": output, **options}
    chosen = options_from(values, "export_checkpoint", ExportOptions)
    report.check_path(chosen)
    if background:
        return BackgroundExport(chosen)
    world = process_groups.alone(stall_seconds=chosen.stall_seconds)
    asked = inputs.ask(chosen)
    try:
        act = partial(export, CheckpointSource(chosen), chosen, world, asked=asked)
        return _reporting(chosen, world, act)
    finally:
        inputs.forget(asked)
        world.close()


def export_model(
    model: Sequence[torch.nn.Module] | torch.nn.Module,
    *,
    reference: Folder,
    output: Folder,
    show_progress: bool = False,
    **options: Any,
) -> ExportReport:
    """Export the model of a running job; called by all ranks of the default process group, which share a
    filesystem.

    `model` is this rank's list of model parts, one per virtual pipeline stage, wrapped or not. `options` are
    the fields of `TargetOptions`; all ranks lead shards unless `leaders_per_stage` says otherwise. Nothing of
    the training state is changed; host memory is taken for the shards in flight only. The files are those
    that an export of the checkpoint gives that the same job would save. Returns the report (whole on rank 0).
    If anything fails on any rank, every rank raises the same ExportError, the target is what it was before,
    and the job can go on.
    """
    values = {"reference": reference, "output": output, "leaders_per_stage": "all", **options}
    chosen = _checked(values)
    if isinstance(chosen, OptionError):
        backend, patience = "gloo", 600.0
    else:
        backend, patience = chosen.backend, chosen.stall_seconds
    world = process_groups.beside(backend, stall_seconds=patience)
    shown = _Progress(world) if show_progress and world.rank == 0 else None
    asked = None
    try:
        if isinstance(chosen, OptionError):
            raise abort(world, None, chosen)
        asked = inputs.ask(chosen) if world.rank == 0 else None
        is_list = isinstance(model, (Sequence, torch.nn.ModuleList))
        origin = ModelSource(list(model) if is_list else [model])  # type: ignore[arg-type]
        callbacks: dict[str, Any] = {} if shown is None else {"on_plan": shown.plan, "on_poll": shown.poll}
        act = partial(export, origin, chosen, world, asked=asked, **callbacks)
        return _reporting(chosen, world, act)
    finally:
        if shown is not None:
            shown.close()
        if asked is not None:
            inputs.forget(asked)
        world.close()


def _checked(values: dict[str, Any]) -> TargetOptions | OptionError:
    """The options, or what is wrong with them, to be raised where all ranks hear it."""
    try:
        chosen = options_from(values, "export_model", TargetOptions)
        report.check_path(chosen)
        return chosen
    except OptionError as error:
        return error


def _reporting(options: TargetOptions, world: World, act: Callable[[], ExportReport]) -> ExportReport:
    """Do an export and write its report, of success or failure, where the options ask for one; by one
    rank.
    """
    try:
        done = act()
    except ExportError as error:
        if world.is_reporter:
            report.write_failure(error, options)
        raise
    if options.report is not None and world.rank == 0:
        report.write_report(options.report, done.to_json())
    return done


class _Progress:
    """Shows progress on rank 0. rich draws random numbers for its styles, which must not be the job's."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._view: ExportView | None = None

    def plan(self, sources: ExportInputs, plan: ExportPlan) -> None:
        with _same_random_numbers():
            from pp_export.view.console import ExportView

            self._view = ExportView(self._world)
            self._view.__enter__()
            self._view.plan(sources, plan)

    def poll(self, phase: str) -> None:
        if self._view is not None:
            with _same_random_numbers():
                self._view.poll(phase)

    def close(self) -> None:
        if self._view is not None:
            with _same_random_numbers():
                self._view.__exit__(None, None, None)


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)
