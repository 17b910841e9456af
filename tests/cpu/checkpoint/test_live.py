"""Claims of live exports: the bytes are those of the checkpoint that the same job saves, work is shared, and
nothing of the job is changed, also when the export fails.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import pp_export
from pp_export.checkpoint import live
from pp_export.core import file_names
from pp_export.core.errors import CheckpointError
from pp_export.reference.definition import define
from tests.cpu.conftest import Reference
from tests.fixtures.exports import RememberedDefinition, export_here, files_of
from tests.fixtures.live import Case
from tests.fixtures.parts import Part, entry
from tests.fixtures.processes import run_python, torchrun

# (model, layout, wrapper) for each number of ranks.
GOOD = {
    4: (
        ("qwen2", "tp2pp2", "ddp"),
        ("qwen2", "tp2", "none"),
        ("qwen3_moe", "tp2ep2etp1", "ddp"),
        ("qwen3_moe", "pp2ep2", "none"),
        ("qwen3_moe", "tp2pp2", "none"),
        ("qwen3_moe", "tp2ep2etp2", "none"),
    ),
    2: (
        ("qwen2", "pp2vpp3", "ddp"),
        ("qwen3_moe", "pp2vpp3", "none"),
        ("qwen2", "tp1", "float16+ddp"),
        ("qwen3_moe", "ep2", "ddp"),
        ("qwen3_moe", "tp1", "none"),
        ("qwen2_tied", "pp2", "none"),
    ),
}
FAULTS = ("describe@2", "read@3", "connect@1", "round@2", "round@0", "last@3", "freeze@1", "freeze@0")
OTHERWISE = {"transformers_version", "max_window_layers"}
"""Values of a config object that change nothing where no layer has a window."""
Found = Callable[[str], list[dict[str, Any]]]


def name_of(model: str, layout: str) -> str:
    return f"{model}-{layout}"


@pytest.fixture(scope="module")
def root(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case, run in two launches."""
    root = tmp_path_factory.mktemp("live")
    RememberedDefinition.write(root / "answers.json")
    for num_ranks, good in GOOD.items():
        cases = [
            Case(model, layout, str(reference(model)), str(root / name_of(model, layout)), wrapper)
            for model, layout, wrapper in good
        ]
        if num_ranks == 4:
            folder = str(reference("qwen2"))
            cases += [Case("qwen2", "tp2pp2", folder, str(root / fault), "ddp", fault) for fault in FAULTS]
            cases.append(Case("qwen2", "tp2pp2", folder, str(root / "option"), options={"dtype": "int4"}))
            alone = {
                "reference": None,
                "architecture": "Qwen2ForCausalLM",
                "tokenizer": folder,
                "vocab_size": 250,
            }
            cases.append(Case("qwen2", "tp2pp2", "", str(root / "made"), options=alone))
            few = {"leaders_per_stage": 2, "show_progress": True}
            cases.append(Case("qwen2", "tp2", folder, str(root / "few"), options=few))
            case = ("qwen3_moe", "tp2ep2etp1", str(reference("qwen3_moe")), str(root / "quantized"))
            cases.append(Case(*case, options={"quantize": "int8-channel"}))
        file = root / f"cases-{num_ranks}.json"
        file.write_text(json.dumps([asdict(case) for case in cases]))
        command = torchrun(num_ranks, "-m", "tests.fixtures.live", str(file))
        run_python(command, root / f"launch-{num_ranks}", timeout_s=240).checked()
    return root


@pytest.fixture(scope="module")
def found(root: Path) -> Found:
    """What every rank of a case found, in rank order."""
    return lambda name: [json.loads(path.read_text()) for path in sorted((root / name).glob("rank*.json"))]


ALL = [(model, layout) for good in GOOD.values() for model, layout, _ in good]


@pytest.mark.parametrize(("model", "layout"), ALL)
def test_the_bytes_are_those_of_the_job_s_checkpoint(
    root: Path, reference: Reference, model: str, layout: str
) -> None:
    """Every file but the manifest, which tells how it was made, equals that of the offline export."""
    folder = root / name_of(model, layout)
    export_here(checkpoint=folder / "checkpoint", reference=reference(model), output=folder / "offline")
    files = [files_of(folder / name) for name in ("live", "offline")]
    assert [file.pop(file_names.MANIFEST) for file in files]
    assert files[0] == files[1]
    assert any(name.endswith(".safetensors") for name in files[0])


def test_a_quantized_export_has_the_bytes_of_the_checkpoint_s(root: Path, reference: Reference) -> None:
    """Tensor parallel parts and experts of several ranks are whole before they are quantized."""
    folder = root / "quantized"
    given = {"checkpoint": folder / "checkpoint", "reference": reference("qwen3_moe")}
    report = export_here(**given, output=folder / "offline", quantize="int8-channel")
    assert len(report.quantized) == 6 * (4 + 3 * 8)
    files = [files_of(folder / name) for name in ("live", "offline")]
    assert [file.pop(file_names.MANIFEST) for file in files]
    assert files[0] == files[1]


