"""Claims of `pp_export.view.tables`: tables say what the reports say, and names stay whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pp_export.checkpoint.formats import describe_checkpoint
from pp_export.distributed.backends import Backend
from pp_export.options.cluster import ClusterOptions
from pp_export.steps import report
from pp_export.steps.checkpoint_report import checkpoint_report
from pp_export.steps.inputs import Whole, plan_export
from pp_export.steps.measured import Measured
from pp_export.steps.plan_report import plan_report
from pp_export.steps.report import Completed
from pp_export.verification import Fault, Verification
from pp_export.verification.comparison import LogitComparison, LogitDifference
from pp_export.verification.diff import Difference, SpecDifference
from pp_export.verification.side_by_side import ValueDifference
from pp_export.view import differences, tables
from pp_export.view.text import human_bytes
from tests.cpu.conftest import Checkpoint
from tests.fixtures.planned import Planned


def test_the_plan_for_people_has_whole_names(planned: Planned, capsys: pytest.CaptureFixture[str]) -> None:
    """The printed plan names every file in full, each rank with its bytes, and what is dropped."""
    tables.print_plan(plan_report(planned.inputs, planned.plan, "auto"))
    shown = capsys.readouterr().out
    for shard in planned.plan.shards:
        row = next(line for line in shown.splitlines() if shard.file in line)
        assert [cell.strip() for cell in row.strip("│").split("│")][1:] == [
            shard.unit,
            str(shard.stage),
            str(shard.leader),
            str(len(shard.tensors)),
            human_bytes(shard.num_bytes),
        ]
    assert "4 ranks in 2 stages: 4 write, 0 are idle; " in shown
    assert human_bytes(planned.plan.part_of(0).peak_bytes) in shown
    assert "dropped: nothing" in shown


def test_the_plan_names_the_leaders_of_ranges(planned: Planned, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a file that several ranks write all are named, of many the first and their number."""
    made = plan_report(planned.inputs, planned.in_ranges(), "auto")
    first, *others = made.shards
    many = replace(first, ranges=made.shards[1].ranges * 7)
    tables.print_plan(replace(made, shards=(many, *others)))
    shown = capsys.readouterr().out
    assert f"{len(made.shards)} files" in shown

    def leaders_of(file: str) -> str:
        row = next(line for line in shown.splitlines() if file in line)
        return row.strip("│").split("│")[3].strip()

    assert leaders_of(many.file) == f"{many.ranges[0].leader}, ... ({len(many.ranges)})"
    for shard in others:
        assert leaders_of(shard.file) == ", ".join(str(each.leader) for each in shard.ranges)
    assert len(others[0].ranges) > 1


