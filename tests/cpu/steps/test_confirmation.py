"""Claims of `pp_export.steps.confirmation` and `model`: nobody waits for the model's definition before the
plan, what it refutes ends the export as soon as it is known, and what it says is in folder and report.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import pytest

from pp_export.architecture import meaning
from pp_export.architecture.sizes import ModelSizes, model_sizes
from pp_export.checkpoint.folder_source import CheckpointSource
from pp_export.core import file_names
from pp_export.core.errors import AccountingError, ReferenceFolderError
from pp_export.distributed.alone import alone
from pp_export.distributed.world import World
from pp_export.export import export
from pp_export.options.kinds import ExportOptions
from pp_export.reference.definition import Definition, define
from pp_export.reference.definition_cache import Answer
from pp_export.steps import model, pending
from pp_export.steps.confirmation import Confirmation
from pp_export.steps.inputs import ExportInputs, Whole
from pp_export.steps.report import ExportReport
from pp_export.steps.telling import OnProgress, Step, Telling, ignore
from tests.cpu.conftest import Checkpoint, Reference
from tests.fixtures.exports import export_here, files_of

Change = Callable[[Definition], Definition]


class LateDefinition:
    """Stands in for `PendingDefinition`: true answers, with a change, that come when they are let go."""

    asked: ClassVar[list[LateDefinition]]
    change: ClassVar[Change]
    let_go: ClassVar[threading.Event]

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config, self.is_closed, self.is_answered = dict(config), False, False
        self.asked.append(self)

    @classmethod
    def start(cls, config: Mapping[str, Any], *, cache: bool) -> LateDefinition:
        return cls(config)

    @property
    def is_here(self) -> bool:
        return self.let_go.is_set()

    def answer(self) -> Answer:
        assert self.is_here, "somebody took an answer that is not there"
        self.is_answered = True
        found = define(self.config)
        assert found is not None
        return Answer(type(self).change(found))

    def close(self) -> None:
        self.is_closed = True


@contextmanager
def late(change: Change = lambda found: found) -> Iterator[type[LateDefinition]]:
    LateDefinition.asked, LateDefinition.let_go = [], threading.Event()
    LateDefinition.change = staticmethod(change)
    with patch.object(pending, "PendingDefinition", LateDefinition):
        yield LateDefinition


@pytest.fixture
def options(checkpoint: Checkpoint, reference: Reference, tmp_path: Path) -> dict[str, Any]:
    """A checkpoint, its reference without weights, and a folder of one's own to export into."""
    return {
        "checkpoint": checkpoint("qwen2", "tp2"),
        "reference": reference("qwen2"),
        "output": tmp_path / "out" / "model",
        "parents": True,
    }


def exported(values: dict[str, Any], **callbacks: Any) -> ExportReport:
    chosen = ExportOptions(**values)
    source = CheckpointSource(chosen.checkpoint, chosen.iteration, chosen.check_source)
    return export(source, chosen, alone(stall_seconds=30), **callbacks)


def when_bytes_move(act: Callable[[], None]) -> OnProgress:
    return lambda now: act() if now.step == Step.MOVING else None


def without(name: str) -> Change:
    """The definition of a model that lacks a tensor."""
    return lambda found: replace(found, tensors={n: s for n, s in found.tensors.items() if n != name})


def nothing_is_left(options: dict[str, Any]) -> bool:
    return not any(options["output"].parent.iterdir())


def test_the_plan_waits_for_nobody(options: dict[str, Any]) -> None:
    """The plan is made, by the table alone, before there is an answer; the answer that comes while shards are
    written is what the report and the folder tell, as if it had been there at once.
    """
    planned: list[ExportInputs] = []

    def remember(_: Telling, inputs: ExportInputs, __: object) -> None:
        planned.append(inputs)

    with late() as definition, patch.object(Telling, "plan", remember):
        report = exported(options, on_progress=when_bytes_move(definition.let_go.set))
    assert planned[0].account.truth == "the table itself"
    assert report.expected_from == "the model's own definition (transformers)"
    late_files = files_of(options["output"])
    at_once = export_here(**options | {"output": options["output"].with_name("at_once")})
    assert files_of(options["output"].with_name("at_once")) == late_files
    assert report.notes == at_once.notes
    assert report.config_additions == at_once.config_additions
    assert report.settings == at_once.settings


def test_an_answer_after_the_last_byte_is_waited_for(options: dict[str, Any]) -> None:
    """Nothing is published before the definition was heard, however long everything else is done."""
    seen: list[bool] = []
    wait = pending.PendingInputs.wait

    def let_go(self: Any, *arguments: Any) -> None:
        seen.append(options["output"].exists() or definition.let_go.is_set())
        definition.let_go.set()
        wait(self, *arguments)

    with late() as definition, patch.object(pending.PendingInputs, "wait", let_go):
        report = exported(options)
    assert seen == [False]
    assert report.expected_from == "the model's own definition (transformers)"
    config = json.loads((options["output"] / file_names.CONFIG).read_text())
    assert config["architectures"] == ["Qwen2ForCausalLM"]


