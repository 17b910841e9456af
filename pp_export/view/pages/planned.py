"""The page of a plan: the prediction, its timeline, what each rank does, every file and tensor."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pp_export.core.words import counted
from pp_export.view.pages import model, ranks
from pp_export.view.pages.document import page
from pp_export.view.pages.sections import Column, Section, bars, facts, notes, table
from pp_export.view.pages.tensors import IN_FILE, STORED, note, num_bytes
from pp_export.view.text import human_bytes, machine_facts

if TYPE_CHECKING:
    from pp_export.steps.plan_report import PlanReport


def plan_page(report: PlanReport) -> bytes:
    """What an export would do."""
    found, of_ranks = report.prediction, report.ranks
    of_rank = {
        "reads": [rank.read_bytes for rank in of_ranks],
        "sends": [rank.sent_bytes for rank in of_ranks],
        "writes": [rank.written_bytes for rank in of_ranks],
        "verifies": found.verified_bytes,
    }
    told = {
        "model": f"{report.architecture}, {counted(report.total_parameters, 'parameter')}",
        "files": f"{len(report.shards):,}, {human_bytes(report.total_size)}",
        "ranks": f"{len(of_ranks):,} in {counted(report.num_stages, 'stage')}",
        "wire": f"{report.backend or 'nothing is sent'}: {report.backend_reason}",
        "wall time": f"{found.wall_seconds:.1f} s, bound by: {found.bound_by}",
        "plan": report.fingerprint,
    }
    sections = [
        facts("The plan", told),
        facts("Predicted for", machine_facts(found)),
        notes(report.notes),
        *ranks.timeline("Predicted timeline", found.timeline),
        bars("Bytes of each rank", of_rank, "bytes"),
        bars("Ended", {"seconds after the start": found.ended_seconds}, "s"),
        bars("Planned peak of memory", {"anonymous": [rank.peak_bytes for rank in of_ranks]}, "bytes"),
        ranks.links(found.links),
        model.unchecked(report),
        *model.of_the_model(report),
        *_files(report),
    ]
    return page(f"Plan for {counted(len(of_ranks), 'rank')}", sections)


def _files(report: PlanReport) -> list[Section]:
    """The files that would be written, and their tensors."""
    count = sum(len(shard.tensors) for shard in report.shards)
    of_files = [
        Column("file", "code"),
        Column("unit"),
        Column("stages"),
        Column("leaders"),
        Column("tensors", "count"),
        Column("bytes", "bytes"),
    ]
    columns = [
        Column("tensor", "code"),
        *STORED,
        IN_FILE,
    ]
    return [
        table(
            f"Files: {len(report.shards):,}",
            of_files,
            (
                [
                    shard.file,
                    shard.unit,
                    _numbers(each.stage for each in shard.ranges),
                    _numbers(each.leader for each in shard.ranges),
                    len(shard.tensors),
                    shard.bytes,
                ]
                for shard in report.shards
            ),
        ),
        table(
            f"Tensors: {count:,}",
            columns,
            (
                [name, list(each.shape), each.dtype, num_bytes(each.dtype, each.shape), shard.file]
                for shard in report.shards
                for name, each in shard.tensors.items()
            ),
            note(count),
        ),
    ]


def _numbers(found: Iterable[int]) -> str:
    return ", ".join(map(str, dict.fromkeys(found)))