@pytest.mark.parametrize(("model", "layout"), ALL)
def test_nothing_of_the_job_is_changed(found: Found, model: str, layout: str) -> None:
    """Parameters (values and places), gradient buffers, generators, config, groups, signals and threads are
    what they were, and the default group works.
    """
    ranks = found(name_of(model, layout))
    for rank in ranks:
        assert (rank["changed"], rank["threads"], rank["all_reduce"]) == ([], [], len(ranks))


def test_replicas_share_the_work(found: Found) -> None:
    """With data parallel replicas every rank leads shards, and none reads more than its share and one
    tensor.
    """
    for name in (name_of("qwen2", "tp2"), name_of("qwen2", "tp1")):
        ranks = found(name)
        assert ranks[0]["leaders"] == list(range(len(ranks)))
        read = [rank["read_bytes"] for rank in ranks]
        assert min(read) > 0.5 * max(read)


def test_stages_are_the_job_s_own(found: Found) -> None:
    """A shard's stage is the pipeline stage that holds it, with virtual stages too."""
    assert found(name_of("qwen2", "tp2pp2"))[0]["stages"] == [[0, 1], [2, 3]]
    assert found(name_of("qwen2", "pp2vpp3"))[0]["stages"] == [[0], [1]]
    assert found(name_of("qwen3_moe", "pp2ep2"))[0]["stages"] == [[0, 1], [2, 3]]


def test_leaders_can_be_few(found: Found) -> None:
    """`leaders_per_stage` bounds who takes memory, spread over the replicas; showing progress changes
    nothing.
    """
    assert found("few")[0]["leaders"] == [0, 2]
    assert all(rank["changed"] == [] for rank in found("few"))


def test_a_model_says_what_config_json_is(root: Path, found: Found) -> None:
    """Without a reference, the bytes of all weights and the tokenizer are those of the export with one, and
    transformers understands the same model.
    """
    assert [rank.get("error") for rank in found("made")] == [None] * 4
    with_one, made = (files_of(root / name / "live") for name in (name_of("qwen2", "tp2pp2"), "made"))
    assert made.keys() == with_one.keys()
    own = {file_names.CONFIG, file_names.MANIFEST, file_names.SUMS}
    assert {name for name in made if made[name] != with_one[name]} <= own
    definitions = [define(json.loads(files[file_names.CONFIG])) for files in (made, with_one)]
    assert definitions[0] is not None
    assert definitions[1] is not None
    assert definitions[0].tensors == definitions[1].tensors
    values = [{k: v for k, v in each.config.items() if k not in OTHERWISE} for each in definitions if each]
    assert values[0] == values[1]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failure_is_the_same_error_everywhere_and_leaves_the_job_alone(
    root: Path, found: Found, fault: str
) -> None:
    """Every rank raises the same ExportError that names the rank at fault; nothing is changed, left or
    blocked.
    """
    ranks = found(fault)
    what, _, rank = fault.partition("@")
    assert len(ranks) == 4
    for one in ranks:
        assert one["error"] == ranks[0]["error"]
        assert (one["changed"], one["threads"], one["all_reduce"]) == ([], [], 4)
        assert one["descriptors"] == [], "files of the staging folder, which is gone"
    assert f"injected into {what}" in ranks[0]["error"]["what"]
    assert ranks[0]["error"]["where"]["rank"] == rank
    assert [path.name for path in (root / fault).iterdir() if not path.name.startswith("rank")] == []


def test_a_wrong_option_is_the_same_error_everywhere(found: Found) -> None:
    """An option that can't be is refused by all ranks, although it is found before they know each other."""
    ranks = found("option")
    assert {json.dumps(rank["error"]) for rank in ranks} == {json.dumps(ranks[0]["error"])}
    assert ranks[0]["error"]["kind"] == "OptionError"
    assert all(rank["changed"] == [] for rank in ranks)


# --- without a process group


def test_what_is_no_megatron_module_is_refused() -> None:
    """A part without `sharded_state_dict` is refused with its type and number."""
    with pytest.raises(CheckpointError, match="no sharded_state_dict") as caught:
        live.check([Part({}), torch.nn.Linear(2, 2)])
    assert (caught.value.where, caught.value.got) == ({"part": "1"}, "Linear")


