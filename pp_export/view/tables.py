"""Reports as tables on stdout, each shown once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from statistics import median_low
from typing import TYPE_CHECKING, Any

from pp_export.architecture.accounting import TABLE
from pp_export.architecture.families import KINDS
from pp_export.core.words import counted
from pp_export.steps import limits
from pp_export.view.examined import print_examination
from pp_export.view.text import (
    console,
    empty_table,
    human_bytes,
    logit_facts,
    machine_facts,
    table_of_facts,
)

if TYPE_CHECKING:
    from pp_export.architecture.families import Family
    from pp_export.steps.checkpoint_report import CheckpointReport
    from pp_export.steps.many_report import ManyReport
    from pp_export.steps.plan_report import PlanReport
    from pp_export.steps.prediction_report import PredictionReport
    from pp_export.steps.report import ExportReport
    from pp_export.verification import Verification
    from pp_export.verification.comparison import LogitComparison

_CHECKED = {True: "CRC-32 of every record checked", False: "not checked", None: "a live model"}
_LAYOUT = (
    ("TP", "tensor_model_parallel_size"),
    ("PP", "pipeline_model_parallel_size"),
    ("VPP", "virtual_pipeline_model_parallel_size"),
    ("EP", "expert_model_parallel_size"),
    ("ETP", "expert_tensor_parallel_size"),
    ("CP", "context_parallel_size"),
    ("DP", "data_parallel_size"),
)
_SIZES = (
    *("num_layers", "hidden_size", "num_attention_heads", "num_query_groups", "ffn_hidden_size"),
    *("num_experts", "padded_vocab_size"),
)
_MAX_ROWS, _MAX_RANKS, _MAX_PEAKS, _MAX_NAMED = 40, 8, 8, 6


def print_export(report: ExportReport) -> None:
    """What an export did, and what it proved."""
    seconds = report.seconds
    rate = human_bytes((report.total_size - report.kept_bytes) / max(seconds.get("export", 0), 1e-3))
    peaks = ", ".join(human_bytes(peak) for peak in report.peak_anonymous_bytes[:_MAX_PEAKS])
    verified = "every byte re-read from the disk" if report.verified else "NOT verified"
    rows = {
        "model": f"{report.architecture}, {counted(report.total_parameters, 'parameter')}",
        "files": f"{counted(report.num_files, 'shard')}, {human_bytes(report.total_size)}; {_assets(report)}",
        "accounted": _accounted(report.expected_from, report.expected_cached),
        "function": _function(report.settings, report.settings_unchecked, report.args_unknown),
        "dropped": ", ".join(report.dropped) or "nothing",
        "source": _CHECKED[report.source_checked],
        "export": f"{seconds['export']:.1f} s, {rate}/s",
        "verified": verified,
        "config.json": _config(report),
        "sent": _sent(report),
        "peak memory": f"{peaks} (anonymous, per rank)",
    }
    if not report.settings:
        del rows["function"]  # a consolidation has no training args to hold it against
    if report.not_finite:
        rows["not finite"] = _not_finite(report.not_finite)
    rows |= {f"note {number}": note for number, note in enumerate(report.notes, start=1)}
    written = {name: report.options.get(name) for name in ("report", "html")}
    rows |= {name: str(path) for name, path in written.items() if path is not None}
    console().print(table_of_facts(f"exported to {report.output}", rows))


def _assets(report: ExportReport) -> str:
    """What of the reference's other files is in the folder, and what isn't."""
    copied = f"{_first(report.assets_copied)} copied" if report.assets_copied else "no other file copied"
    return copied + (f"; left: {_first(report.assets_left)}" if report.assets_left else "")


def print_many(report: ManyReport) -> None:
    """What became of each iteration, and of all."""
    table = empty_table()
    for column in ("iteration", "outcome", "size", "seconds", "output", "why"):
        table.add_column(
            column, overflow="fold", justify="right" if column in ("size", "seconds") else "left"
        )
    for each in report.in_order:
        size = "" if each.total_size is None else human_bytes(each.total_size)
        seconds = "" if each.seconds is None else f"{each.seconds:.1f}"
        why = each.error.what if each.error is not None else ""
        if each.status == "skipped":
            why = "; ".join(each.notes)
        table.add_row(str(each.iteration), each.status, size, seconds, each.output, why)
    out = console()
    out.print(table)
    counts = Counter(each.status for each in report.in_order)
    said = ", ".join(f"{counts[status]} {status}" for status in ("exported", "skipped", "failed"))
    out.print(said + ("; stopped by a signal" if report.stopped else ""))


def print_families(families: Sequence[Family]) -> None:
    """A line for each class: its table, what proves it, and what of it isn't exported."""
    table = empty_table()
    for column in ("class", "table", "proved by", "tensors compared", "not exported"):
        table.add_column(column, overflow="fold")
    for family in families:
        kinds = ", ".join(dict.fromkeys(card["proof"] for card in family.proofs))
        counts = max((card.get("tensors", 0) for card in family.proofs), default=0)
        left_out = ", ".join(dict.fromkeys(limit.what.partition(":")[0] for limit in limits.told(family)))
        table.add_row(family.hf_class, family.table, kinds or "nothing yet", f"{counts:,}", left_out)
    out = console()
    out.print(table)
    out.print("Why not, and values of settings that a class can't say: --json, `pp_export docs settings`")
    for kind, text in KINDS.items():
        out.print(f"{kind}: {text}")


