"""What Python programs call. `import pp_export` gives these functions; each imports what it needs when it
runs, so that a door that needs no torch never waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from pp_export.core.errors import ExportError, OptionError
from pp_export.options.cluster import ClusterOptions
from pp_export.options.kinds import NO_OUTPUT, ExportOptions, TargetOptions
from pp_export.options.values import options_from

if TYPE_CHECKING:
    import torch
    from typing_extensions import Unpack

    from pp_export.background import BackgroundExport
    from pp_export.distributed.world import World
    from pp_export.options.keywords import ExportKeywords, Folder, TargetKeywords
    from pp_export.steps.checkpoint_report import CheckpointReport
    from pp_export.steps.plan_report import PlanReport
    from pp_export.steps.report import ExportReport
    from pp_export.steps.telling import ExportProgress, OnProgress
    from pp_export.verification import Verification
    from pp_export.verification.comparison import LogitComparison


@overload
def export_checkpoint(
    checkpoint: Folder,
    *,
    reference: Folder | None = None,
    output: Folder,
    background: Literal[False] = False,
    on_progress: Callable[[ExportProgress], None] | None = None,
    **options: Unpack[ExportKeywords],
) -> ExportReport: ...


@overload
def export_checkpoint(
    checkpoint: Folder,
    *,
    reference: Folder | None = None,
    output: Folder,
    background: Literal[True],
    **options: Unpack[ExportKeywords],
) -> BackgroundExport: ...


def export_checkpoint(
    checkpoint: Folder,
    *,
    reference: Folder | None = None,
    output: Folder,
    background: bool = False,
    on_progress: Callable[[ExportProgress], None] | None = None,
    **options: Unpack[ExportKeywords],
) -> ExportReport | BackgroundExport:
    """Export a checkpoint folder to the Hugging Face folder `output`.

    Called by one process (one rank of a job, or any other), which need not be part of any group.
    `checkpoint` is the root with the tracker file, or an iteration folder; `reference` the model's Hugging
    Face folder, without which config.json is made of the training args, as far as they determine it, for the
    class that the option `architecture` names. `options` are the fields of `ExportOptions`: sizes are bytes
    or texts such as `5GB`, times are seconds.

    Returns the report when the folder is published. In the background the work is done by a process of its
    own, on the CPU and with the memory that `plan` shows, while the caller goes on; the handle says how far
    it is, waits for it and gives the same report. Else `on_progress` is told that, in this thread, at each
    step and a few times a second; what it raises ends the export. Raises ExportError (OptionError at the
    call, also in the background);
    `output` is then what it was before.

    >>> handle = pp_export.export_checkpoint(
    ...     "/checkpoints/run", reference="/models/Qwen2-1.5B", output="/exports/run", background=True
    ... )
    >>> handle.wait().total_size
    3554214752

    """
    values = {"checkpoint": checkpoint, "reference": reference, "output": output, **options}
    chosen = options_from(values, "export_checkpoint", ExportOptions)
    if background:
        from pp_export.background import BackgroundExport
        from pp_export.steps.target import check_path

        if on_progress is not None:
            raise OptionError(
                "on_progress can't be used with background=True: the handle that is returned has progress()"
            )
        check_path(chosen)
        return BackgroundExport(chosen)

    from pp_export.distributed.alone import alone
    from pp_export.export import export
    from pp_export.steps.inputs import checkpoint_source
    from pp_export.steps.telling import ignore

    source = checkpoint_source(chosen)
    world = alone(stall_seconds=chosen.stall_seconds)
    try:
        act = partial(export, source, chosen, world, on_progress=on_progress or ignore)
        return reporting(chosen, world, act)
    finally:
        world.close()


def export_model(
    model: Sequence[torch.nn.Module] | torch.nn.Module,
    *,
    reference: Folder | None = None,
    output: Folder,
    show_progress: bool = False,
    on_progress: Callable[[ExportProgress], None] | None = None,
    **options: Unpack[TargetKeywords],
) -> ExportReport:
    """Export the model of a running job to the Hugging Face folder `output`.

    Called by all ranks of the default process group, which share a filesystem, or by one process without a
    group. `model` is this rank's list of model parts, one per virtual pipeline stage, wrapped or not.
    Without a `reference`, config.json is made of what the model says of itself, for the class that the option
    `architecture` names. `options` are the fields of `TargetOptions`: sizes are bytes or texts such as `5GB`,
    times are seconds; all ranks that hold values lead shards, unless `leaders_per_stage` bounds them.
    `show_progress` shows on rank 0's stderr how far all ranks are, and `on_progress` is told it, on rank 0.

    Nothing of the training state is changed; host memory is taken for the shards in flight only. The files
    are those that an export of the checkpoint gives that the same job would save. Returns the report when
    the folder is published (whole on rank 0). If anything fails on any rank, every rank raises the same
    ExportError, `output` is what it was before, and the job can go on.

    >>> pp_export.export_model(model, reference="/models/Qwen2-1.5B", output="/exports/step-1000")
    ExportReport(output='/exports/step-1000', files=30, bytes=3554214752, seconds=5.1)
    """
    from pp_export.checkpoint.live_source import ModelSource
    from pp_export.distributed import process_groups
    from pp_export.export import export
    from pp_export.steps.failure import abort
    from pp_export.steps.telling import ignore
    from pp_export.view.in_job import JobView

    values = {"reference": reference, "output": output, **options}
    chosen = _checked(values)
    patience = 600.0 if isinstance(chosen, OptionError) else chosen.stall_seconds
    world = process_groups.beside(stall_seconds=patience, about=str(output))
    shown = None
    try:
        if isinstance(chosen, OptionError):
            raise abort(world, None, chosen)
        if show_progress and world.rank == 0:
            shown = JobView()
        source = ModelSource(_parts(model))
        told = [each for each in (shown, on_progress) if each is not None]
        act = partial(export, source, chosen, world, on_progress=_all_of(told) if told else ignore)
        return reporting(chosen, world, act)
    finally:
        if shown is not None:
            shown.close()
        world.close()


def plan(
    checkpoint: Folder,
    *,
    reference: Folder | None = None,
    output: Folder | None = None,
    world_size: int = 1,
    nodes: int | None = None,
    cores: int | None = None,
    storage_gbps: str = "2,1",
    network_gbps: float = 12.5,
    **options: Unpack[ExportKeywords],
) -> PlanReport:
    """What an export by `world_size` ranks would do: bytes per file and rank, peak memory in bytes, and
    how long it will take.

    Called by one process; needs no group, and reads metadata only. `nodes` have `cores` each; the storage
    reads and writes R,W gigabytes per second for all of them together, and the network gives each so many
    (defaults: a node for 8 ranks, with the cores of this one). Other arguments are those of
    `export_checkpoint`. Raises the ExportError that the export would end with before it reads a tensor; what
    `output` allows is tried there, without a trace, if it is given.

    >>> report = pp_export.plan("/checkpoints/run", reference="/models/Qwen2-1.5B", world_size=8)
    >>> max(rank.peak_bytes for rank in report.ranks)
    527433728

    """
    from pp_export.steps.plan_report import plan_checkpoint

    place = NO_OUTPUT if output is None else output
    values = {"checkpoint": checkpoint, "reference": reference, "output": place, **options}
    cluster = ClusterOptions(
        world_size=world_size,
        nodes=nodes,
        cores=cores,
        storage_gbps=storage_gbps,
        network_gbps=network_gbps,
    )
    chosen = options_from(values, "plan", ExportOptions)
    report = plan_checkpoint(chosen, cluster, here=output is not None)
    if chosen.html is not None:
        from pp_export.view.html import write_plan

        report = write_plan(chosen.html, report)
    return report


def inspect(
    checkpoint: Folder,
    *,
    iteration: int | None = None,
    deep: bool = False,
    threads: int | None = None,
    on_bytes: Callable[[int], None] | None = None,
    on_total: Callable[[int], None] | None = None,
    html: Folder | None = None,
) -> CheckpointReport:
    """What a checkpoint is: its format, writer, parallel layout, training args, and every stored tensor.

    Called by one process; reads metadata only. Sizes are in bytes. `html` is a file for the same as a page.
    Raises CheckpointError where there is no finished checkpoint that can be read, and OptionError where there
    can be no page.

    `deep` reads every byte of the weights too, in steps of a few MiB by `threads` threads (one per core that
    this process may use if None), and tells in `examined` the digest of each tensor, which values are
    suspicious (NaN, infinite, all zeros, one value throughout), and what is missing, truncated or damaged:
    that is returned then, not raised, as far as the metadata can be read. `on_total` is told how many bytes
    will be read, `on_bytes` those of each step, by one thread at a time.

    >>> pp_export.inspect("/checkpoints/run").layout["tensor_model_parallel_size"]
    2
    >>> pp_export.inspect("/checkpoints/run", deep=True).ok
    True

    """
    from pp_export.checkpoint.formats import describe_checkpoint
    from pp_export.steps.checkpoint_report import checkpoint_report
    from pp_export.view.html import Page
    from pp_export.view.pages.inspected import checkpoint_page

    page = Page(html, checkpoint)
    if not deep:
        return page.of(checkpoint_report(describe_checkpoint(Path(checkpoint), iteration)), checkpoint_page)
    from pp_export.steps.examination import examine_folder

    looked = examine_folder(Path(checkpoint), iteration, threads, on_total=on_total, on_bytes=on_bytes)
    return page.of(looked, checkpoint_page)


def verify(
    folder: Folder,
    *,
    quick: bool = False,
    subset: tuple[int, int] | None = None,
    load: bool = False,
    cache: bool = True,
    threads: int | None = None,
    on_bytes: Callable[[int], None] | None = None,
    html: Folder | None = None,
) -> Verification:
    """Prove a Hugging Face folder, whoever made it: structure, token ids, every byte against recorded
    digests, and names, shapes and types against the definition of the model's class.

    Called by one process, offline. For the definition a child process builds the class of config.json in
    transformers, without weights and without code of the folder, unless the user's `cache` has its answer;
    a note says why where that can't be done. `quick` looks at the structure only; `subset` (i, n) reads
    the i-th of n shares of the files; `load` also loads the model with transformers. `threads` is how many
    cores digest; all that this process may use if None. Files are read past the page cache, and `on_bytes`
    is told the bytes of every read. `html` is a file for a page of what was found. Faults are returned, not
    raised; raises OptionError for options that make no sense, and VerificationError where there is no folder.

    >>> pp_export.verify("/exports/run").ok
    True

    """
    from pp_export.process.cores import usable_cores
    from pp_export.reference.pending_definition import PendingDefinition
    from pp_export.verification import verify_folder
    from pp_export.view.html import Page
    from pp_export.view.pages.verified import verification_page

    page = Page(html, folder)
    result = verify_folder(
        Path(folder),
        quick=quick,
        subset=subset,
        load=load,
        threads=usable_cores() if threads is None else threads,
        on_bytes=on_bytes,
        ask=partial(PendingDefinition.start, cache=cache),
    )
    return page.of(result, verification_page)


def record_logits(
    file: Folder, token_ids: torch.Tensor, logits: torch.Tensor, *, top_k: int | None = None
) -> None:
    """Write what the model in training answered to `file`, for `compare_logits`.

    Called by one rank only, which has the whole logits: gathered over tensor parallel ranks, on the last
    pipeline stage. `token_ids` is int64 [batch, sequence], without padding tokens; `logits` [batch,
    sequence, vocabulary] in float32, bfloat16 or float16, on any device, with or without Megatron's
    padding columns. `top_k` keeps only that many logits of each position, the largest. A file that is
    there already is replaced, whole. Raises OptionError for tensors that are no such thing, and
    TargetError where the file can't be written.

    >>> pp_export.record_logits("/exports/step-1000.logits", token_ids, logits)

    """
    from pp_export.disk import files, folders
    from pp_export.verification.recording import make_recording

    path = Path(file)
    files.write_file(path, [make_recording(token_ids, logits, top_k, {"file": path}).to_bytes()])
    folders.sync_folder(path.parent)


def compare_logits(
    folder: Folder,
    recording: Folder,
    *,
    tolerance: float | None = None,
    max_memory: int | str | None = None,
    html: Folder | None = None,
) -> LogitComparison:
    """Run a Hugging Face folder with transformers and compare its logits with those of `record_logits`.

    Called by one process, offline; runs on the CPU in float32, and no code of the folder. `tolerance` is
    the difference that a position may have, relative to the standard deviation of its logits; by default
    it follows from the precision of the recording. Weights that take more than `max_memory` (bytes, or a
    text such as `64GB`; by default most of what is free) stay on disk while the model runs. `html` is a file
    for a page of the result. Differences are returned, not raised; raises OptionError for options that make
    no sense, and VerificationError where recording or folder can't be used.

    >>> pp_export.compare_logits("/exports/step-1000", "/exports/step-1000.logits").ok
    True

    """
    from pp_export.options.texts import parse_bytes
    from pp_export.verification.logits import compare_folder
    from pp_export.view.html import Page
    from pp_export.view.pages.answered import logits_page

    page = Page(html, folder)
    if tolerance is not None and not 0 <= tolerance < float("inf"):
        raise OptionError("--tolerance can't be used", expected="a finite number, 0 or more", got=tolerance)
    limit = None if max_memory is None else parse_bytes(max_memory, "--max-memory")
    result = compare_folder(Path(folder), Path(recording), tolerance=tolerance, max_memory=limit)
    return page.of(result, logits_page)


def _parts(model: Any) -> list[Any]:
    """The parts of a model that is a list of them, or the only one. A container of parts counts as a list."""
    from torch.nn import ModuleList

    return list(model) if isinstance(model, (Sequence, ModuleList)) else [model]


def _checked(values: dict[str, Any]) -> TargetOptions | OptionError:
    """The options, or what is wrong with them, to be raised where all ranks hear it."""
    try:
        return options_from(values, "export_model", TargetOptions)
    except OptionError as error:
        return error


def _all_of(listeners: Sequence[OnProgress]) -> OnProgress:
    def tell(now: ExportProgress) -> None:
        for each in listeners:
            each(now)

    return tell


def reporting(options: TargetOptions, world: World, act: Callable[[], ExportReport]) -> ExportReport:
    """Do an export and write its report, of success or failure, and its page, where the options ask for
    them; by one rank.
    """
    from pp_export.steps import report_files

    since = time.time()
    try:
        done = act()
    except ExportError as error:
        if world.abort.is_reporter:
            report_files.write_failure(error, options, since=since)
        raise
    if world.rank != 0:
        return done
    from pp_export.view.html import write_files

    return write_files(options, done)
