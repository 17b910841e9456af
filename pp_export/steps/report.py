"""What an export has to say about itself, to people and machines."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pp_export.core import errors
from pp_export.core.errors import ExportError
from pp_export.core.json_values import to_json_value
from pp_export.core.timeline import RankTimeline, Timeline
from pp_export.core.words import counted
from pp_export.options.consolidation import ConsolidateOptions
from pp_export.options.kinds import SourceOptions, TargetOptions
from pp_export.shards.manifests import Errors
from pp_export.steps import adapters
from pp_export.steps.plan_summary import notes_on
from pp_export.steps.quantized import errors_json, errors_note, not_quantized
from pp_export.steps.versions import versions

if TYPE_CHECKING:
    from pp_export.checkpoint.catalog import Catalog
    from pp_export.distributed.backends import Backend
    from pp_export.distributed.world import World
    from pp_export.steps.inputs import Whole
    from pp_export.steps.measured import Measured

SCHEMA_VERSION = 1

_RANK_0_ONLY: Mapping[str, Any] = {
    "dropped": {},
    "taken_from_reference": (),
    "other_dtypes": {},
    "not_finite": {},
    "quantized": {},
    "not_quantized": {},
    "links": (),
    "peak_anonymous_bytes": (),
    "planned_peak_bytes": (),
    "timeline": {"words": [], "phases": {}, "ranks": []},
}


@dataclass(frozen=True)
class Completed:
    """What rank 0 found while it completed the folder: how config.json was corrected and what was added to
    it, which files of the reference were copied and which were left, which weights hold how many NaNs and
    infinities, the largest errors of those that are quantized, what else a user should know, and where the
    values of a config.json come from that was made.
    """

    corrections: tuple[str, ...] = ()
    additions: tuple[str, ...] = ()
    assets: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    not_finite: Mapping[str, int] = field(default_factory=dict)
    quantized: Errors = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """An export that succeeded, as plain values: `from_json(report.to_json())` is the report again.

    Sizes are in bytes, times in seconds, by phase. `dtype` is the element type of most weights, in torch's
    words, `other_dtypes` those of all others. `source_checked` is None where there was no file to check,
    false where files hold no checksums.
    `settings` are the properties of the function that config.json and the training args were held to,
    `settings_unchecked` those of which the args say nothing, `args_unknown` args that switch something on
    and that no table knows. `expected_cached`: what the account was held against came from the user's cache.
    `config_origins` tells of each key of a config.json that was made without a reference where its value
    comes from. `quantized` are the largest errors of each weight that is, `absolute` and, as a part of the
    largest value under the same scale, `relative`; `not_quantized` weights of linear layers that stay as they
    are with --quantize, and why. `lora` tells of adapters that were merged or exported, if there were any.
    `kept_bytes` of the files are those of an earlier run (`--resume`). `backend` is what carried values
    between ranks (None: nothing did), for the
    `backend_reason`; `links` are the bytes that were sent from rank to rank. `timeline` is a
    `core.timeline.Timeline` as JSON. What grows with the tensors or the ranks (`dropped`, `other_dtypes`,
    `not_finite`, `quantized`, `not_quantized`, `links`, `peak_anonymous_bytes`, `planned_peak_bytes`,
    `timeline`) is empty on the other ranks than 0 of a live export.
    """

    output: str
    checkpoint: str
    format: str
    iteration: int | None
    args: Mapping[str, Any] | None
    architecture: str
    expected_from: str
    expected_cached: bool
    dropped: Mapping[str, str]
    taken_from_reference: tuple[str, ...]
    lora: Mapping[str, Any] | None
    options: Mapping[str, Any]
    plan_fingerprint: str
    versions: Mapping[str, str]
    settings: Mapping[str, Any]
    settings_unchecked: tuple[str, ...]
    args_unknown: tuple[str, ...]
    dtype: str
    other_dtypes: Mapping[str, str]
    not_finite: Mapping[str, int]
    quantized: Mapping[str, Mapping[str, float]]
    not_quantized: Mapping[str, str]
    vocab_size: int
    num_files: int
    num_tensors: int
    total_size: int
    kept_bytes: int
    total_parameters: int
    stages: tuple[int, ...]
    backend: str | None
    backend_reason: str
    links: tuple[Mapping[str, int], ...]
    config_corrections: tuple[str, ...]
    config_additions: tuple[str, ...]
    config_origins: Mapping[str, str]
    assets_copied: tuple[str, ...]
    assets_left: tuple[str, ...]
    notes: tuple[str, ...]
    verified: bool
    source_checked: bool | None
    seconds: Mapping[str, float]
    peak_anonymous_bytes: tuple[int, ...]
    planned_peak_bytes: tuple[int, ...]
    timeline: Mapping[str, Any]

    def __repr__(self) -> str:
        seconds = sum(self.seconds.values())
        return (
            f"ExportReport(output={self.output!r}, files={self.num_files}, bytes={self.total_size},"
            f" seconds={seconds:.1f})"
        )

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values, as `--report` and `--json` give it; see `schemas/report.json`."""
        return {"schema_version": SCHEMA_VERSION, "status": "ok", **to_json_value(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ExportReport:
        """The report that `to_json` gave. Raises the ExportError that the report of a failure tells, and
        an ExportError of its own where `value` is no report of this release.
        """
        version, names = value.get("schema_version"), [f.name for f in dataclasses.fields(cls)]
        if version == SCHEMA_VERSION and value.get("status") == "failed":
            raise errors.from_json(value["error"])
        missing = [name for name in names if name not in value]
        if version != SCHEMA_VERSION or missing:
            raise ExportError(
                "this is not the report of an export",
                expected=f"schema_version {SCHEMA_VERSION}",
                got=f"schema_version {version}",
                findings=[f"{name} is missing" for name in missing],
            )
        fields: dict[str, Any] = {}
        for name in names:
            fields[name] = tuple(value[name]) if isinstance(value[name], list) else value[name]
        return cls(**fields)


def noted(error: ExportError) -> str:
    """What failed when the export was published already, as a note: it stands."""
    place = error.where.get("file")
    return f"the export is published; afterwards: {error.what}" + (f": {place}" if place else "")


def share(world: World, make: Callable[[], ExportReport]) -> ExportReport:
    """The report that rank 0 makes, on every rank; called by all. The other ranks get it without what
    grows with the tensors or the ranks.
    """
    made: list[ExportReport] = []

    def tell() -> bytes:
        made.append(make())
        return json.dumps(replace(made[0], **_RANK_0_ONLY).to_json()).encode() if world.size > 1 else b""

    try:
        image = world.control.share(tell)
    except ExportError as error:
        if not made:
            raise
        return replace(made[0], notes=(*made[0].notes, noted(error)))
    return made[0] if made else ExportReport.from_json(json.loads(image))


def succeeded(
    whole: Whole | None,
    options: TargetOptions,
    backend: Backend,
    completed: Completed | None,
    measured: Sequence[Measured],
    seconds: Mapping[str, float],
) -> ExportReport:
    """The report of success; called on rank 0, where the whole, `completed`, and what each rank `measured`
    are known.
    """
    assert whole is not None
    assert completed is not None
    inputs, plan = whole.inputs, whole.plan
    description, model = inputs.catalog.description, inputs.model
    is_live = inputs.catalog.holders is not None
    return ExportReport(
        checkpoint=description.folder,
        format=description.format,
        iteration=description.iteration,
        args=to_json_value(description.args),
        architecture=inputs.architecture.name,
        expected_from=inputs.account.truth,
        expected_cached=model.is_cached,
        dropped=dict(inputs.account.dropped),
        taken_from_reference=inputs.account.taken,
        lora=adapters.to_json(inputs.account.adapted),
        options=options.to_json(),
        plan_fingerprint=plan.of_everything.fingerprint,
        versions=versions(),
        settings=to_json_value(dict(model.meaning.values)),
        settings_unchecked=model.meaning.unchecked,
        args_unknown=model.args_unknown,
        output=str(options.output.absolute()),
        dtype=inputs.account.main_dtype.torch_name,
        other_dtypes={name: dtype.torch_name for name, dtype in inputs.account.other_dtypes.items()},
        not_finite=dict(completed.not_finite),
        quantized=errors_json(completed.quantized),
        not_quantized=not_quantized(inputs.account),
        vocab_size=inputs.sizes.vocab_size,
        num_files=len(plan.files),
        num_tensors=sum(len(shard.tensors) for shard in plan.shards),
        total_size=plan.total_size,
        kept_bytes=plan.kept_bytes,
        total_parameters=plan.total_parameters,
        stages=tuple(len(ranks) for ranks in plan.stages),
        backend=backend.name,
        backend_reason=backend.why,
        links=tuple(
            {"sender": sender, "receiver": receiver, "bytes": count}
            for sender, one in enumerate(measured)
            for receiver, count in sorted(one.sent.items())
        ),
        config_corrections=completed.corrections,
        config_additions=completed.additions,
        config_origins=dict(completed.origins),
        assets_copied=completed.assets,
        assets_left=completed.left,
        notes=(
            *description.notes,
            *model.notes,
            *whole.notes,
            *completed.notes,
            *errors_note(completed.quantized),
            *notes_on(plan, is_live=is_live),
            *([_cost(sum(seconds.values()), len(measured))] if is_live else []),
        ),
        verified=options.verify,
        source_checked=_source_checked(options, inputs.catalog),
        seconds=dict(seconds),
        peak_anonymous_bytes=tuple(one.peak_anonymous_bytes for one in measured),
        planned_peak_bytes=tuple(part.peak_bytes for part in plan.parts),
        timeline=_timeline([one.timeline for one in measured if one.timeline is not None], seconds),
    )


def _cost(seconds: float, num_ranks: int) -> str:
    """What a live export took from the job, and how it can be had for less."""
    return (
        f"training waited {seconds:.1f} s on {counted(num_ranks, 'rank')}, {seconds * num_ranks:.0f} in all."
        " A checkpoint's export in the background (export_checkpoint, background=True) makes it wait for the"
        " save alone."
    )


def _source_checked(options: TargetOptions, catalog: Catalog) -> bool | None:
    if not isinstance(options, (SourceOptions, ConsolidateOptions)):
        return None
    return options.check_source and catalog.has_checksums


def _timeline(ranks: Sequence[RankTimeline], seconds: Mapping[str, float]) -> dict[str, Any]:
    """The timeline of some ranks, with rank 0's phases; those began when its recorder did."""
    if not ranks:
        return Timeline({}, ()).to_json()
    at = (ranks[0].began_ns - min(rank.began_ns for rank in ranks)) / 1e9
    phases = {}
    for name, lasted in seconds.items():
        phases[name] = (round(at, 6), round(at + lasted, 6))
        at += lasted
    return Timeline.of(ranks, phases).to_json()
