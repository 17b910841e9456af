"""From options to a plan, on metadata alone. `plan` and `export` both begin here."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

from pp_export.architecture import accounting, rules, sizes
from pp_export.architecture.accounting import Account
from pp_export.architecture.rules import Architecture
from pp_export.architecture.sizes import ModelSizes
from pp_export.checkpoint.catalog import Catalog
from pp_export.checkpoint.source import Source, holders_of
from pp_export.core import dtypes
from pp_export.core.errors import RuleError
from pp_export.core.grid import choose_grid
from pp_export.core.options import TargetOptions, parse_bytes, parse_leaders
from pp_export.core.tensors import Shape
from pp_export.planning.export_plan import ExportPlan
from pp_export.planning.planner import make_plan, units_of
from pp_export.reference import config_json
from pp_export.reference.expected_tensors import ExpectedTensors
from pp_export.reference.folder import Reference, read_reference, reference_specs

Expected = tuple[Mapping[str, Shape | None] | None, str]


@dataclass(frozen=True)
class ExportInputs:
    """What is exported: the checkpoint's catalog, the reference, and the account of one against the other.

    Made on rank 0, where everything is checked; the other ranks get `to_bytes`, which leaves out the
    reference's files and the expected tensors, since nothing they decide depends on those.
    """

    catalog: Catalog
    config: Mapping[str, Any]
    architecture: Architecture
    sizes: ModelSizes
    account: Account

    def to_bytes(self) -> bytes:
        config = json.dumps(self.config).encode()
        return len(config).to_bytes(8, "little") + config + self.catalog.to_bytes()

    @classmethod
    def from_bytes(cls, image: bytes, options: TargetOptions) -> ExportInputs:
        """The same sources on another rank."""
        end = 8 + int.from_bytes(image[:8], "little")
        return _sources(
            Catalog.from_bytes(image[end:]),
            json.loads(image[8:end]),
            options,
            lambda: (None, accounting.TABLE),
        )


@dataclass(frozen=True)
class PendingInputs:
    """The reference, and the child process that is finding out what the model's definition expects."""

    reference: Reference
    config: Mapping[str, Any]
    expecting: ExpectedTensors


def ask(options: TargetOptions) -> Future[PendingInputs]:
    """Start finding out what the model expects; called on rank 0 only.

    It takes seconds in a process of its own, so it comes before everything else that takes time. What is
    wrong with the reference is raised by the future's `result`, at a point where all ranks hear it.
    """
    asked: Future[PendingInputs] = Future()
    try:
        reference = read_reference(options.reference, code=options.code)
        config, _ = config_json.corrected(reference.config, vocab_size=options.vocab_size)
        asked.set_result(PendingInputs(reference, config, ExpectedTensors.start(config)))
    except Exception as error:  # noqa: BLE001  raised by `result`
        asked.set_exception(error)
    return asked


def forget(asked: Future[PendingInputs]) -> None:
    """End the child process of `ask`, if it still runs."""
    if asked.exception() is None:
        with asked.result().expecting:
            """Leaving it ends the child."""


def read_inputs(
    origin: Source, options: TargetOptions, question: PendingInputs
) -> tuple[ExportInputs, Reference]:
    """Read all metadata and settle the account; called on rank 0 only. No tensor byte is read."""
    with question.expecting as expecting:
        catalog = origin.describe()
        answer = partial(_expected, expecting, question.reference)
        return _sources(catalog, question.config, options, answer), question.reference


def plan_export(sources: ExportInputs, options: TargetOptions, world_size: int) -> ExportPlan:
    """The plan for `world_size` ranks; pure, so that every rank comes to the same.

    A grid that the user asks for goes before that of a checkpoint with one file per rank: any rank can read
    any file.
    """
    pipeline, tensor, expert = asked = [
        getattr(options, f"{axis}_parallel", None) for axis in ("pipeline", "tensor", "expert")
    ]
    is_asked = any(size is not None for size in asked)
    return make_plan(
        sources.account,
        sources.catalog.slices,
        choose_grid(world_size, pipeline, tensor, expert, len(units_of(sources.account))),
        max_shard_bytes=parse_bytes(options.max_shard_size),
        leaders_per_stage=parse_leaders(options.leaders_per_stage),
        holders=None if is_asked else holders_of(sources.catalog, world_size),
    )


def _expected(expecting: ExpectedTensors, reference: Reference) -> Expected:
    """From the model's definition; else the names that the reference's own weights have, with shapes where
    the files are there.
    """
    if (shapes := expecting.result()) is not None:
        return shapes, accounting.DEFINITION
    if reference.weights is None:
        return None, accounting.TABLE
    specs = reference_specs(reference) or {}
    return {
        name: specs[name].shape if name in specs else None for name in reference.weights
    }, accounting.INDEX


def _sources(
    catalog: Catalog,
    config: Mapping[str, Any],
    options: TargetOptions,
    expect: Callable[[], Expected],
) -> ExportInputs:
    """Sizes are settled first: if they disagree, saying so helps more than what follows from it."""
    architecture = _architecture(config, options.architecture)
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
        return rules.load(table if table.endswith((".yaml", ".yml")) else f"{table}.yaml")
    classes = config.get("architectures")
    if not isinstance(classes, list) or len(classes) != 1:
        raise RuleError(
            "the reference config.json must name one model class",
            expected='"architectures": ["..."]',
            got=classes,
            advice="add it, or pass a table with --architecture FILE.yaml",
        )
    return rules.for_class(str(classes[0]))