def _sent(report: ExportReport) -> str:
    """What went from rank to rank, over what, and why over that."""
    if report.backend is None:
        return f"nothing: {report.backend_reason}"
    total = human_bytes(sum(link["bytes"] for link in report.links))
    return f"{total} over {report.backend}: {report.backend_reason}"


def _accounted(truth: str, is_cached: bool) -> str:
    """A table that nothing else confirms proves nothing but itself."""
    if truth == TABLE:
        return f"every tensor once, by {truth}: nothing independent confirms it"
    return f"every tensor once, against {truth}{', from the cache' if is_cached else ''}"


def _function(settings: Mapping[str, Any], unchecked: Sequence[str], unknown: Sequence[str]) -> str:
    checked = [name for name in settings if name not in unchecked]
    text = f"{len(checked)} settings are those that were trained"
    if unchecked:
        text += f"; {len(unchecked)} aren't known from the training args: {_first(unchecked)}"
    if unknown:
        text += f"; args that no table knows: {_first(unknown)}"
    return text


def _first(names: Sequence[str]) -> str:
    """A few names; the report has all."""
    return ", ".join(names[:_MAX_NAMED]) + (", ..." if len(names) > _MAX_NAMED else "")


def _config(report: ExportReport | PlanReport) -> str:
    if report.config_origins:
        kinds = Counter(origin.partition(":")[0] for origin in report.config_origins.values())
        counts = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
        return f"made of the training args, without a reference; values by origin: {counts}"
    corrections = [each.removeprefix("config.json: ").rstrip(".") for each in report.config_corrections]
    keys = [sentence.removeprefix("config.json: ").partition(" ")[0] for sentence in report.config_additions]
    added = [f"said outright, or for other loaders too: {', '.join(keys)}"] if keys else []
    return "; ".join([*corrections, *added]) or "as in the reference"


def _not_finite(counts: Mapping[str, int]) -> str:
    named = [f"{name} ({count:,})" for name, count in list(counts.items())[:_MAX_NAMED]]
    more = ", ..." if len(counts) > _MAX_NAMED else ""
    return f"NaN or infinity in {counted(len(counts), 'tensor')}: {', '.join(named)}{more}"


def print_plan(report: PlanReport) -> None:
    """What an export would do: in all, file by file, and rank by rank."""
    out, summary, num_idle = console(), report.summary, len(report.summary.idle_ranks)
    out.print(
        f"{counted(len(report.ranks), 'rank')} in {counted(report.num_stages, 'stage')}:"
        f" {summary.num_leaders} write{'s' * (summary.num_leaders == 1)},"
        f" {num_idle} {'is' if num_idle == 1 else 'are'} idle;"
        f" {human_bytes(summary.total_sent_bytes) if report.backend else 'nothing'} is sent"
        f" ({f'{report.backend}: ' if report.backend else ''}{report.backend_reason})",
        soft_wrap=True,
    )
    memory = "any memory" if report.memory_limit is None else human_bytes(report.memory_limit)
    out.print(
        f"each with up to {counted(report.threads, 'thread')} and"
        f" {counted(report.shards_in_flight, 'shard')} in flight, in at most"
        f" {memory} (--threads, --memory-limit; by default its share of this machine)",
        soft_wrap=True,
    )
    _print_loads(report)
    _print_prediction(report.prediction)
    shards = empty_table(title=f"{counted(len(report.shards), 'file')}, {human_bytes(report.total_size)}")
    for column in ("file", "unit", "stage", "leader", "tensors", "size"):
        shards.add_column(column, justify="left" if column in ("file", "unit") else "right", overflow="fold")
    for shard in report.shards[:_MAX_ROWS]:
        stages = _numbers(dict.fromkeys(each.stage for each in shard.ranges))
        leaders = _numbers([each.leader for each in shard.ranges])
        shards.add_row(
            shard.file, shard.unit, stages, leaders, str(len(shard.tensors)), human_bytes(shard.bytes)
        )
    if len(report.shards) > _MAX_ROWS:
        shards.add_row(f"and {len(report.shards) - _MAX_ROWS} more (--json lists all)")
    out.print(shards)
    _print_ranks(report)
    dropped = "; ".join(f"{name} ({why})" for name, why in report.dropped.items()) or "nothing"
    lines = {
        "accounted": f"{_accounted(report.expected_from, report.expected_cached)}; dropped: {dropped}",
        "function": _function(report.settings, report.settings_unchecked, report.args_unknown),
        "config.json": _config(report),
        **{f"note {number}": note for number, note in enumerate(report.notes, start=1)},
    }
    for name, text in lines.items():
        out.print(f"{name}: {text}", soft_wrap=True)


