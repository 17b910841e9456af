"""Steps 1 and 2, on metadata alone: what is exported, and the plan for it. `plan` and `export` both begin
here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pp_export.architecture import rules, table_files
from pp_export.architecture.accounting import Account
from pp_export.architecture.rules import Architecture
from pp_export.architecture.sizes import ModelSizes
from pp_export.checkpoint.catalog import Catalog
from pp_export.checkpoint.source import Source
from pp_export.core.digest import json_digest
from pp_export.core.errors import RuleError
from pp_export.core.version import VERSION
from pp_export.distributed import backends
from pp_export.distributed.backends import Backend, RankFacts
from pp_export.distributed.world import World
from pp_export.options.kinds import ResultOptions, TargetOptions, parse_bytes, parse_leaders
from pp_export.planning.assign_holders import Holders
from pp_export.planning.export_plan import ExportPlan
from pp_export.planning.planner import make_plan, unit_bytes
from pp_export.planning.rank_grid import choose_grid
from pp_export.reference.reference_folder import Reference
from pp_export.steps.model import NOTHING_EXPECTED, SettledModel, settle_account, settle_model
from pp_export.steps.pending import PendingInputs, table_file
from pp_export.steps.target import Target


@dataclass(frozen=True)
class ExportInputs:
    """What is exported: the checkpoint's catalog, the model that it is, and the account of one against the
    other.

    Made on rank 0, where everything is checked. The other ranks get `to_bytes`, the table included, and have
    neither `model` nor `reference`: nothing they decide depends on what is in them.
    """

    catalog: Catalog
    architecture: Architecture
    sizes: ModelSizes
    account: Account
    model: SettledModel | None = None
    reference: Reference | None = None

    def to_bytes(self) -> bytes:
        architecture = {"name": self.architecture.name, "table": self.architecture.table}
        head = json.dumps({"sizes": asdict(self.sizes), "architecture": architecture}).encode()
        return len(head).to_bytes(8, "little") + head + self.catalog.to_bytes()

    @classmethod
    def from_bytes(cls, image: bytes, options: ResultOptions) -> ExportInputs:
        """The same inputs on another rank."""
        end = 8 + int.from_bytes(image[:8], "little")
        head = json.loads(image[8:end])
        architecture = rules.checked(**head["architecture"])
        catalog = Catalog.from_bytes(image[end:])
        sizes = ModelSizes(**head["sizes"])
        return cls(
            catalog,
            architecture,
            sizes,
            settle_account(catalog, architecture, sizes, NOTHING_EXPECTED, options),
        )


def describe(
    source: Source, target: Target, options: TargetOptions, world: World, pending: PendingInputs | None
) -> ExportInputs:
    """Step 1, called by all ranks. Rank 0 checks the target, then reads and checks all metadata; the others
    get what they need of it. `pending` is rank 0's. What the model's definition has not said yet is left to
    `steps.confirmation`.
    """
    world.control.same({"the version of pp_export": VERSION, "the options": json_digest(options.to_json())})
    if options.backend == backends.NCCL:
        world.control.together(lambda: backends.check(options.backend))
    announced: list[bytes] = []
    if not source.is_shared:
        world.control.together(source.check)
        announced = world.control.gather(source.announce())
    mine: list[ExportInputs] = []

    def read() -> bytes:
        assert pending is not None
        pending.check()
        target.check(options, source.folders)
        mine.append(read_inputs(source, options, pending, announced))
        return mine[0].to_bytes() if world.size > 1 else b""

    image = world.control.share(read)
    inputs = mine[0] if mine else ExportInputs.from_bytes(image, options)
    if options.architecture is not None:
        world.control.together(lambda: _check_own_table(inputs.architecture, options.architecture))
    return inputs


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
    found = settle_model(catalog, pending, options, wait=wait)
    return ExportInputs(
        catalog, pending.architecture, found.sizes, found.account, found.model, pending.reference
    )


def agree_on_plan(inputs: ExportInputs, options: TargetOptions, world: World) -> ExportPlan:
    """Step 2, called by all ranks: the plan, the same on all of them or an error on all of them."""
    plan = plan_export(inputs, options, world.size)
    world.control.same({"the plan": plan.fingerprint})
    return plan


def agree_on_backend(source: Source, plan: ExportPlan, options: TargetOptions, world: World) -> Backend:
    """The end of step 2, called by all ranks: what carries the values. Rank 0 chooses, once it knows what
    the ranks are; where nothing is sent, nobody is asked.
    """
    if not plan.groups:
        return backends.expected(options.backend, ())
    facts = world.control.gather(backends.facts(source.device).to_bytes())

    def choose() -> bytes:
        ranks = [RankFacts.from_bytes(image) for image in facts]
        return backends.choose(options.backend, plan.groups, ranks).to_bytes()

    return Backend.from_bytes(world.control.share(choose))


def plan_export(inputs: ExportInputs, options: TargetOptions, world_size: int) -> ExportPlan:
    """The plan for `world_size` ranks; pure, so that every rank comes to the same."""
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
    return make_plan(
        inputs.account,
        catalog.slices,
        world_size,
        max_shard_bytes=parse_bytes(options.max_shard_size),
        grid=grid,
        holders=holders,
        leaders_per_stage=parse_leaders(options.leaders_per_stage),
        basis=json_digest([VERSION, result]),
    )


def _check_own_table(shared: Architecture, table: str | None) -> None:
    """Rank 0's table counts. Where this rank sees a file of that name too, it must mean the same: another
    one tells of nodes that were not set up alike.
    """
    if table is None or not Path(table_file(table)).is_file():
        return
    own = table_files.load(table_file(table))
    if json_digest(own.table) != json_digest(shared.table):
        raise RuleError(
            "the architecture table is another one on this rank",
            where={"table": Path(table_file(table)).absolute()},
            expected=f"digest {json_digest(shared.table)} (rank 0)",
            got=f"digest {json_digest(own.table)}",
            advice="give all nodes the same file, or put it on a filesystem that they share",
        )
