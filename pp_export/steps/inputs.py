"""Steps 1 and 2, on metadata alone: what is exported, and the plan for it. `plan` and `export` both begin
here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pp_export.architecture import table_files
from pp_export.architecture.accounting import Account
from pp_export.architecture.rules import Architecture
from pp_export.architecture.sizes import ModelSizes
from pp_export.checkpoint.catalog import Catalog
from pp_export.checkpoint.folder_source import CheckpointSource
from pp_export.checkpoint.source import Source
from pp_export.checkpoint.weights_digest import weights_digest
from pp_export.core.digest import json_digest
from pp_export.core.errors import OptionError, RuleError
from pp_export.core.file_names import ADAPTER_CONFIG
from pp_export.core.version import VERSION
from pp_export.distributed import backends
from pp_export.distributed.backends import Backend, RankFacts
from pp_export.distributed.world import World
from pp_export.options.kinds import ResultOptions, SourceOptions, TargetOptions
from pp_export.options.texts import parse_bytes, parse_leaders
from pp_export.planning import part_image
from pp_export.planning.assign_holders import Holders
from pp_export.planning.export_plan import ExportPlan
from pp_export.planning.output_files import ADAPTER, LAYERS, REFERENCE, SIZE, Layout
from pp_export.planning.planner import make_plan, unit_bytes
from pp_export.planning.proof import ProvedPart
from pp_export.planning.rank_grid import choose_grid
from pp_export.planning.rank_plan import RankPlan
from pp_export.reference.reference_folder import Reference, digests_of
from pp_export.steps import model, named_model
from pp_export.steps.adapters import with_base
from pp_export.steps.capacity import capacity_of
from pp_export.steps.from_reference import with_reference
from pp_export.steps.model import SettledModel, settle
from pp_export.steps.pending import PendingInputs, table_file
from pp_export.steps.preflight import preflight
from pp_export.steps.target import Target


@dataclass(frozen=True)
class ExportInputs:
    """What is exported: the checkpoint's catalog, the model that it is, and the account of one against the
    other.

    Made on rank 0, where everything is checked, and known there only. `digest` tells this save and reference
    from others; None for a live model.
    """

    catalog: Catalog
    architecture: Architecture
    sizes: ModelSizes
    account: Account
    model: SettledModel
    reference: Reference
    digest: str | None = None


@dataclass(frozen=True)
class OwnPart:
    """What a rank reads, sends, gathers and writes, and the catalog of what it reads."""

    plan: RankPlan
    catalog: Catalog


@dataclass(frozen=True)
class Whole:
    """What is exported, and the plan for it; `notes` on what an earlier run has left. Known on rank 0."""

    inputs: ExportInputs
    plan: ExportPlan
    notes: tuple[str, ...] = ()


def checkpoint_source(options: SourceOptions) -> CheckpointSource:
    """The source that the options name; nothing is looked at yet."""
    return CheckpointSource(
        options.checkpoint, options.iteration, options.check_source, masters=options.weights == "master"
    )


def describe(
    source: Source, target: Target, options: TargetOptions, world: World, pending: PendingInputs | None
) -> ExportInputs | None:
    """Step 1, called by all ranks: when all are found fit, rank 0 reads and checks all metadata; the others
    only hear that this went well. `pending` is rank 0's. What the model's definition has not said yet is left
    to `steps.confirmation`.
    """
    preflight(source, target, options, world, pending)
    announced = [] if source.is_shared else world.control.gather(source.announce())
    mine: list[ExportInputs] = []

    def read() -> bytes:
        assert pending is not None
        mine.append(read_inputs(source, options, pending, announced))
        return json_digest(mine[0].architecture.table).encode()

    digest = world.control.share(read).decode()
    if options.architecture is not None:
        world.control.together(lambda: _check_own_table(digest, options.architecture))
    return mine[0] if mine else None


def read_inputs(
    source: Source,
    options: ResultOptions,
    pending: PendingInputs,
    announced: Sequence[bytes] = (),
    *,
    wait: bool = False,
) -> ExportInputs:
    """Read all metadata and settle the account, with the model's definition if it is known or to `wait` for;
    called on rank 0 only. No tensor byte is read.
    """
    pending.check()
    catalog = source.describe(announced)
    pending.hear(catalog)
    catalog = with_reference(catalog, pending.reference, options.take_missing_from_reference)
    catalog = with_base(catalog, options)
    read_statements = named_model.read_statements if catalog.has_hf_names else model.read_statements
    found = settle(read_statements(catalog, pending, options), pending, wait=wait)
    return ExportInputs(
        catalog,
        pending.architecture,
        found.sizes,
        found.account,
        found.model,
        pending.reference,
        inputs_digest(catalog, pending.reference),
    )


def inputs_digest(catalog: Catalog, reference: Reference) -> str | None:
    """What tells a save and a reference from others, whatever the options are; None for a live model."""
    weights = weights_digest(catalog)
    return None if weights is None else json_digest([weights, digests_of(reference)])


def make_whole(inputs: ExportInputs | None, options: TargetOptions, world: World) -> Whole | None:
    """Step 2, called by all ranks: rank 0 makes the plan of its `inputs`."""

    def make() -> Whole:
        assert inputs is not None
        return Whole(inputs, plan_export(inputs, options, world.size))

    return world.control.on_first(make)


def agree_on_plan(whole: Whole | None, options: TargetOptions, world: World) -> OwnPart:
    """The rest of step 2, called by all ranks: each gets its own part of the plan, proved to belong to the
    whole, which rank 0 has.
    """

    def tell() -> Sequence[bytes]:
        assert whole is not None
        plan, catalog = whole.plan, whole.inputs.catalog
        return [_image(plan, catalog, rank) if rank else b"" for rank in range(world.size)]

    image = world.control.scatter(tell)
    if whole is not None:
        world.control.same({"the plan": whole.plan.fingerprint})
        return OwnPart(whole.plan.part_of(0), whole.inputs.catalog)
    begin = 8 + int.from_bytes(image[:8], "little")
    proved = ProvedPart.from_bytes(image[8:begin])
    fingerprint = proved.fingerprint(world.rank, world.size)
    world.control.same({"the plan": fingerprint})
    part = part_image.from_bytes(proved.body, fingerprint)
    return OwnPart(replace(part, capacity=capacity_of(options)), Catalog.from_bytes(image[begin:]))


def _image(plan: ExportPlan, catalog: Catalog, rank: int) -> bytes:
    """The part of a rank, and what it needs of the catalog."""
    own = plan.image_of(rank)
    return len(own).to_bytes(8, "little") + own + catalog.image_of(plan.part_of(rank).items)


def agree_on_backend(
    source: Source, own: RankPlan, whole: Whole | None, options: TargetOptions, world: World
) -> Backend:
    """The end of step 2, called by all ranks: what carries the values. Rank 0 chooses, once it knows what
    the ranks are; where nothing is sent, nobody is asked.
    """
    if not own.num_links:
        return backends.expected(options.backend, ())
    facts = world.control.gather(backends.facts(source.device).to_bytes())

    def choose() -> bytes:
        assert whole is not None
        ranks = [RankFacts.from_bytes(image) for image in facts]
        return backends.choose(options.backend, whole.plan.groups, ranks).to_bytes()

    return Backend.from_bytes(world.control.share(choose))


def plan_export(inputs: ExportInputs, options: TargetOptions, world_size: int) -> ExportPlan:
    """The plan for `world_size` ranks; pure."""
    pipeline, tensor, expert = asked = [
        getattr(options, f"{axis}_parallel", None) for axis in ("pipeline", "tensor", "expert")
    ]
    grid, holders, catalog = None, None, inputs.catalog
    if any(size is not None for size in asked):
        grid = choose_grid(world_size, pipeline, tensor, expert, list(unit_bytes(inputs.account).values()))
    if catalog.holders is not None:
        holders = Holders(catalog.holders, [item.file for item in catalog.stored_items])
    # The file of the table may have another name elsewhere; its content counts.
    result = {**options.result.to_json(), "architecture": inputs.architecture.table}
    plan = make_plan(
        inputs.account,
        catalog.slices,
        world_size,
        max_shard_bytes=parse_bytes(options.max_shard_size),
        layout=layout_of(
            options,
            inputs.reference,
            is_consolidation=catalog.has_hf_names,
            is_adapter=inputs.model.config.file == ADAPTER_CONFIG,
        ),
        grid=grid,
        holders=holders,
        leaders_per_stage=parse_leaders(options.leaders_per_stage),
        basis=json_digest([VERSION, result]),
        capacity=capacity_of(options),
    )
    _check_memory(plan, options)
    return plan


def layout_of(
    options: ResultOptions, reference: Reference, *, is_consolidation: bool, is_adapter: bool = False
) -> Layout:
    """How the result is cut into files. Raises OptionError where it is to be as a reference that has no
    weights of its own, nor an index.
    """
    kind = options.layout
    if is_adapter:
        return Layout(ADAPTER)
    if kind == "auto":
        with_files = REFERENCE if reference.weights else SIZE
        kind = with_files if is_consolidation else LAYERS
    if kind != REFERENCE:
        return Layout(kind)
    if not reference.weights:
        raise OptionError(
            "--layout reference needs the index of the reference's weights, and it has none",
            where={"reference": reference.folder} if reference.is_there else None,
            expected="model.safetensors.index.json or model.safetensors",
            advice="add the index (the weights aren't needed), or choose --layout layers or size",
        )
    return Layout(REFERENCE, reference.weights)


def _check_memory(plan: ExportPlan, options: TargetOptions) -> None:
    """A limit that not even one shard in flight keeps to is refused before anything is read."""
    if options.memory_limit is None:
        return
    most = max(plan.parts, key=lambda part: part.peak_bytes)
    if most.peak_bytes > parse_bytes(options.memory_limit):
        raise OptionError(
            "--memory-limit is less than a rank needs for one shard in flight",
            where={"rank": most.rank},
            expected=f"at least {most.peak_bytes:,} bytes",
            got=options.memory_limit,
            advice="a smaller --max-shard-size, fewer --threads or more ranks need less",
        )


def _check_own_table(digest: str, table: str | None) -> None:
    """Rank 0's table counts, whose digest is given. Where this rank sees a file of that name too, it must
    mean the same: another one tells of nodes that were not set up alike.
    """
    if table is None or not Path(table_file(table)).is_file():
        return
    own = table_files.load(table_file(table))
    if json_digest(own.table) != digest:
        raise RuleError(
            "this rank has another architecture table than rank 0",
            where={"table": Path(table_file(table)).absolute()},
            expected=f"digest {digest} (rank 0)",
            got=f"digest {json_digest(own.table)}",
            advice="give all nodes the same file, or put it on a filesystem that they share",
        )
