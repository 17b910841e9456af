"""What a training program calls: export a checkpoint, now or in the background, or the model as it is in
memory.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, overload

import torch

from pp_export import collectives, prepare
from pp_export.background import BackgroundExport
from pp_export.config import ExportOptions, TargetOptions, options_from
from pp_export.errors import OptionError
from pp_export.export import abandon, export
from pp_export.origin import CheckpointOrigin, ModelOrigin
from pp_export.report import ExportReport
from pp_export.world import World

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
    if background:
        return BackgroundExport(chosen)
    origin = CheckpointOrigin(chosen.checkpoint, chosen.iteration, check_source=chosen.check_source)
    world = collectives.alone(stall_seconds=chosen.stall_seconds)
    try:
        return export(origin, chosen, world, asked=prepare.ask(chosen))
    finally:
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
    chosen: TargetOptions | None = None
    wrong: OptionError | None = None
    try:
        chosen = options_from(values, "export_model", TargetOptions)
    except OptionError as error:  # raised below, where all ranks hear it
        wrong = error
    backend, seconds = (chosen.backend, chosen.stall_seconds) if chosen else ("gloo", 600.0)
    world = collectives.beside(backend, stall_seconds=seconds)
    asked = None
    try:
        if chosen is None or wrong is not None:
            assert wrong is not None
            raise abandon(world, None, wrong)
        asked = prepare.ask(chosen) if world.rank == 0 else None
        is_list = isinstance(model, (Sequence, torch.nn.ModuleList))
        parts = list(model) if is_list else [model]  # type: ignore[arg-type]
        with _shown(world, show_progress) as show:
            return export(ModelOrigin(parts), chosen, world, asked=asked, **show)
    finally:
        if asked is not None:
            prepare.forget(asked)
        world.close()


@contextmanager
def _shown(world: World, is_wanted: bool) -> Iterator[dict[str, Any]]:
    """What shows progress on rank 0. rich draws random numbers for its styles, which must not be the
    job's.
    """
    if not is_wanted or world.rank != 0:
        yield {}
        return
    state = random.getstate()
    try:
        from pp_export.show import ExportView

        with ExportView(world) as view:
            yield {"on_plan": view.plan, "on_poll": view.poll}
    finally:
        random.setstate(state)
