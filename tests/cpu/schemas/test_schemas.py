"""Claims of `pp_export/schemas`: schemas are strict, and what pp_export writes and prints follows them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from jsonschema import Draft202012Validator

import pp_export
from pp_export.core import file_names
from pp_export.core.errors import ExportError, OptionError, TargetError
from pp_export.options.consolidation import ConsolidateOptions
from pp_export.options.kinds import ExportOptions, ResultOptions, TargetOptions
from pp_export.steps import limits, report_files
from pp_export.steps.checkpoint_report import FAULTS, CheckpointReport, Examination
from pp_export.steps.many_report import ManyReport, Outcome
from pp_export.steps.plan_report import PlanReport, plan_report
from pp_export.steps.report import ExportReport
from pp_export.steps.telling import ExportProgress, PartProgress
from pp_export.verification import KINDS, Fault, Verification
from pp_export.verification.by_layer import KINDS as KINDS_OF_TENSORS
from pp_export.verification.by_layer import LayerErrors, by_layer
from pp_export.verification.comparison import LogitComparison, LogitDifference
from pp_export.verification.diff import ConfigDifference, Difference, SpecDifference
from pp_export.verification.side_by_side import ValueDifference
from tests.cpu.conftest import Checkpoint, Reference
from tests.fixtures.exports import export_here
from tests.fixtures.planned import Planned

NAMES = (
    "compare_logits",
    "diff",
    "export_manifest",
    "failure",
    "families",
    "inspect",
    "many",
    "plan",
    "progress",
    "report",
    "shard",
    "verify",
)

WORST = LogitDifference(batch=0, position=3, token=17, recorded=1.5, exported=1.25)
COMPARISON = LogitComparison(
    *(
        "x",
        "r",
        "float32",
        "bfloat16",
        2,
        16,
        256,
        6,
        True,
        0.05,
        0.75,
        0.9,
        0.01,
        0.06,
        0.25,
        0.01,
        0.2,
        0.1,
    ),
    top_token_agreement=0.97,
    worst=WORST,
)


def schema(name: str) -> Any:
    return json.loads(resources.files("pp_export.schemas").joinpath(f"{name}.json").read_text())


def check(name: str, value: Any) -> None:
    """Raise unless the JSON text of `value` follows the schema."""
    Draft202012Validator(schema(name)).validate(json.loads(json.dumps(value, allow_nan=False)))


@dataclass(frozen=True)
class Made:
    report: ExportReport
    manifest: dict[str, Any]


@pytest.fixture(scope="module")
def made(checkpoint: Checkpoint, reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A real export."""
    out = tmp_path_factory.mktemp("schemas") / "out"
    done = export_here(checkpoint=checkpoint("qwen2", "tp2"), reference=reference("qwen2"), output=out)
    return Made(done, json.loads((out / file_names.MANIFEST).read_text()))


