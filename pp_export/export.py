"""The story of an export, in ten steps. Every rank runs `export`; what one rank does alone is marked `share`.

1. described   rank 0 reads the metadata: which slices are stored, of which model   (prepare, checkpoint)
2. planned     every rank derives the same plan; fingerprints are compared          (plan)
3. read        each rank reads the slices it was dealt, checking their CRC-32       (checkpoint)
4. gathered    they travel as packed bytes to the leader of their shard             (stream, collectives)
5. mapped      every box goes to its place in the Hugging Face tensors              (accounting, freeze)
6. frozen      a full shard becomes read-only                                       (freeze)
7. written     file and shard JSON, both from the frozen shard                      (write)
8. indexed     rank 0 merges headers on disk, shard JSONs and plan                  (merge)
9. verified    every shard is re-read by a rank that did not write it               (verify)
10. published  the staging folder gets the target's name                            (publish)
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

from pp_export.checkpoint.source import Source
from pp_export.core import errors
from pp_export.core.digest import json_digest
from pp_export.core.errors import ExportError, TargetError, VerificationError
from pp_export.core.options import TargetOptions
from pp_export.disk import files, publish
from pp_export.distributed.world import World
from pp_export.planning.export_plan import ExportPlan
from pp_export.process import signals
from pp_export.reference import config_json
from pp_export.reference.folder import Reference, copy_assets
from pp_export.shards import index
from pp_export.shards.manifests import RECORDS_FOLDER
from pp_export.steps.inputs import ExportInputs, PendingInputs, ask, plan_export, read_inputs
from pp_export.steps.report import Clock, ExportReport, peak_anonymous_bytes
from pp_export.steps.transfer import Progress, Transfer, run_workers
from pp_export.verification import verify_shard, verify_structure

_SPARE_BYTES = 64 << 20
_GRACE_SECONDS = 6.0

OnPlan = Callable[[ExportInputs, ExportPlan], None]
OnPoll = Callable[[str], None]


def export(
    origin: Source,
    options: TargetOptions,
    world: World,
    *,
    asked: Future[PendingInputs] | None = None,
    on_plan: OnPlan = lambda *_: None,
    on_poll: OnPoll = lambda _: None,
) -> ExportReport:
    """Export what `origin` has to `options.output`; called by all ranks of `world`, which share a filesystem.

    Returns the report (complete on rank 0). If anything fails on any rank, raises the same ExportError on
    every rank; the target is then what it was before, and nothing is left beside it. `asked` is rank 0's
    `prepare.ask`, if it was called ahead. `on_plan` and `on_poll` are for showing progress.
    """
    target = Path(os.path.abspath(options.output))
    staging = files.staging_path(target, world.run_id)
    try:
        return _export(origin, options, world, target, staging, asked, on_plan, on_poll)
    except BaseException as error:
        failure = abort(world, staging, error)
        if not isinstance(error, Exception):  # KeyboardInterrupt and SystemExit mean more than this export
            raise
        raise failure from error


def _export(
    origin: Source,
    options: TargetOptions,
    world: World,
    target: Path,
    staging: Path,
    asked: Future[PendingInputs] | None,
    on_plan: OnPlan,
    on_poll: OnPoll,
) -> ExportReport:
    clock = Clock()
    world.same("the options", json_digest(options.to_json()))
    world.connect()
    sources, reference = _describe(origin, options, world, target, asked)
    plan = plan_export(sources, options, world.size)
    world.same("the plan", plan.fingerprint)
    on_plan(sources, plan)
    _stage(world, target, staging, plan)
    clock.lap("plan")

    progress = Progress()
    world.counters = progress.snapshot
    with origin.open(sources.catalog) as reader:
        Transfer(plan, world, reader, staging, progress).run(lambda: on_poll("export"))
    world.together(lambda: None)
    clock.lap("export")

    completed = world.share(lambda: _complete(staging, plan, sources, reference, options))
    if options.verify:
        _verify_shards(world, staging, plan, progress, lambda: on_poll("verify"))
    clock.lap("verify")

    peaks = world.gather(b"%d" % peak_anonymous_bytes())
    report = ExportReport(
        sources,
        plan,
        options,
        reference,
        tuple(completed.decode().splitlines()),
        tuple(map(int, peaks)),
        clock.laps,
    )
    world.share(lambda: _seal(staging, plan, report))
    notes = world.share(lambda: _publish(staging, target, options)).decode().splitlines()
    clock.lap("publish")
    return replace(report, notes=tuple(notes))


def _describe(
    origin: Source, options: TargetOptions, world: World, target: Path, asked: Future[PendingInputs] | None
) -> tuple[ExportInputs, Reference | None]:
    """Step 1. Rank 0 reads and checks all metadata; the others get what they need of it."""
    kept: list[tuple[ExportInputs, Reference]] = []
    origin.prepare(world)

    def read() -> bytes:
        if options.parents:
            files.make_parents(target)
        publish.check_target(
            target,
            overwrite=options.overwrite,
            beside=options.beside,
            sources=[*origin.sources, options.reference, Path.cwd()],
        )
        kept.append(read_inputs(origin, options, (asked or ask(options)).result()))
        return kept[0][0].to_bytes()

    image = world.share(read)
    return kept[0] if kept else (ExportInputs.from_bytes(image, options), None)


def _stage(world: World, target: Path, staging: Path, plan: ExportPlan) -> None:
    """Rank 0 makes the staging folder; a rank that does not see it does not share the filesystem."""

    def make() -> bytes:
        files.check_space(target, sum(shard.num_bytes for shard in plan.shards) + _SPARE_BYTES)
        files.make_folder(staging)
        files.make_folder(staging / RECORDS_FOLDER)
        return b""

    def see() -> None:
        if not (staging / RECORDS_FOLDER).is_dir():
            raise TargetError(
                "this rank does not see the folder that rank 0 made: the ranks do not share a filesystem",
                where={"rank": world.rank, "folder": staging},
                advice="put --output on a filesystem that all nodes mount",
            )

    world.share(make)
    world.together(see)


def _complete(
    staging: Path,
    plan: ExportPlan,
    sources: ExportInputs,
    reference: Reference | None,
    options: TargetOptions,
) -> bytes:
    """Step 8, on rank 0: index, assets, config.json. Returns the corrections of config.json, a line each."""
    assert reference is not None
    index.write_index(staging, plan, index.merge_shards(staging, plan))
    if options.weights_only:
        return b""
    copy_assets(reference, staging)
    config, corrections = config_json.corrected(
        reference.config,
        dtype=plan.main_dtype.torch_name,
        vocab_size=sources.sizes.vocab_size,
        num_mtp_layers=0 if options.mtp == "drop" else None,
    )
    files.write_file(staging / "config.json", [config_json.to_bytes(config)])
    return "\n".join(corrections).encode()


def _verify_shards(
    world: World, staging: Path, plan: ExportPlan, progress: Progress, on_poll: Callable[[], None]
) -> None:
    """Step 9. Each rank re-reads shards that another one wrote (its own only in a world of one)."""
    mine = [shard.file for shard, reader in zip(plan.shards, plan.verifiers()) if reader == world.rank]
    stop, lock = threading.Event(), threading.Lock()

    def verify_next() -> None:
        while not stop.is_set():
            with lock:
                if not mine:
                    return
                file = mine.pop(0)
            record = index.read_record(staging, file).to_json()
            faults = verify_shard(staging, record, lambda count: progress.add("verified", count))
            if faults:
                raise VerificationError(
                    "what is on disk is not what was frozen in memory",
                    where={"rank": world.rank, "operation": "verify", "file": staging / file},
                    advice="the target's filesystem damages data; export to another one",
                    findings=[str(fault) for fault in faults],
                )

    run_workers(world, [verify_next] * (4 if world.size == 1 else 2), stop, on_poll)
    world.together(lambda: None)


def _seal(staging: Path, plan: ExportPlan, report: ExportReport) -> bytes:
    """Step 9, on rank 0: manifest and SHA256SUMS, then the structure of the whole folder."""
    records = [index.read_record(staging, shard.file) for shard in plan.shards]
    index.seal(staging, plan, records, report.provenance(), report.options.contents)
    faults = verify_structure(staging)
    if faults:
        raise VerificationError("the finished folder has faults", findings=[str(fault) for fault in faults])
    return b""


def _publish(staging: Path, target: Path, options: TargetOptions) -> bytes:
    """Step 10, on rank 0. Returns what could not be done afterwards, a line each."""
    publish.check_target(target, overwrite=options.overwrite, beside=options.beside)
    put = publish.publish_beside if options.beside else publish.publish
    return "\n".join(put(staging, target)).encode()


def abort(world: World, staging: Path | None, error: BaseException) -> ExportError:
    """Stop all ranks, wait until they have, and leave nothing behind. The error that all ranks raise.

    Ranks write into the staging folder, so one rank removes it, when each has reported or stayed silent too
    long.
    """
    signals.settle()
    own = error if isinstance(error, ExportError) else errors.unforeseen(error)
    own.at(rank=world.rank)
    world.fail(own)
    speaks = world.elect_reporter(_GRACE_SECONDS)
    world.end_transfers()
    return world.agree(_clean_up(world, staging, own) if speaks else None) or own


def _clean_up(world: World, staging: Path | None, own: ExportError) -> ExportError:
    """What the rank that speaks does: find the cause, and remove the staging folder."""
    failures, silent = world.failures(_GRACE_SECONDS if world.rank == 0 else 1.0)
    origin = next((failure for failure in failures if failure.is_origin), None)
    is_own = origin is None or origin.rank == world.rank
    cause = own if origin is None or is_own else errors.from_json(origin.error).at(rank=origin.rank)
    findings = [
        f"rank {f.rank} also failed: {f.error['what']}" for f in failures if f.is_origin and f is not origin
    ]
    findings += [
        f"rank {rank} ended without a word (killed, stopped, out of memory, or its node is gone)"
        for rank in silent
    ]
    try:
        if staging is not None:
            files.discard_folder(staging)
    except ExportError as left:
        findings.append(f"the staging folder could not be removed: {left.what}: {staging}")
    cause.findings = (*cause.findings, *findings)
    return cause