def _print_loads(report: PlanReport) -> None:
    """What one rank has to do: the most and the median of all, and who has that much."""
    summary, ended = report.summary, [each for each in report.prediction.ended_seconds if each]
    loads = empty_table()
    for column in ("one rank", "most", "at", "median", "at"):
        loads.add_column(column, justify="right")

    def at(rank: int) -> str:
        stage = report.ranks[rank].stage
        return f"rank {rank}" if stage is None else f"rank {rank}, stage {stage}"

    for name, load in {
        "reads": summary.read_bytes,
        "sends": summary.sent_bytes,
        "writes": summary.written_bytes,
        "peak memory": summary.peak_bytes,
    }.items():
        most, median = human_bytes(load.most), human_bytes(load.median)
        loads.add_row(name, most, at(load.most_rank), median, at(load.median_rank))
    most_seconds, median_seconds = max(ended), median_low(ended)
    places = [at(report.prediction.ended_seconds.index(each)) for each in (most_seconds, median_seconds)]
    loads.add_row("ends after", f"{most_seconds:.1f} s", places[0], f"{median_seconds:.1f} s", places[1])
    console().print(loads)


def _print_prediction(found: PredictionReport) -> None:
    """How long it takes, for what machine, and what bounds it."""
    title = f"predicted: {found.wall_seconds:.1f} s, bound by: {found.bound_by}"
    console().print(table_of_facts(title, machine_facts(found)))


def _print_ranks(report: PlanReport) -> None:
    """The first ranks."""
    ranks = empty_table(title=counted(len(report.ranks), "rank"))
    for column in ("rank", "stage", "reads", "sends", "writes", "peak memory"):
        ranks.add_column(column, justify="right")
    for rank in report.ranks[:_MAX_RANKS]:
        sizes = (rank.read_bytes, rank.sent_bytes, rank.written_bytes, rank.peak_bytes)
        stage = "-" if rank.stage is None else str(rank.stage)
        ranks.add_row(str(rank.rank), stage, *map(human_bytes, sizes))
    if len(report.ranks) > _MAX_RANKS:
        ranks.caption = f"and {len(report.ranks) - _MAX_RANKS:,} more: all are in --json and --html"
    console().print(ranks)


def _numbers(found: Collection[int]) -> str:
    """The stages or leaders of a file's ranges; of many, the first and how many they are."""
    named = ", ".join(map(str, found))
    return named if len(found) <= _MAX_NAMED else f"{next(iter(found))}, ... ({len(found)})"


def print_checkpoint(report: CheckpointReport) -> None:
    """What a checkpoint is, every key that it stores, and what its bytes tell if they were read."""
    out, args, weights = console(), report.args or {}, report.weights
    sizes = ", ".join(f"{name} {args[name]}" for name in _SIZES if args.get(name) is not None)
    layout = ", ".join(f"{short}{args[name]}" for short, name in _LAYOUT if args.get(name) is not None)
    keys = f"one key for {'all layers' if report.stacked else 'each layer'}"
    rows = {
        "format": f"{report.format}, {'one file per rank' if report.one_file_per_rank else keys}",
        "written by": report.writer,
        "iteration": str(report.iteration),
        "layout": layout or "unknown (no training args)",
        "model": sizes or "unknown",
        "weights": f"{counted(weights.num_tensors, 'tensor')},"
        f" {counted(weights.num_parameters, 'parameter')}, {human_bytes(weights.bytes)}"
        f" in {counted(weights.num_boxes, 'stored slice')} of {counted(len(weights.files), 'file')}",
        **{
            kind: f"{counted(other.items, 'item')}, {human_bytes(other.bytes)}"
            for kind, other in report.other.items()
        },
        **{f"note {number}": note for number, note in enumerate(report.notes, start=1)},
    }
    out.print(table_of_facts(report.folder, rows))
    tensors = empty_table()
    for column in ("stored key", "type", "shape", "slices"):
        tensors.add_column(column, overflow="fold")
    for key, tensor in report.tensors.items():
        tensors.add_row(key, tensor.dtype, str(list(tensor.shape)), str(tensor.num_boxes))
    out.print(tensors)
    if report.examined is not None:
        print_examination(report.examined)


def print_verification(result: Verification) -> None:
    """What verify found."""
    out = console()
    for fault in result.faults:
        out.print(f"FAULT {fault}", soft_wrap=True)
    for note in result.notes:
        out.print(f"note: {note}", soft_wrap=True)
    verdict = "ok" if result.ok else counted(len(result.faults), "fault")
    out.print(
        f"{result.folder}: {verdict} ({result.depth}; {counted(result.num_files, 'file')},"
        f" {counted(result.num_tensors, 'tensor')}, {human_bytes(result.num_bytes_read)} read)",
        soft_wrap=True,
    )


def print_logits(result: LogitComparison) -> None:
    """How far a folder's logits are from the recorded ones, and the verdict."""
    verdict = "the folder answers as the recorded model" if result.ok else "DIFFERENT"
    console().print(table_of_facts(result.folder, {**logit_facts(result), "verdict": verdict}))