def test_parameters_that_are_no_plain_tensors_are_refused() -> None:
    """A subclass of a tensor (DTensor, quantized) doesn't hold a slice's values, and is refused by its
    key.
    """

    class Strange(torch.Tensor):
        pass

    state = {"w": entry("decoder.w", torch.zeros(2).as_subclass(Strange))}
    with pytest.raises(CheckpointError, match="not a plain tensor") as caught:
        live.look_at([Part(state)])
    assert (caught.value.where, caught.value.got) == ({"tensor": "decoder.w"}, "Strange")
    with pytest.raises(CheckpointError, match="is flattened"):
        live.look_at([Part({"w": entry("decoder.w", torch.zeros(2), flattened_range=slice(0, 1))})])


def test_ranks_of_different_models_are_refused() -> None:
    """Configs that differ, tensors of another type and tensors with holes are refused before anything is
    written.
    """
    ones = live.look_at([Part({"w": entry("decoder.w", torch.ones(2))}, num_layers=2)]).to_bytes()
    more = live.look_at([Part({"w": entry("decoder.w", torch.ones(2))}, num_layers=3)]).to_bytes()
    with pytest.raises(CheckpointError, match="different models") as caught:
        live.merge([ones, more])
    assert caught.value.findings == ("rank 1: num_layers is 3, elsewhere 2",)
    half = live.look_at([Part({"w": entry("decoder.w", torch.ones(2).half())}, num_layers=2)]).to_bytes()
    with pytest.raises(CheckpointError, match="different models"):
        live.merge([ones, half])
    part = entry("decoder.w", torch.ones(2), global_shape=(4,))
    with pytest.raises(CheckpointError, match="do not fill the tensor"):
        live.merge([live.look_at([Part({"w": part})]).to_bytes()])
    with pytest.raises(CheckpointError, match="no parameters"):
        live.merge([live.look_at([Part({})]).to_bytes()])


def test_wrappers_and_prefixes_are_looked_through() -> None:
    """However a part is wrapped, and whatever stands before its names, keys are Megatron's own."""
    inner = Part({"a": [entry("module.decoder.w", torch.ones(2))], "b": {"extra": object()}}, num_layers=1)
    outer = torch.nn.Module()
    outer.module = torch.nn.Module()
    outer.module.module = inner
    local = live.look_at([outer])
    assert [box.key for box in local.boxes] == ["decoder.w"]
    assert local.args == {"num_layers": 1}


def test_the_copy_of_a_tied_embedding_is_left_out() -> None:
    """A tensor that another pipeline stage owns (first number of its replica) is not taken from here."""
    copy = entry("embedding.word_embeddings.weight", torch.ones(2), replica_id=(1, 0, 0))
    twin = entry("decoder.w", torch.ones(2), replica_id=(0, 3, 5))
    local = live.look_at([Part({"a": copy, "b": twin})])
    assert [box.key for box in local.boxes] == ["decoder.w"]


def test_parameters_that_are_still_to_be_gathered_are_gathered_first() -> None:
    """With --overlap-param-gather the wrapper gathers at once, as before Megatron's own save; else it isn't
    asked.
    """
    asked: list[dict[str, bool]] = []

    class Wrapper(torch.nn.Module):
        def __init__(self, handles: dict[int, object]) -> None:
            super().__init__()
            self.module, self.remove_forward_pre_hook_handles = Part({}), handles

        def start_param_sync(self, **options: bool) -> None:
            asked.append(options)

    live.settle([Wrapper({}), Part({})])
    assert asked == []
    live.settle([Wrapper({1: object()}), Wrapper({})])
    assert asked == [{"force_sync": True}]


def test_copies_that_a_factory_makes_are_kept_one_at_a_time() -> None:
    """Grouped experts come as copies: they are made when they are read, and those of one parameter only."""

    class Factory:
        build_fn = None

        def __init__(self, number: int) -> None:
            self.number = number

        def build(self) -> list[SimpleNamespace]:
            values = torch.full((4, 2), float(self.number))
            made.append(weakref.ref(values))
            return [entry(f"decoder.layers.{self.number}.w", values)]

    made: list[weakref.ref[torch.Tensor]] = []
    local = live.look_at([Part({str(number): Factory(number) for number in range(3)})])
    assert [ref() for ref in made] == [None] * 3
    catalog = live.merge([local.to_bytes()])
    with live.LiveReader(local, catalog) as reader:
        for number in range(3):
            (slice_,) = catalog.slices[f"decoder.layers.{number}.w"]
            data = bytearray(slice_.num_bytes)
            reader.read(slice_, memoryview(data))
            assert torch.frombuffer(data, dtype=torch.float32).tolist() == [float(number)] * 8
            assert sum(ref() is not None for ref in made) == 1


def test_an_interrupt_stays_an_interrupt(reference: Reference, tmp_path: Path) -> None:
    """Ctrl-C in the middle is not an ExportError that a training loop would log and forget; nothing is
    left.
    """

    class Interrupted(Part):
        def sharded_state_dict(self) -> dict[str, Any]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pp_export.export_model(Interrupted({}), reference=reference("qwen2"), output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
