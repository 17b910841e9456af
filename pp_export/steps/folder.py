"""Steps 8 and 10: the staging folder, what is in it beside the weights, and the name that it gets at last.

Rank 0 does all of this alone, while the others wait for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pp_export.core import file_names
from pp_export.core.errors import TargetError, VerificationError
from pp_export.disk import files, publish
from pp_export.distributed.world import World
from pp_export.options.kinds import TargetOptions
from pp_export.planning.export_plan import ExportPlan
from pp_export.reference.reference_folder import copy_assets
from pp_export.shards import index
from pp_export.shards.manifests import ShardManifest
from pp_export.steps.inputs import ExportInputs
from pp_export.steps.report import Completed
from pp_export.steps.target import Target
from pp_export.verification import verify_structure

_SPARE_BYTES = 64 << 20


@dataclass(frozen=True)
class IndexedFolder:
    """A staging folder with all that belongs into it but config.json and manifest, at last with both; known
    on rank 0.
    """

    staging: Path
    plan: ExportPlan
    contents: str
    shards: tuple[ShardManifest, ...]
    completed: Completed


def make_staging_folder(world: World, target: Target, plan: ExportPlan) -> Path:
    """Rank 0 makes it, called by all ranks; one that does not see it does not share the filesystem."""

    def make() -> None:
        files.check_space(target.folder, sum(shard.num_bytes for shard in plan.shards) + _SPARE_BYTES)
        files.make_folder(target.staging)
        files.make_folder(target.staging / file_names.SHARD_JSONS)

    def see() -> None:
        if not (target.staging / file_names.SHARD_JSONS).is_dir():
            raise TargetError(
                "this rank does not see the folder that rank 0 made: the ranks do not share a filesystem",
                where={"rank": world.rank, "folder": target.staging},
                advice="put --output on a filesystem that all nodes mount",
            )

    world.control.on_first(make)
    world.control.together(see)
    return target.staging


def index_folder(
    world: World, staging: Path, plan: ExportPlan, inputs: ExportInputs, options: TargetOptions
) -> IndexedFolder | None:
    """Step 8, called by all ranks: the index over all shards, and the assets. On rank 0, what it made."""

    def complete() -> IndexedFolder:
        shards = index.merge_shards(staging, plan)
        index.write_index(staging, plan, shards)
        not_finite = {name: count for shard in shards for name, count in shard.not_finite.items()}
        _check_finite(not_finite, options)
        completed = Completed() if options.weights_only else _add_assets(staging, inputs)
        completed = replace(completed, not_finite=not_finite)
        return IndexedFolder(staging, plan, options.contents, tuple(shards), completed)

    return world.control.on_first(complete)


def _check_finite(not_finite: Mapping[str, int], options: TargetOptions) -> None:
    if options.require_finite and not_finite:
        raise VerificationError(
            "weights hold values that are no finite numbers",
            expected="finite numbers (--require-finite)",
            findings=[f"{name}: {count:,} of them NaN or infinite" for name, count in not_finite.items()],
            advice="export an earlier iteration, or leave --require-finite out if they are meant to be there",
        )


def _add_assets(staging: Path, inputs: ExportInputs) -> Completed:
    reference = inputs.reference
    assert reference is not None
    copy_assets(reference, staging)
    return Completed(assets=reference.assets, left=reference.left, notes=reference.notes)


def seal(
    world: World,
    indexed: IndexedFolder | None,
    inputs: ExportInputs,
    digests: Mapping[str, str],
    provenance: Mapping[str, Any],
) -> IndexedFolder | None:
    """The end of step 9, called by all ranks: config.json, manifest and SHA256SUMS, then the structure of the
    whole folder. `digests` are the SHA-256 of the files that several ranks wrote; known on rank 0. On rank 0,
    what it made.
    """

    def prove() -> IndexedFolder:
        assert indexed is not None
        completed = indexed.completed
        if indexed.contents != "weights":
            assert inputs.model is not None
            config = inputs.model.config
            files.write_file(indexed.staging / file_names.CONFIG, [config.image])
            completed = replace(completed, corrections=config.corrections, additions=config.additions)
        shards = [replace(shard, sha256=digests.get(shard.file, shard.sha256)) for shard in indexed.shards]
        index.seal(indexed.staging, indexed.plan, shards, provenance, indexed.contents)
        faults = verify_structure(indexed.staging)
        if faults:
            findings = [str(fault) for fault in faults]
            raise VerificationError("the finished folder has faults", findings=findings)
        return replace(indexed, shards=tuple(shards), completed=completed)

    return world.control.on_first(prove)


def publish_folder(
    world: World, target: Target, indexed: IndexedFolder | None, options: TargetOptions
) -> Completed | None:
    """Step 10, called by all ranks: the staging folder gets the target's name. On rank 0, all that is to
    be said of the folder, what could not be done afterwards included.
    """

    def name() -> Completed:
        assert indexed is not None
        publish.check_target(target.folder, overwrite=options.overwrite, beside=options.beside)
        put = publish.publish_beside if options.beside else publish.publish
        notes = put(target.staging, target.folder)
        return replace(indexed.completed, notes=(*indexed.completed.notes, *notes))

    return world.control.on_first(name)