def test_every_schema_is_one() -> None:
    """Each file is a schema of the draft that it names, and there are no others."""
    folder = Path(pp_export.__file__).parent / "schemas"
    assert sorted(path.stem for path in folder.glob("*.json")) == list(NAMES)
    for name in NAMES:
        Draft202012Validator.check_schema(schema(name))
        assert schema(name)["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_an_export_follows_its_schemas(made: Made) -> None:
    """The report, the manifest, and each shard in it."""
    check("report", made.report.to_json())
    check("export_manifest", made.manifest)
    assert made.manifest["shards"]
    for shard in made.manifest["shards"]:
        check("shard", shard)


def test_a_failure_follows_the_report_s_schema(planned: Planned) -> None:
    """With all fields of an error and with none, of a checkpoint's export and of a live one."""
    full = TargetError("full", where={"rank": 3}, expected=1, got=2, advice="less", findings=["a"])
    names = [option.name for option in fields(TargetOptions)]
    live = TargetOptions(**{name: getattr(planned.options, name) for name in names})
    for error in (full, OptionError("wrong")):
        for options in (planned.options, live):
            check("report", report_files.failure_json(error, options))


def test_metadata_follows_its_schemas(planned: Planned) -> None:
    """A plan, one with ranges, and a checkpoint."""
    check("plan", plan_report(planned.inputs, planned.plan, "auto").to_json())
    check("plan", plan_report(planned.inputs, planned.in_ranges(), "auto").to_json())
    check("inspect", pp_export.inspect(planned.options.checkpoint).to_json())
    check("inspect", pp_export.inspect(planned.options.checkpoint, deep=True).to_json())


def test_findings_follow_their_schemas(made: Made) -> None:
    """A verification and a comparison that found nothing, and ones that found every kind of thing."""
    check("verify", pp_export.verify(made.report.output).to_json())
    check("diff", pp_export.diff(made.report.output, made.report.output).to_json())
    check("compare_logits", COMPARISON.to_json())
    faults = tuple(Fault(kind, "f", tensor, "text") for kind in KINDS for tensor in (None, "t"))
    check("verify", Verification("x", faults, 1, 2, 3, "subset 1/2 and load", False, ("note",)).to_json())
    values = (ValueDifference("v", 4, 3, 1, 2, 0.5, 0.1, 7), ValueDifference("c", 4, 3, 1, 2, 0.5, 0.1, None))
    specs = (SpecDifference("s", "F32[1]", "F16[1]"),)
    difference = Difference("a", "b", ("x",), ("y",), specs, values, 3, 1, 24)
    check("diff", difference.to_json())
    told = (ConfigDifference("s", None, [1.5, {"k": "v"}]), ConfigDifference("t", True, 3))
    errors = (LayerErrors("mlp", None, 3, 2, 0.5, 0.1, None), *by_layer(["model.layers.0.norm.weight"], []))
    full = replace(difference, config=told, by_layer=errors, planned_bytes=5, notes=("note",))
    check("diff", full.to_json())
    assert schema("diff")["properties"]["by_layer"]["items"]["properties"]["kind"]["enum"] == [
        *KINDS_OF_TENSORS
    ]


def test_families_follow_their_schema() -> None:
    """The classes that are served, with all cards."""
    check("families", limits.to_json())


def many_report() -> ManyReport:
    error = TargetError("full", where={"rank": 3}, findings=["a"])
    outcomes = (
        Outcome(1, "/e/1", "exported", 1.5, 10, ("note",)),
        Outcome(2, "/e/2", "skipped", notes=("it is exported and proved",)),
        Outcome(3, "/e/3", "failed", error=error),
    )
    return ManyReport({each.iteration: each for each in outcomes}, stopped=True, error=error)


def test_many_exports_follow_their_schema() -> None:
    """Outcomes of every kind, and none."""
    check("many", many_report().to_json())
    check("many", ManyReport().to_json())
    outcome = schema("many")["$defs"]["outcome"]["properties"]
    assert outcome.keys() == {f.name for f in fields(Outcome)}
    assert schema("many")["$defs"]["error"] == schema("report")["$defs"]["failure"]["properties"]["error"]


@pytest.mark.parametrize("name", NAMES)
def test_schemas_are_strict(name: str, made: Made, planned: Planned) -> None:
    """A key too many, a missing one and another version are refused; no object of ours takes other keys."""
    makers: dict[str, Callable[[], dict[str, Any]]] = {
        "compare_logits": COMPARISON.to_json,
        "diff": lambda: pp_export.diff(made.report.output, made.report.output).to_json(),
        "export_manifest": lambda: made.manifest,
        "failure": lambda: report_files.failure_json(ExportError("no"), None),
        "families": limits.to_json,
        "inspect": lambda: pp_export.inspect(planned.options.checkpoint).to_json(),
        "many": lambda: many_report().to_json(),
        "plan": lambda: plan_report(planned.inputs, planned.plan, "auto").to_json(),
        "progress": ExportProgress(parts=(PartProgress("all", 1, 2, 3, 4, 5, 6),)).to_json,
        "report": made.report.to_json,
        "shard": lambda: made.manifest["shards"][0],
        "verify": lambda: pp_export.verify(made.report.output, quick=True).to_json(),
    }
    value = makers[name]()
    wrong = [{**value, "extra": 1}, {**value, "schema_version": 2}]
    wrong += [{k: v for k, v in value.items() if k != key} for key in value]
    for each in wrong:
        with pytest.raises(jsonschema.ValidationError):
            check(name, each)
    assert all(each.get("additionalProperties") is False for each in objects(schema(name)))


def objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every schema in `value` that names its keys."""
    if isinstance(value, dict):
        if isinstance(value.get("properties"), dict):
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from objects(each)


def test_schemas_name_the_fields_of_the_reports() -> None:
    """Keys are those of the dataclasses, options those that there are; a shard is the same in both places."""
    own = {"schema_version"}
    success = schema("report")["$defs"]["success"]["properties"]
    assert success.keys() == {f.name for f in fields(ExportReport)} | own | {"status"}
    assert schema("plan")["properties"].keys() == {f.name for f in fields(PlanReport)} | own
    assert schema("inspect")["properties"].keys() == {f.name for f in fields(CheckpointReport)} | own
    compared = schema("compare_logits")["properties"]
    assert compared.keys() == {f.name for f in fields(LogitComparison)} | own | {"ok"}
    options = schema("report")["$defs"]["options"]["properties"]
    assert options.keys() == {f.name for kind in (ExportOptions, ConsolidateOptions) for f in fields(kind)}
    result = schema("export_manifest")["$defs"]["result_options"]["properties"]
    assert result.keys() == {f.name for f in fields(ResultOptions)}
    for option in fields(ExportOptions):
        if choices := option.metadata["choices"]:
            assert (
                options[option.name] == result.get(option.name, options[option.name]) == {"enum": [*choices]}
            )
    examined = schema("inspect")["properties"]["examined"]["properties"]
    assert examined.keys() == {f.name for f in fields(Examination)}
    assert examined["faults"]["items"]["properties"]["kind"]["enum"] == list(FAULTS)
    kinds = schema("verify")["properties"]["faults"]["items"]["properties"]["kind"]["enum"]
    assert kinds == list(KINDS)
    whole, part = schema("shard"), schema("export_manifest")["$defs"]
    assert part["shard"] == {key: whole[key] for key in part["shard"]}
    assert {key: part[key] for key in whole["$defs"]} == whole["$defs"]
