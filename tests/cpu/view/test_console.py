"""Claims of `pp_export.view.console`: tables say what the values say, names stay whole, progress is a line
now and then.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import HashStore  # type: ignore[attr-defined]

from pp_export.checkpoint import read_catalog
from pp_export.checkpoint.source import CheckpointSource
from pp_export.core.options import ExportOptions
from pp_export.distributed.process_groups import SharedKeys
from pp_export.distributed.world import World
from pp_export.planning.export_plan import ExportPlan
from pp_export.steps.inputs import ExportInputs, ask, plan_export, read_inputs
from pp_export.steps.report import ExportReport
from pp_export.verification import Fault, Verification
from pp_export.view import console
from pp_export.view.console import ExportView, human_bytes
from tests.cpu.conftest import Checkpoint, Reference
from tests.fixtures.undefined import without_definition


@dataclass
class Planned:
    """A plan of a real checkpoint for four ranks in two stages, and what it was made from."""

    options: ExportOptions
    sources: ExportInputs
    plan: ExportPlan


@pytest.fixture(scope="module")
def planned(checkpoint: Checkpoint, reference: Reference) -> Planned:
    options = ExportOptions(
        checkpoint=checkpoint("qwen2", "tp2pp2"),
        reference=reference("qwen2"),
        output=Path("out"),
        pipeline_parallel=2,
    )
    with without_definition():
        sources, _ = read_inputs(CheckpointSource(options), options, ask(options).result())
    return Planned(options, sources, plan_export(sources, options, 4))


class OneOfFour(World):
    """A rank of four that has no process group: progress is what the test says it is."""

    def __init__(self, rank: int) -> None:
        super().__init__(0, 1, SharedKeys(HashStore()), None, stall_seconds=60)
        self.rank, self.size = rank, 4
        self.posted: dict[int, dict[str, Any]] = {}

    def progress_of(self, ranks: Any) -> dict[int, dict[str, Any]]:
        return {rank: self.posted[rank] for rank in ranks if rank in self.posted}


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What is logged."""
    found: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    logger, handler = logging.getLogger("pp_export"), Keep()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield found
    logger.removeHandler(handler)
    logger.setLevel(level)


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    return clock


def test_bytes_are_shown_with_three_digits() -> None:
    """Sizes have a unit and three digits, also just below the next unit."""
    shown = {
        0: "0 B",
        999: "999 B",
        1000: "1 KB",
        3_550_000_000: "3.55 GB",
        999_499: "999 KB",
        999_600: "1 MB",
        999_999: "1 MB",
        10**12: "1 TB",
        25 * 10**14: "2.5e+03 TB",
    }
    assert {count: human_bytes(count) for count in shown} == shown


def test_the_plan_for_machines_adds_up(planned: Planned) -> None:
    """The plan as JSON has every file and rank, and its bytes agree with each other and with the plan."""
    value = json.loads(json.dumps(console.plan_json(planned.sources, planned.plan)))
    assert [shard["file"] for shard in value["shards"]] == [shard.file for shard in planned.plan.shards]
    assert sum(rank["written_bytes"] for rank in value["ranks"]) == sum(
        shard["bytes"] for shard in value["shards"]
    )
    assert [rank["stage"] for rank in value["ranks"]] == [0, 0, 1, 1]
    stored = sum(spec.num_bytes for spec in planned.sources.catalog.specs.values())
    assert sum(rank["read_bytes"] for rank in value["ranks"]) == stored
    assert [rank["peak_bytes"] for rank in value["ranks"]] == [
        planned.plan.peak_bytes(rank) for rank in range(4)
    ]
    tensors = {name: tensor for shard in value["shards"] for name, tensor in shard["tensors"].items()}
    assert tensors["lm_head.weight"] == {"dtype": "float32", "shape": [250, 64]}
    assert (value["fingerprint"], value["total_size"]) == (planned.plan.fingerprint, planned.plan.total_size)
    assert value["sizes"]["padded_vocab_size"] == 256


