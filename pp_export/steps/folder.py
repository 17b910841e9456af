"""Steps 8 and 10: the staging folder, what is in it beside the weights, and the name that it gets at last.

Rank 0 does all of this alone, while the others wait for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pp_export.core import file_names
from pp_export.core.errors import ExportError, TargetError, VerificationError
from pp_export.disk import calls, files, folders
from pp_export.distributed.world import World
from pp_export.options.kinds import WEIGHTS, TargetOptions
from pp_export.planning.export_plan import ExportPlan
from pp_export.process import signals
from pp_export.reference.reference_folder import copy_assets
from pp_export.shards import index
from pp_export.shards.manifests import ShardManifest
from pp_export.steps import resumption
from pp_export.steps.card import FILE as CARD
from pp_export.steps.card import card
from pp_export.steps.inputs import ExportInputs, Whole
from pp_export.steps.measured import Measured
from pp_export.steps.preflight import check_space
from pp_export.steps.provenance import provenance
from pp_export.steps.report import Completed, noted
from pp_export.steps.target import Target
from pp_export.verification import verify_structure


@dataclass(frozen=True)
class IndexedFolder:
    """A staging folder with all that belongs into it but the manifest; known on rank 0."""

    staging: Path
    plan: ExportPlan
    contents: str
    shards: tuple[ShardManifest, ...]
    completed: Completed
    provenance: Mapping[str, Any]
    card: bytes | None


def make_staging_folder(world: World, target: Target, whole: Whole | None, options: TargetOptions) -> Path:
    """Rank 0 makes it, called by all ranks; one that does not see it does not share the filesystem."""

    def make() -> None:
        assert whole is not None
        there = 0
        if resumption.is_asked(options):
            there = resumption.make_folder(target, whole, options)
        check_space(target, whole.plan, there)
        if not resumption.is_asked(options):
            folders.make_folder(target.staging)
            folders.make_folder(target.staging / file_names.SHARD_JSONS)

    def see() -> None:
        if not calls.is_folder(target.staging / file_names.SHARD_JSONS):
            raise TargetError(
                "this rank does not see the folder that rank 0 made: the ranks do not share a filesystem",
                where={"rank": world.rank, "folder": target.staging},
                advice="put --output on a filesystem that all nodes mount",
            )

    world.control.on_first(make)
    world.control.together(see)
    return target.staging


def index_folder(
    world: World, staging: Path, whole: Whole | None, options: TargetOptions
) -> IndexedFolder | None:
    """Step 9, called by all ranks: the index over all shards, config.json and the assets. On rank 0, what
    it made.
    """

    def complete() -> IndexedFolder:
        assert whole is not None
        plan, inputs = whole.plan, whole.inputs
        shards = index.merge_shards(staging, plan)
        if inputs.model.config.file == file_names.CONFIG:
            index.write_index(staging, plan, shards)
        not_finite = {name: count for shard in shards for name, count in shard.not_finite.items()}
        _check_finite(not_finite, options)
        contents = options.contents if inputs.reference.is_there else WEIGHTS
        completed = Completed() if contents == WEIGHTS else _add_model_files(staging, inputs)
        quantized = {name: error for shard in shards for name, error in shard.quantized.items()}
        completed = replace(completed, not_finite=not_finite, quantized=quantized)
        told = provenance(inputs, plan, options)
        text = card(inputs, plan, completed, told) if options.card else None
        return IndexedFolder(staging, plan, contents, tuple(shards), completed, told, text)

    return world.control.on_first(complete)


def _check_finite(not_finite: Mapping[str, int], options: TargetOptions) -> None:
    if options.require_finite and not_finite:
        raise VerificationError(
            "weights hold NaN or infinity",
            expected="finite numbers (--require-finite)",
            findings=[f"{name}: {count:,} of them NaN or infinite" for name, count in not_finite.items()],
            advice="export an earlier iteration, or leave --require-finite out if they are meant to be there",
        )


def _add_model_files(staging: Path, inputs: ExportInputs) -> Completed:
    reference, model = inputs.reference, inputs.model
    if model.config.file != file_names.CONFIG:
        files.write_file(staging / model.config.file, [model.config.image])
        return Completed()
    copy_assets(reference, staging)
    files.write_file(staging / file_names.CONFIG, [model.config.image])
    return Completed(
        corrections=model.config.corrections,
        additions=model.config.additions,
        origins=model.config.origins,
        assets=reference.assets,
        left=reference.left,
        notes=reference.notes,
    )


def seal(world: World, indexed: IndexedFolder | None, measured: Sequence[Measured]) -> None:
    """The end of step 9, called by all ranks: manifest and SHA256SUMS, then the structure of the whole
    folder. What all ranks `measured`, the SHA-256 of files of several ranges too, is known on rank 0.
    """

    def prove() -> None:
        assert indexed is not None
        digests = {file: sha256 for each in measured for file, sha256 in each.sha256_of.items()}
        shards = [replace(shard, sha256=digests.get(shard.file, shard.sha256)) for shard in indexed.shards]
        index.seal(indexed.staging, indexed.plan, shards, indexed.provenance, indexed.contents)
        if indexed.card is not None:
            files.write_file(indexed.staging / CARD, [indexed.card])
        faults = verify_structure(indexed.staging)
        if faults:
            findings = [str(fault) for fault in faults]
            raise VerificationError("the finished folder has faults", findings=findings)

    world.control.on_first(prove)


def publish_folder(
    world: World, target: Target, indexed: IndexedFolder | None, options: TargetOptions
) -> Completed | None:
    """Step 10, called by all ranks: the staging folder gets the target's name. On rank 0, all that is to
    be said of the folder, what could not be done afterwards included.

    A rank that was told to stop has stopped before, or goes on to the end: what is published is a success.
    """
    world.control.together(signals.postpone)
    published: list[Completed] = []

    def name() -> None:
        assert indexed is not None
        notes = target.publish(options)
        published.append(replace(indexed.completed, notes=(*indexed.completed.notes, *notes)))

    try:
        world.control.on_first(name)
    except ExportError as error:
        if not published:
            raise
        published[0] = replace(published[0], notes=(*published[0].notes, noted(error)))
    if not published:
        return None
    return replace(published[0], notes=(*published[0].notes, *target.litter()))
