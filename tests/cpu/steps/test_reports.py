"""Claims of the reports in `pp_export.steps`: plain values, which survive JSON and add up."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from torch.distributed import HashStore  # type: ignore[attr-defined]

from pp_export.checkpoint.formats import describe_checkpoint
from pp_export.core.errors import ExportError, TargetError
from pp_export.distributed.backends import Backend
from pp_export.distributed.world import World
from pp_export.steps import report, report_files
from pp_export.steps.checkpoint_report import checkpoint_report
from pp_export.steps.inputs import Whole, plan_export
from pp_export.steps.measured import Measured
from pp_export.steps.plan_report import plan_report
from pp_export.steps.provenance import provenance
from pp_export.steps.report import Completed, ExportReport
from tests.cpu.conftest import Checkpoint
from tests.fixtures.planned import Planned
from tests.fixtures.worlds import on_all


@pytest.fixture
def done(planned: Planned) -> ExportReport:
    """A report with something in every field."""
    completed = Completed(("a correction",), ("tokenizer.json",), ("old.bin",), ("a note",))
    seconds = {"plan": 0.5, "export": 2.0}
    measured = [Measured(5 + rank, {3 - rank: 10 + rank}, {}) for rank in range(4)]
    backend = Backend("gloo", "asked for")
    whole = Whole(planned.inputs, planned.plan)
    return report.succeeded(whole, planned.options, backend, completed, measured, seconds)


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(value, allow_nan=False))


def test_a_report_survives_json(done: ExportReport) -> None:
    """`from_json` of the written report is the report; its fields are plain values."""
    assert ExportReport.from_json(done.to_json()) == done
    assert ExportReport.from_json(through_json(done.to_json())) == done
    assert through_json(done.to_json()) == done.to_json()


def test_what_was_sent_is_told_by_link(done: ExportReport) -> None:
    """Each rank's peak in rank order, and the bytes of every pair of ranks of which one sent to the other."""
    assert done.peak_anonymous_bytes == (5, 6, 7, 8)
    assert [tuple(link.values()) for link in done.links] == [(0, 3, 10), (1, 2, 11), (2, 1, 12), (3, 0, 13)]
    assert [tuple(link) for link in done.links] == [("sender", "receiver", "bytes")] * 4


def test_the_repr_is_one_line(done: ExportReport) -> None:
    """It says where to, how much, and how long it took in all."""
    assert repr(done) == (
        f"ExportReport(output={done.output!r}, files={done.num_files}, bytes={done.total_size}, seconds=2.5)"
    )


def test_a_failure_s_report_is_raised_again(planned: Planned) -> None:
    """`from_json` of the report of a failure raises that error, with all its fields."""
    error = TargetError("full", where={"rank": 3}, expected=1, got=2, advice="less", findings=["a", "b"])
    with pytest.raises(TargetError) as caught:
        ExportReport.from_json(through_json(report_files.failure_json(error, planned.options)))
    assert caught.value.to_json() == error.to_json()


def test_other_values_are_no_reports(done: ExportReport) -> None:
    """Another version, or a missing key, is refused by name."""
    value = done.to_json()
    for wrong in ({**value, "schema_version": 2}, {**value, "schema_version": None}, {}):
        with pytest.raises(ExportError, match="not the report of an export"):
            ExportReport.from_json(wrong)
    del value["stages"]
    with pytest.raises(ExportError) as caught:
        ExportReport.from_json(value)
    assert caught.value.findings == ("stages is missing",)


def test_the_manifest_gets_what_decides_bytes(planned: Planned, done: ExportReport) -> None:
    """Provenance has the result options only; the report has all of them."""
    made = provenance(planned.inputs, planned.plan, planned.options)
    assert made["options"] == planned.options.result.to_json()
    assert "output" not in made["options"]
    assert done.options == planned.options.to_json()
    assert made["plan_fingerprint"] == done.plan_fingerprint == planned.plan.fingerprint
    assert through_json(made) == made