def test_the_plan_for_people_has_whole_names(planned: Planned, capsys: pytest.CaptureFixture[str]) -> None:
    """The printed plan names every file in full, each rank with its bytes, and what is dropped."""
    console.print_plan(planned.sources, planned.plan)
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
    assert "4 ranks in 2 stages" in shown
    assert human_bytes(planned.plan.peak_bytes(0)) in shown
    assert "dropped: nothing" in shown


def test_names_that_look_like_markup_are_shown_as_they_are(
    planned: Planned, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reasons, folders and file names with brackets or colons lose nothing when printed."""
    text = "kept [bold]in[/] :smile: [/red]"
    account = replace(planned.sources.account, dropped={"x": text})
    console.print_plan(replace(planned.sources, account=account), planned.plan)
    assert f"x ({text})" in capsys.readouterr().out
    description = replace(planned.sources.catalog.description, folder=f"/data/{text}")
    console.print_catalog(replace(planned.sources.catalog, description=description))
    assert f"/data/{text}" in capsys.readouterr().out
    fault = Fault("bad-header", "f.safetensors", None, text)
    console.print_verification(Verification(text, (fault,), 1, 1, 0, "full", True, (text,)))
    printed = capsys.readouterr().out
    assert printed.count(text) == 3


def test_long_plans_are_cut_with_the_number_of_what_is_left(
    planned: Planned, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a plan with many files the first are shown, and the others are counted."""
    options = replace(planned.options, max_shard_size="100")
    plan = plan_export(planned.sources, options, 2)
    console.print_plan(planned.sources, plan)
    shown = capsys.readouterr().out
    assert shown.count("safetensors") == 40
    assert f"and {len(plan.shards) - 40} more" in shown


def test_a_checkpoint_is_shown_with_every_key(
    checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    """The printed checkpoint has every stored key in full with type, shape and boxes, its layout and its
    sizes.
    """
    catalog = read_catalog(checkpoint("qwen3_moe", "pp2ep2"), None)
    console.print_catalog(catalog)
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
    value = json.loads(json.dumps(console.catalog_json(catalog)))
    assert value["tensors"].keys() == {tensor.key for tensor in catalog.tensors}
    assert value["weights"]["num_boxes"] == len(catalog.stored_items)
    assert value["other"].keys() == {"_extra_state", "optimizer", "rng_state"}


def test_a_checkpoint_without_args_is_shown_too(planned: Planned, capsys: pytest.CaptureFixture[str]) -> None:
    """Without training args, layout and model are called unknown."""
    description = replace(planned.sources.catalog.description, args=None)
    console.print_catalog(replace(planned.sources.catalog, description=description))
    shown = capsys.readouterr().out
    assert "unknown (no training args)" in shown


def test_a_verification_is_shown_fault_by_fault(capsys: pytest.CaptureFixture[str]) -> None:
    """Every fault has a line with file, tensor and reason, and the last line has the verdict."""
    faults = tuple(
        Fault("wrong-digest", f"model-{n}.safetensors", f"layer.{n}.w", "differs") for n in range(60)
    )
    console.print_verification(Verification("folder", faults, 3, 70, 10**9, "full", True))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 61
    assert all(line.startswith("FAULT ") and f"layer.{n}.w" in line for n, line in enumerate(lines[:-1]))
    assert lines[-1] == "folder: 60 faults (full; 3 files, 70 tensors, 1 GB read)"
    console.print_verification(Verification("folder", (), 3, 70, 10**9, "full", True))
    assert capsys.readouterr().out.startswith("folder: ok (full;")


def test_progress_is_a_line_per_stage_now_and_then(planned: Planned, lines: list[str], clock: Clock) -> None:
    """Without a terminal, each stage has a line every few seconds with its bytes, rate and shards."""
    world = OneOfFour(0)
    with ExportView(world) as view:
        view.poll("export")
        view.plan(planned.sources, planned.plan)
        assert len(lines) == 1
        assert "exporting Qwen2ForCausalLM: 75 tensors" in lines[0]
        assert "by 4 ranks in 2 stages" in lines[0]
        view.poll("export")
        clock.now += 1
        view.poll("export")
        assert len(lines) == 1
        world.posted = {0: {"written": 100_000, "shards": 1}, 2: {"written": 50_000, "shards": 0}}
        clock.now += 9
        view.poll("export")
        first, second = lines[1:]
        totals = [sum(s.num_bytes for s in planned.plan.shards if s.stage == stage) for stage in (0, 1)]
        counts = [sum(s.stage == stage for s in planned.plan.shards) for stage in (0, 1)]
        total, other = map(human_bytes, totals)
        assert first == f"export stage 0: 100 KB of {total}, 10 KB/s, 1 of {counts[0]} shards"
        assert second == f"export stage 1: 50 KB of {other}, 5 KB/s, 0 of {counts[1]} shards"
        view.poll("export")
        assert len(lines) == 3


def test_progress_of_verifying_counts_what_a_stage_verifies(
    planned: Planned, lines: list[str], clock: Clock
) -> None:
    """A stage's line while verifying has the bytes of the shards that its ranks re-read, not of those they
    wrote.
    """
    world = OneOfFour(0)
    view = ExportView(world)
    view.plan(planned.sources, planned.plan)
    view.poll("verify")
    clock.now += 10
    pairs = list(zip(planned.plan.shards, planned.plan.verifiers()))
    mine = {rank: sum(shard.num_bytes for shard, reader in pairs if reader == rank) for rank in range(4)}
    world.posted = {rank: {"verified": count} for rank, count in mine.items()}
    view.poll("verify")
    assert len(lines) == 3
    for line in lines[1:]:
        done, _, total = line.partition(": ")[2].partition(",")[0].partition(" of ")
        assert done == total


def test_other_ranks_show_nothing(planned: Planned, lines: list[str], clock: Clock) -> None:
    """Only rank 0 speaks of progress."""
    view = ExportView(OneOfFour(1))
    view.plan(planned.sources, planned.plan)
    for _ in range(3):
        clock.now += 60
        view.poll("export")
    assert lines == []


def test_a_terminal_gets_bars(
    planned: Planned, lines: list[str], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal each stage has a bar that is completed by the bytes written."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    world = OneOfFour(0)
    with ExportView(world) as view:
        view.plan(planned.sources, planned.plan)
        world.posted = {0: {"written": 100, "shards": 1}}
        clock.now += 1
        view.poll("export")
        assert view._bars is not None
        assert [(task.description, task.completed) for task in view._bars.tasks] == [
            ("export stage 0", 100),
            ("export stage 1", 0),
        ]
    with console.bytes_bar("verifying") as on_bytes:
        on_bytes(10)


def test_bytes_without_a_terminal_are_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """The bar of `verify` prints nothing where there is no terminal."""
    with console.bytes_bar("verifying") as on_bytes:
        on_bytes(10)
    assert capsys.readouterr() == ("", "")


def test_the_summary_says_what_was_proved(planned: Planned, capsys: pytest.CaptureFixture[str]) -> None:
    """The table at the end says what was accounted, checked and verified, and what was not."""
    seconds = {"export": 2.0, "verify": 1.0}
    report = ExportReport(
        planned.sources, planned.plan, planned.options, None, ("a correction",), (10**9,), seconds
    )
    view = ExportView(OneOfFour(0))
    view.summary(report)
    shown = capsys.readouterr().out
    for text in (
        "exported to out",
        "every tensor once, against the table itself",
        "CRC-32 of every record checked",
        "every byte re-read, 1.0 s",
        "a correction",
        "1 GB (anonymous, per rank)",
    ):
        assert text in shown
    unchecked = replace(planned.options, verify=False, check_source=False)
    view.summary(replace(report, options=unchecked, corrections=()))
    shown = capsys.readouterr().out
    assert "NOT verified" in shown
    assert "not checked" in shown
    assert "CRC-32" not in shown
