"""Steps 1 and 2, on metadata alone: what is exported, and the plan for it. `plan` and `export` both begin
here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pp_export.architecture import accounting, rules, sizes, table_files
from pp_export.architecture.accounting import Account
from pp_export.architecture.rules import Architecture
from pp_export.architecture.sizes import ModelSizes
from pp_export.checkpoint.catalog import Catalog, holders_of
from pp_export.checkpoint.source import Source
from pp_export.core import dtypes
from pp_export.core.digest import json_digest
from pp_export.core.errors import RuleError
from pp_export.core.tensors import Shape
from pp_export.core.version import VERSION
from pp_export.distributed.world import World
from pp_export.options.kinds import ResultOptions, TargetOptions, parse_bytes, parse_leaders
from pp_export.planning.export_plan import ExportPlan
from pp_export.planning.planner import make_plan, units_of
from pp_export.planning.rank_grid import choose_grid
from pp_export.reference import config_json
from pp_export.reference.expected_tensors import ExpectedTensors
from pp_export.reference.own_weights import read_specs
from pp_export.reference.reference_folder import Reference, read_reference
from pp_export.steps.target import Target

Expected = tuple[Mapping[str, Shape | None] | None, str]
"""Names and shapes (None where not known), and where they are from; None where nothing is known."""


@dataclass(frozen=True)
class ExportInputs:
    """What is exported: the checkpoint's catalog, the reference, and the account of one against the other.

    Made on rank 0, where everything is checked. The other ranks get `to_bytes`, the table included, and
    have no `reference`: nothing they decide depends on its files.
    """

    catalog: Catalog
    config: Mapping[str, Any]
    architecture: Architecture
    sizes: ModelSizes
    account: Account
    reference: Reference | None = None

    def to_bytes(self) -> bytes:
        architecture = {"name": self.architecture.name, "table": self.architecture.table}
        head = json.dumps({"config": self.config, "architecture": architecture}).encode()
        return len(head).to_bytes(8, "little") + head + self.catalog.to_bytes()

    @classmethod
    def from_bytes(cls, image: bytes, options: ResultOptions) -> ExportInputs:
        """The same inputs on another rank."""
        end = 8 + int.from_bytes(image[:8], "little")
        head = json.loads(image[8:end])
        architecture = rules.checked(**head["architecture"])
        catalog = Catalog.from_bytes(image[end:])
        return _inputs(catalog, head["config"], architecture, options, lambda: (None, accounting.TABLE))


class PendingInputs:
    """The reference, and the child process that is finding out what the model's definition expects; on
    rank 0 only.

    The child takes seconds, so it is started before everything else that takes time. What is wrong with
    the reference is raised by `result`, at a point where all ranks hear it.
    """

    def __init__(self, options: TargetOptions) -> None:
        self._error: Exception | None = None
        try:
            self.reference = read_reference(options.reference, code=options.code)
            self.config, _ = config_json.corrected(self.reference.config, vocab_size=options.vocab_size)
            self._expecting = ExpectedTensors.start(self.config)
        except Exception as error:  # noqa: BLE001  raised by `check` and `result`
            self._error = error

    @classmethod
    def start(cls, options: TargetOptions) -> PendingInputs:
        """Start the child and return at once."""
        return cls(options)

    def check(self) -> None:
        """Raise what is wrong with the reference."""
        if self._error is not None:
            raise self._error

    def result(self) -> Expected:
        """Wait for what is expected: from the model's definition; else the names that the reference's own
        weights have, with shapes where the files are there; else nothing. And where it is from.
        """
        self.check()
        with self._expecting as expecting:
            shapes = expecting.result()
        if shapes is not None:
            return shapes, accounting.DEFINITION
        if self.reference.weights is None:
            return None, accounting.TABLE
        specs = read_specs(self.reference.folder, self.reference.weights) or {}
        names = self.reference.weights
        return {name: specs[name].shape if name in specs else None for name in names}, accounting.INDEX

    def cancel(self) -> None:
        """End the child, if it still runs."""
        if self._error is None:
            self._expecting.close()


def describe(
    source: Source, target: Target, options: TargetOptions, world: World, pending: PendingInputs | None
) -> ExportInputs:
    """Step 1, called by all ranks. Rank 0 checks the target, then reads and checks all metadata; the others
    get what they need of it. `pending` is rank 0's, if it was started ahead.
    """
    world.control.same({"the version of pp_export": VERSION, "the options": json_digest(options.to_json())})
    world.data.connect()
    announced: list[bytes] = []
    if not source.is_shared:
        world.control.together(source.check)
        announced = world.control.gather(source.announce())
    mine: list[ExportInputs] = []

    def read() -> bytes:
        target.check(options, source.folders)
        mine.append(read_inputs(source, options, pending or PendingInputs.start(options), announced))
        return mine[0].to_bytes() if world.size > 1 else b""

    image = world.control.share(read)
    inputs = mine[0] if mine else ExportInputs.from_bytes(image, options)
    if options.architecture is not None:
        world.control.together(lambda: _check_own_table(inputs.architecture, options.architecture))
    return inputs


def read_inputs(
    source: Source, options: ResultOptions, pending: PendingInputs, announced: Sequence[bytes] = ()
) -> ExportInputs:
    """Read all metadata and settle the account; called on rank 0 only. No tensor byte is read."""
    try:
        pending.check()
        catalog = source.describe(announced)
        architecture = _architecture(pending.config, options.architecture)
        inputs = _inputs(catalog, pending.config, architecture, options, pending.result)
    finally:
        pending.cancel()
    return replace(inputs, reference=pending.reference)


def agree_on_plan(inputs: ExportInputs, options: TargetOptions, world: World) -> ExportPlan:
    """Step 2, called by all ranks: the plan, the same on all of them or an error on all of them."""
    plan = plan_export(inputs, options, world.size)
    world.control.same({"the plan": plan.fingerprint})
    return plan


def plan_export(inputs: ExportInputs, options: TargetOptions, world_size: int) -> ExportPlan:
    """The plan for `world_size` ranks; pure, so that every rank comes to the same.

    A grid that the user asks for goes before that of a checkpoint with one file per rank: any rank can read
    any file.
    """
    pipeline, tensor, expert = asked = [
        getattr(options, f"{axis}_parallel", None) for axis in ("pipeline", "tensor", "expert")
    ]
    is_asked = any(size is not None for size in asked)
    # The file of the table may have another name elsewhere; its content counts.
    result = {**options.result.to_json(), "architecture": inputs.architecture.table}
    return make_plan(
        inputs.account,
        inputs.catalog.slices,
        choose_grid(world_size, pipeline, tensor, expert, len(units_of(inputs.account))),
        max_shard_bytes=parse_bytes(options.max_shard_size),
        leaders_per_stage=parse_leaders(options.leaders_per_stage),
        holders=None if is_asked else holders_of(inputs.catalog, world_size),
        basis=json_digest([VERSION, result]),
    )


def _inputs(
    catalog: Catalog,
    config: Mapping[str, Any],
    architecture: Architecture,
    options: ResultOptions,
    expect: Callable[[], Expected],
) -> ExportInputs:
    """Sizes are settled first: if they disagree, saying so helps more than what follows from it."""
    model = sizes.reconcile(architecture, catalog.description.args, config, catalog.specs, options.vocab_size)
    expected, truth = expect()
    account = accounting.account(
        architecture,
        catalog.specs,
        model,
        expected=expected,
        truth=truth,
        dtype=None if options.dtype == "checkpoint" else dtypes.from_torch(options.dtype),
        drop_mtp=options.mtp == "drop",
    )
    return ExportInputs(catalog, config, architecture, model, account)


def _architecture(config: Mapping[str, Any], table: str | None) -> Architecture:
    """The user's table, or the packaged one for the class that config.json names."""
    if table is not None:
        return table_files.load(_table_file(table))
    classes = config.get("architectures")
    if not isinstance(classes, list) or len(classes) != 1:
        raise RuleError(
            "the reference config.json must name one model class",
            expected='"architectures": ["..."]',
            got=classes,
            advice="add it, or pass a table with --architecture FILE.yaml",
        )
    return table_files.for_class(str(classes[0]))


def _table_file(table: str) -> str:
    return table if table.endswith((".yaml", ".yml")) else f"{table}.yaml"


def _check_own_table(shared: Architecture, table: str | None) -> None:
    """Rank 0's table counts. Where this rank sees a file of that name too, it must mean the same: another
    one tells of nodes that were not set up alike.
    """
    if table is None or not Path(_table_file(table)).is_file():
        return
    own = table_files.load(_table_file(table))
    if json_digest(own.table) != json_digest(shared.table):
        raise RuleError(
            "the architecture table is another one on this rank",
            where={"table": Path(_table_file(table)).absolute()},
            expected=f"digest {json_digest(shared.table)} (rank 0)",
            got=f"digest {json_digest(own.table)}",
            advice="give all nodes the same file, or put it on a filesystem that they share",
        )
