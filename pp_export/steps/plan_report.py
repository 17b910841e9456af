"""A plan as plain values: what an export would do, file by file and rank by rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pp_export.core.collector import paused_collector
from pp_export.core.json_values import to_json_value
from pp_export.distributed.backends import expected
from pp_export.options.cluster import ClusterOptions
from pp_export.steps.plan_summary import PlanSummary, notes_on, summarize
from pp_export.steps.prediction_report import PredictionReport, predicted

if TYPE_CHECKING:
    from pp_export.checkpoint.source import Source
    from pp_export.core.tensors import Shape
    from pp_export.options.kinds import ExportOptions, TargetOptions
    from pp_export.planning.export_plan import ExportPlan
    from pp_export.steps.inputs import ExportInputs

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class PlannedTensor:
    """Element type (torch's word) and shape of a tensor."""

    dtype: str
    shape: Shape


@dataclass(frozen=True)
class PlannedRange:
    """Bytes [begin, end) of a file, the rank that writes them, and its stage."""

    stage: int
    leader: int
    begin: int
    end: int


@dataclass(frozen=True)
class PlannedShard:
    """A file: its unit of the model, the ranks that write it, one for each of its `ranges`, its size, its
    tensors in file order.
    """

    file: str
    unit: str
    ranges: tuple[PlannedRange, ...]
    bytes: int
    tensors: Mapping[str, PlannedTensor]


@dataclass(frozen=True)
class PlannedRank:
    """What a rank does; its stage is None where it has nothing to do. `peak_bytes` is of anonymous memory."""

    rank: int
    stage: int | None
    read_bytes: int
    sent_bytes: int
    written_bytes: int
    peak_bytes: int


@dataclass(frozen=True, kw_only=True)
class PlanReport:
    """What an export would do. `backend` is what is expected to carry values between ranks, for the
    `backend_reason`; None where none are sent. A rank has `threads`, and so at most one shard more in flight,
    as far as `memory_limit` (bytes) allows; `shards_in_flight` are the most of any rank. `total_size` is in
    bytes of tensors, without the files' headers. `config_origins` tells of each key of a config.json that is
    made without a reference where its value comes from.
    """

    architecture: str
    expected_from: str
    expected_cached: bool
    dropped: Mapping[str, str]
    taken_from_reference: tuple[str, ...]
    sizes: Mapping[str, int]
    sizes_from: str
    settings: Mapping[str, Any]
    settings_unchecked: tuple[str, ...]
    args_unknown: tuple[str, ...]
    config_corrections: tuple[str, ...]
    config_additions: tuple[str, ...]
    config_origins: Mapping[str, str]
    notes: tuple[str, ...]
    total_size: int
    total_parameters: int
    fingerprint: str
    backend: str | None
    backend_reason: str
    threads: int
    shards_in_flight: int
    memory_limit: int | None
    summary: PlanSummary
    prediction: PredictionReport
    shards: tuple[PlannedShard, ...]
    ranks: tuple[PlannedRank, ...]

    def __repr__(self) -> str:
        return (
            f"PlanReport(architecture={self.architecture!r}, files={len(self.shards)},"
            f" bytes={self.total_size}, ranks={len(self.ranks)}, stages={self.num_stages})"
        )

    @property
    def num_stages(self) -> int:
        return len({rank.stage for rank in self.ranks} - {None})

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values, as `pp_export plan --json` gives it; see `schemas/plan.json`."""
        return {"schema_version": SCHEMA_VERSION, **to_json_value(self)}


def plan_checkpoint(options: ExportOptions, cluster: ClusterOptions, *, here: bool) -> PlanReport:
    """What an export with `options` on `cluster` would do, as `plan_source` of a checkpoint."""
    from pp_export.steps.inputs import checkpoint_source

    return plan_source(checkpoint_source(options), options, cluster, here=here)


def plan_source(source: Source, options: TargetOptions, cluster: ClusterOptions, *, here: bool) -> PlanReport:
    """What an export of `source`, or a consolidation, with `options` on `cluster` would do; called by one
    process, reads metadata only.

    Where the export would be made `here`, raises what it would refuse: it is tried what the output allows,
    and nothing is left of that. Otherwise the output says nothing.
    """
    from pp_export.steps import resumption
    from pp_export.steps.inputs import Whole, plan_export, read_inputs
    from pp_export.steps.pending import PendingInputs
    from pp_export.steps.preflight import check_here, check_space, target_of_plan
    from pp_export.steps.target import check_path

    check_path(options)
    pending = PendingInputs.start(options)
    try:
        if here:
            check_here(source, options, pending)
        with paused_collector():
            inputs = read_inputs(source, options, pending, wait=True)
            plan = plan_export(inputs, options, cluster.world_size)
        if here:
            target, whole = target_of_plan(options), Whole(inputs, plan)
            resumes = resumption.is_asked(options)
            there = resumption.num_bytes_there(target, whole, options) if resumes else 0
            check_space(target, plan, there)
    finally:
        pending.cancel()
    return plan_report(inputs, plan, options.backend, cluster, verify=options.verify)


def plan_report(
    inputs: ExportInputs,
    plan: ExportPlan,
    asked: str,
    cluster: ClusterOptions | None = None,
    *,
    verify: bool = True,
) -> PlanReport:
    """The report of a plan; called on rank 0. `asked` is the backend that the user asked for; without a
    `cluster` it is predicted for the one that the options' defaults say.
    """
    cluster = cluster or ClusterOptions(world_size=plan.world_size)
    num_boxes = sum(map(len, inputs.catalog.slices.values()))
    backend = expected(asked, plan.groups)
    model, reference = inputs.model, inputs.reference
    return PlanReport(
        architecture=inputs.architecture.name,
        expected_from=inputs.account.truth,
        expected_cached=model.is_cached,
        dropped=dict(inputs.account.dropped),
        taken_from_reference=inputs.account.taken,
        sizes={**inputs.sizes.values, "padded_vocab_size": inputs.sizes.padded_vocab_size},
        sizes_from=inputs.sizes.source,
        settings=to_json_value(dict(model.meaning.values)),
        settings_unchecked=model.meaning.unchecked,
        args_unknown=model.args_unknown,
        config_corrections=model.config.corrections,
        config_additions=model.config.additions,
        config_origins=dict(model.config.origins),
        notes=(
            *inputs.catalog.description.notes,
            *model.notes,
            *reference.notes,
            *notes_on(plan, is_live=inputs.catalog.holders is not None),
        ),
        total_size=plan.total_size,
        total_parameters=plan.total_parameters,
        fingerprint=plan.fingerprint,
        backend=backend.name,
        backend_reason=backend.why,
        threads=plan.capacity.threads,
        shards_in_flight=max(part.shards_in_flight for part in plan.parts),
        memory_limit=plan.capacity.memory_bytes,
        summary=summarize(plan),
        prediction=predicted(plan, num_boxes, cluster, verify=verify),
        shards=tuple(
            PlannedShard(
                ranges[0].file,
                ranges[0].unit,
                tuple(
                    PlannedRange(each.stage, each.leader, each.range.begin, each.range.end) for each in ranges
                ),
                ranges[0].range.file_bytes,
                {
                    place.name: PlannedTensor(place.spec.dtype.torch_name, place.spec.shape)
                    for each in ranges
                    for place in each.tensors
                },
            )
            for ranges in plan.files
        ),
        ranks=tuple(
            PlannedRank(
                part.rank,
                plan.stage_of_rank.get(part.rank),
                part.read_bytes,
                part.sent_bytes,
                part.written_bytes,
                part.peak_bytes,
            )
            for part in plan.parts
        ),
    )