def test_names_that_look_like_markup_are_shown_as_they_are(
    planned: Planned, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reasons, folders and file names with brackets or colons lose nothing when printed."""
    text = "kept [bold]in[/] :smile: [/red]"
    account = replace(planned.inputs.account, dropped={"x": text})
    tables.print_plan(plan_report(replace(planned.inputs, account=account), planned.plan, "auto"))
    assert f"x ({text})" in capsys.readouterr().out
    description = replace(planned.inputs.catalog.description, folder=f"/data/{text}")
    tables.print_checkpoint(checkpoint_report(replace(planned.inputs.catalog, description=description)))
    assert f"/data/{text}" in capsys.readouterr().out
    fault = Fault("bad-header", "f.safetensors", None, text)
    tables.print_verification(Verification(text, (fault,), 1, 1, 0, "full", True, (text,)))
    printed = capsys.readouterr().out
    assert printed.count(text) == 3


def test_long_plans_are_cut_with_the_number_of_what_is_left(
    planned: Planned, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a plan with many files the first are shown, and the others are counted."""
    options = replace(planned.options, max_shard_size="100")
    plan = plan_export(planned.inputs, options, 2)
    tables.print_plan(plan_report(planned.inputs, plan, "auto"))
    shown = capsys.readouterr().out
    assert shown.count("safetensors") == 40
    assert f"and {len(plan.shards) - 40} more" in shown


def test_a_plan_for_many_ranks_begins_with_a_summary(
    planned: Planned, capsys: pytest.CaptureFixture[str]
) -> None:
    """How many ranks write, and of one rank the most and the median with who has that much; no rows for each
    of many ranks.
    """
    options = replace(planned.options, pipeline_parallel=None)
    plan = plan_export(planned.inputs, options, 60)
    report = plan_report(planned.inputs, plan, "auto")
    tables.print_plan(report)
    shown = capsys.readouterr().out
    assert "60 ranks in 8 stages: 8 write, 52 are idle; " in shown.splitlines()[0]
    written = {rank.rank: rank.written_bytes for rank in report.ranks if rank.written_bytes}
    most, median = max(written.values()), sorted(written.values())[3]

    def at(size: int) -> str:
        rank = min(rank for rank, bytes_ in written.items() if bytes_ == size)
        return f"rank {rank}, stage {report.ranks[rank].stage}"

    row = next(line for line in shown.splitlines() if " writes " in line and "most" not in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "writes",
        *(human_bytes(most), at(most)),
        *(human_bytes(median), at(median)),
    ]
    assert "all ranks" not in shown
    assert "52 of 60 ranks have nothing to read or write (1-6, 8-14, " in shown


def test_a_plan_tells_how_long_it_will_take(planned: Planned, capsys: pytest.CaptureFixture[str]) -> None:
    """Seconds of each phase, what bounds them, and for which machine, given or by default."""
    cluster = ClusterOptions(world_size=4, nodes=2, cores=7, storage_gbps="3,1.5", network_gbps=5)
    report = plan_report(planned.inputs, planned.plan, "auto", cluster)
    tables.print_plan(report)
    shown = capsys.readouterr().out
    found = report.prediction
    assert f"predicted: {found.wall_seconds:.1f} s, bound by: {found.bound_by}" in shown
    assert "2 nodes with 7 cores; storage 3 GB/s read, 1.5 written, in all; network 5 GB/s" in shown
    assert f"start {found.phases['start']:.2f} s, plan {found.phases['plan']:.2f} s" in shown
    row = next(line for line in shown.splitlines() if " ends after " in line)
    assert f"{max(found.ended_seconds):.1f} s" in row


def test_a_checkpoint_is_shown_with_every_key(
    checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    """The printed checkpoint has every stored key in full with type, shape and boxes, its layout and its
    sizes.
    """
    catalog = describe_checkpoint(checkpoint("qwen3_moe", "pp2ep2"), None)
    tables.print_checkpoint(checkpoint_report(catalog))
    shown = capsys.readouterr().out
    for tensor in catalog.tensors:
        row = next(line for line in shown.splitlines() if f" {tensor.key} " in line)
        assert [cell.strip() for cell in row.strip("│").split("│")] == [
            tensor.key,
            tensor.dtype.torch_name,
            str(list(tensor.shape)),
            str(len(tensor.boxes)),
        ]
    assert "TP1, PP2, EP2" in shown
    assert "num_experts 8" in shown


def test_a_checkpoint_without_args_is_shown_too(planned: Planned, capsys: pytest.CaptureFixture[str]) -> None:
    """Without training args, layout and model are called unknown."""
    description = replace(planned.inputs.catalog.description, args=None)
    tables.print_checkpoint(checkpoint_report(replace(planned.inputs.catalog, description=description)))
    shown = capsys.readouterr().out
    assert "unknown (no training args)" in shown


def test_a_verification_is_shown_fault_by_fault(capsys: pytest.CaptureFixture[str]) -> None:
    """Every fault has a line with file, tensor and reason, and the last line has the verdict."""
    faults = tuple(
        Fault("wrong-digest", f"model-{n}.safetensors", f"layer.{n}.w", "differs") for n in range(60)
    )
    tables.print_verification(Verification("folder", faults, 3, 70, 10**9, "full", True))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 61
    assert all(line.startswith("FAULT ") and f"layer.{n}.w" in line for n, line in enumerate(lines[:-1]))
    assert lines[-1] == "folder: 60 faults (full; 3 files, 70 tensors, 1 GB read)"
    tables.print_verification(Verification("folder", (), 3, 70, 10**9, "full", True))
    assert capsys.readouterr().out.startswith("folder: ok (full;")


def test_a_difference_is_shown_tensor_by_tensor(capsys: pytest.CaptureFixture[str]) -> None:
    """Every tensor that differs has a line that says how, and the last line has the verdict."""
    result = Difference(
        "A",
        "B",
        ("of.a",),
        ("of.b",),
        (SpecDifference("cut", "F32[2]", "F32[3]"),),
        (
            ValueDifference("near", 10, 1, 0, 1, 1e-6, 1e-5, None),
            ValueDifference("off", 1000, 7, 2, 7, 0.25, 0.5, 4194304),
        ),
        5,
        0,
        3 * 10**9,
    )
    differences.print_difference(result)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "ONLY in A: of.a",
        "ONLY in B: of.b",
        "SHAPE or type: cut: F32[2], F32[3]",
    ]
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert rows == [
        ["off", "7", "1,000", "2", "0.25", "0.5", "4,194,304"],
        ["near", "1", "10", "", "1e-06", "1e-05", ""],
    ]
    assert lines[-1] == "A and B: different (5 tensors equal; 3 GB read)"
    same = replace(result, only_in_a=(), only_in_b=(), other_spec=(), other_values=())
    differences.print_difference(same)
    assert capsys.readouterr().out == "A and B: identical (5 tensors equal; 3 GB read)\n"
    differences.print_difference(replace(same, num_equal_by_digest=4))
    words = "5 tensors equal, 4 of them by the digests that both record, unread; 3 GB read"
    assert capsys.readouterr().out == f"A and B: identical ({words})\n"


def test_a_comparison_of_logits_is_shown_with_its_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    """Every figure of a comparison is shown, with what was asked of it, and whether it holds."""
    result = LogitComparison(
        folder="out",
        recording="r",
        recorded_dtype="float32",
        precision="bfloat16",
        batch=2,
        sequence=16,
        num_columns=1280,
        num_padding_columns=6,
        partly_on_disk=True,
        tolerance=0.05,
        required_share=0.75,
        share_within=0.875,
        difference=0.021,
        max_difference=0.31,
        max_abs_difference=1.7,
        mean_abs_difference=0.011,
        max_kl_divergence=0.022,
        mean_kl_divergence=0.0033,
        top_token_agreement=0.969,
        worst=LogitDifference(1, 14, 95, 0.4140625, -1.25),
    )
    tables.print_logits(result)
    shown = capsys.readouterr().out
    for text in (
        *("out", "r: 2 x 16 positions, 1,280 logits each; 6 padding columns left out"),
        *("bfloat16 (recorded as float32)", "CPU, float32, weights partly on disk"),
        "0.021 standard deviations of the logits or less at 75% of the positions (tolerance 0.05), 0.31 at",
        *("87.5% of the positions (75% needed)", "0.011 on average, 1.7 at most"),
        *("0.0033 on average, 0.022 at most", "the same at 96.9% of the positions"),
        "batch 1, position 14, token 95: 0.414062 recorded, -1.25 exported",
        "the folder answers as the recorded model",
    ):
        assert text in shown
    tables.print_logits(replace(result, difference=0.051, num_padding_columns=0, partly_on_disk=False))
    shown = capsys.readouterr().out
    assert "DIFFERENT" in shown
    assert "answers as" not in shown
    assert "padding" not in shown
    assert "on disk" not in shown


def test_the_summary_says_what_was_proved(planned: Planned, capsys: pytest.CaptureFixture[str]) -> None:
    """The table at the end says what was accounted, checked and verified, and what was not."""
    completed = Completed(corrections=("a correction",))
    seconds = {"export": 2.0, "verify": 1.0}
    measured = [Measured(10**9, {1: 3 * 10**8}, {}), Measured(0, {}, {})]
    backend = Backend("gloo", "asked for")
    whole = Whole(planned.inputs, planned.plan)
    done = report.succeeded(whole, planned.options, backend, completed, measured, seconds)
    tables.print_export(done)
    shown = capsys.readouterr().out
    for text in (
        f"exported to {Path('out').absolute()}",
        "every tensor once, by the table itself: nothing independent confirms it",
        " aren't known from the training args: ",
        "CRC-32 of every record checked",
        "every byte re-read from the disk",
        "a correction",
        "1 GB, 0 B (anonymous, per rank)",
        "300 MB over gloo: asked for",
    ):
        assert text in shown
    tables.print_export(replace(done, verified=False, source_checked=False, config_corrections=()))
    shown = capsys.readouterr().out
    assert "NOT verified" in shown
    assert "not checked" in shown
    assert "CRC-32" not in shown