@pytest.mark.parametrize("is_late", [False, True], ids=["beside", "at last"])
def test_what_the_definition_refutes_ends_the_export(options: dict[str, Any], is_late: bool) -> None:
    """Whenever the answer comes, the error is that of the account, nothing is left, and no child either; an
    answer that comes beside the transfer ends that.
    """
    is_finished: list[bool] = []
    wait = Confirmation.wait

    def at_last(self: Confirmation, world: World) -> Whole | None:
        is_finished.append(True)
        definition.let_go.set()
        return wait(self, world)

    with late(without("model.norm.weight")) as definition, patch.object(Confirmation, "wait", at_last):
        hear = ignore if is_late else when_bytes_move(definition.let_go.set)
        with pytest.raises(AccountingError) as caught:
            exported(options, on_progress=hear)
    assert any("model.norm.weight" in finding for finding in caught.value.findings)
    assert caught.value.where["expected from"] == "the model's own definition (transformers)"
    assert nothing_is_left(options)
    assert bool(is_finished) is is_late
    assert all(each.is_closed for each in definition.asked)


def test_a_class_that_refuses_ends_the_export(options: dict[str, Any]) -> None:
    """An answer that is an error is raised at the next poll, as it is."""
    with late() as definition:

        def refuse(found: Definition) -> Definition:
            raise ReferenceFolderError("transformers can't make the reference's model from its config.json")

        definition.change = staticmethod(refuse)
        with pytest.raises(ReferenceFolderError, match="can't make"):
            exported(options, on_progress=when_bytes_move(definition.let_go.set))
    assert nothing_is_left(options)


def test_other_sizes_are_an_error_that_says_what_to_do(options: dict[str, Any]) -> None:
    """Values in effect that give tensors of the same names and shapes but with other contents (half as many
    heads, twice as wide) are named, and so is the way out.
    """
    halved = {"num_attention_heads": 4, "num_query_groups": 2, "head_dim": 16}
    grown = model_sizes

    with late() as definition:

        def sizes(*stated: Any, **how: Any) -> ModelSizes:
            found = grown(*stated, **how)
            is_heard = definition.let_go.is_set()
            return replace(found, values={**found.values, **halved}) if is_heard else found

        hear = when_bytes_move(definition.let_go.set)
        with patch.object(model, "model_sizes", sizes), pytest.raises(AccountingError) as caught:
            exported(options, on_progress=hear)
    assert "other values than the export was planned with" in caught.value.what
    assert "head_dim: planned with 8, transformers says 16" in caught.value.findings
    assert "export again" in (caught.value.advice or "")
    assert nothing_is_left(options)


def test_what_only_the_library_knows_is_waited_for(options: dict[str, Any]) -> None:
    """Where nothing can be settled without the definition, the export waits for it before it plans."""
    settle = meaning.settle
    held: list[bool] = []

    def needs_library(*arguments: Any, **how: Any) -> Any:
        if arguments[3] is None and not how.get("provisional"):
            raise AccountingError("only the library knows")
        return settle(*arguments, **how)

    with late() as definition:
        waited = pending.PendingInputs.waited

        def let_go(self: Any, *rest: Any) -> Answer:
            held.append(True)
            definition.let_go.set()
            return waited(self, *rest)

        with (
            patch.object(meaning, "settle", needs_library),
            patch.object(pending.PendingInputs, "waited", let_go),
        ):
            report = exported(options)
    assert held
    assert report.expected_from == "the model's own definition (transformers)"


def test_a_corrected_config_is_asked_about_beside_as_well(options: dict[str, Any], tmp_path: Path) -> None:
    """Where the checkpoint corrects config.json, the second question is on its way before the plan too, and
    the folder is held against the corrected model.
    """
    reference = tmp_path / "reference"
    reference.mkdir()
    for name, data in files_of(options["reference"]).items():
        (reference / name).write_bytes(data)
    config = json.loads((reference / "config.json").read_text())
    wrong = {key: value for key, value in config.items() if key != "rope_parameters"} | {"rope_theta": 123.0}
    (reference / "config.json").write_text(json.dumps(wrong))
    values = options | {"reference": reference, "config_from": "checkpoint"}
    at_plan: list[int] = []

    def let_go() -> None:
        at_plan.append(len(definition.asked))
        definition.let_go.set()

    with late() as definition:
        report = exported(values, on_progress=when_bytes_move(let_go))
    assert at_plan[0] == 2
    assert [each.is_answered for each in definition.asked] == [True, True]
    assert report.config_corrections
    assert report.expected_from == "the model's own definition (transformers)"