def test_every_rank_gets_the_report_of_rank_0_without_its_lists(done: ExportReport) -> None:
    """On other ranks than 0 only what grows with tensors or ranks is left out, and rank 0 alone makes it."""
    made: list[int] = []

    def share(world: World) -> ExportReport:
        def make() -> ExportReport:
            made.append(world.rank)
            return replace(done, not_finite={"norm.weight": 3}, dropped={"mtp.x": "asked for"})

        return report.share(world, make)

    first, *others = on_all(share, HashStore())
    assert made == [0]
    assert first == replace(done, not_finite={"norm.weight": 3}, dropped={"mtp.x": "asked for"})
    nothing: dict[str, Any] = {"words": [], "phases": {}, "ranks": []}
    told = replace(
        done, other_dtypes={}, links=(), peak_anonymous_bytes=(), planned_peak_bytes=(), timeline=nothing
    )
    assert others == [told] * len(others)
    assert done.links
    assert done.planned_peak_bytes


def test_the_plan_for_machines_adds_up(planned: Planned) -> None:
    """The plan as JSON has every file and rank, and its bytes agree with each other and with the plan."""
    value = json.loads(json.dumps(plan_report(planned.inputs, planned.plan, "auto").to_json()))
    assert [shard["file"] for shard in value["shards"]] == [shard.file for shard in planned.plan.shards]
    assert sum(rank["written_bytes"] for rank in value["ranks"]) == sum(
        shard["bytes"] for shard in value["shards"]
    )
    assert [rank["stage"] for rank in value["ranks"]] == [0, 0, 1, 1]
    stored = sum(spec.num_bytes for spec in planned.inputs.catalog.specs.values())
    assert sum(rank["read_bytes"] for rank in value["ranks"]) == stored
    assert [rank["peak_bytes"] for rank in value["ranks"]] == [part.peak_bytes for part in planned.plan.parts]
    tensors = {name: tensor for shard in value["shards"] for name, tensor in shard["tensors"].items()}
    assert tensors["lm_head.weight"] == {"dtype": "float32", "shape": [250, 64]}
    assert (value["fingerprint"], value["total_size"]) == (planned.plan.fingerprint, planned.plan.total_size)
    assert value["sizes"]["padded_vocab_size"] == 256


def test_the_report_names_ranks_that_could_not_help(planned: Planned) -> None:
    """Of an export by more ranks than files, the plan and the report say which ranks had nothing to do."""
    plan = plan_export(planned.inputs, replace(planned.options, pipeline_parallel=None), 9)
    whole, nothing = Whole(planned.inputs, plan), Backend(None, "nothing is sent")
    made = report.succeeded(whole, planned.options, nothing, Completed(), [], {})
    assert (made.backend, made.backend_reason) == (None, "nothing is sent")
    assert repr(made).endswith("seconds=0.0)")
    (note,) = [note for note in made.notes if "nothing to read or write" in note]
    assert note.startswith("1 of 9 ranks have nothing to read or write (8): there are 8 files")
    assert note in plan_report(planned.inputs, plan, "auto").notes


def test_the_plan_of_ranges_adds_up(planned: Planned) -> None:
    """A file that several ranks write is one file, with its ranges one after another and who writes them."""
    plan = planned.in_ranges()
    value = through_json(plan_report(planned.inputs, plan, "auto").to_json())
    assert [shard["file"] for shard in value["shards"]] == [ranges[0].file for ranges in plan.files]
    written = [0] * 4
    for shard in value["shards"]:
        begins = [each["begin"] for each in shard["ranges"]]
        assert begins == [0, *(each["end"] for each in shard["ranges"][:-1])]
        assert shard["ranges"][-1]["end"] == shard["bytes"]
        for each in shard["ranges"]:
            written[each["leader"]] += each["end"] - each["begin"]
    assert written == [rank["written_bytes"] for rank in value["ranks"]]
    assert all(written)
    whole = through_json(plan_report(planned.inputs, planned.plan, "auto").to_json())
    for one, other in zip(value["shards"], whole["shards"]):
        assert {k: v for k, v in one.items() if k != "ranges"} == {
            k: v for k, v in other.items() if k != "ranges"
        }


def test_a_checkpoint_for_machines_adds_up(checkpoint: Checkpoint) -> None:
    """The checkpoint as JSON has every stored key and box, and what is no weight by kind."""
    catalog = describe_checkpoint(checkpoint("qwen3_moe", "pp2ep2"), None)
    value = json.loads(json.dumps(checkpoint_report(catalog).to_json()))
    assert value["tensors"].keys() == {tensor.key for tensor in catalog.tensors}
    assert value["weights"]["num_boxes"] == len(catalog.stored_items)
    assert value["other"].keys() == {"_extra_state", "optimizer", "rng_state"}
