"""What Python programs call to make one folder of what ranks have saved under Hugging Face names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pp_export import api
from pp_export.options.consolidation import ConsolidateOptions
from pp_export.options.values import options_from

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from pp_export.options.keywords import ConsolidateKeywords, Folder
    from pp_export.steps.report import ExportReport
    from pp_export.steps.telling import ExportProgress


def consolidate(
    input: Folder,
    *,
    output: Folder,
    reference: Folder | None = None,
    on_progress: Callable[[ExportProgress], None] | None = None,
    **options: Unpack[ConsolidateKeywords],
) -> ExportReport:
    """Make the Hugging Face folder `output` of what the ranks of a job have saved under Hugging Face names.

    Called by one process (one rank of a job, or any other), which need not be part of any group. `input`
    holds safetensors of torch's HuggingFaceStorageWriter, a save of DCP, or verl's files of ranks;
    `reference` is the model's Hugging Face folder, by default the one that the framework has left with the
    input, else none: then the folder has weights and index only. `options` are the fields of
    `ConsolidateOptions`: sizes are bytes or texts such as `5GB`, times are seconds.

    `on_progress` is told how far it is, in this thread, at each step and a few times a second. Returns the
    report when the folder is published. Raises ExportError; `output` is then what it was before.

    >>> pp_export.consolidate("/runs/step_100/model", reference="/models/Qwen3-8B", output="/exports/a")
    ExportReport(output='/exports/a', files=5, bytes=16381470720, seconds=12.8)

    """
    from pp_export.checkpoint.hf_shards.source import RankSavedSource
    from pp_export.distributed.alone import alone
    from pp_export.export import export
    from pp_export.steps.telling import ignore

    values: dict[str, Any] = {"input": input, "output": output, **options}
    if reference is not None:
        values["reference"] = reference
    chosen = options_from(values, "consolidate", ConsolidateOptions)
    source = RankSavedSource(chosen.input, chosen.check_source, chosen.input_ranks)
    world = alone(stall_seconds=chosen.stall_seconds)
    try:
        return api.reporting(
            chosen, world, partial(export, source, chosen, world, on_progress=on_progress or ignore)
        )
    finally:
        world.close()


def write_consolidate_script(
    folder: Folder, *, reference: Folder | None = None, ranks: int | None = None
) -> Path:
    """Put `consolidate.sh` beside what ranks have saved in `folder`: run later, on any machine that sees the
    folder, it makes a Hugging Face folder of it. Returns where the script lies.

    Called by one rank, best when all have saved. `ranks` are those that have written the folder, which the
    script then insists on; by default as many as the names of its files tell. `reference` is its default
    where the framework leaves none with the save. Nothing of the folder is read. Raises ExportError where
    the script can't be written.

    >>> pp_export.write_consolidate_script("/runs/step_100/model", reference="/models/Qwen3-8B")
    PosixPath('/runs/step_100/model/consolidate.sh')

    """
    from pp_export.steps.consolidate_script import write_script

    return write_script(Path(folder), None if reference is None else Path(reference), ranks)
