"""Claims of `pp_export.integrations` and `docs/integrations`: what frameworks call works as it is, and what
they get is what an export of the checkpoint gives.
"""

from __future__ import annotations

import inspect
import json
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pp_export.core import file_names
from pp_export.core.errors import OptionError, ReferenceFolderError
from pp_export.integrations import slime
from pp_export.integrations.bridge import Artifacts, ExportBridge
from pp_export.integrations.ms_swift import SwiftBridge
from pp_export.verification import verify_folder
from tests.cpu.conftest import Reference
from tests.fixtures.exports import RememberedDefinition, export_here, files_of
from tests.fixtures.processes import run_python, torchrun

CALLS = Path(__file__).resolve().parents[2] / "golden_calls"
FULL: tuple[str, ...] = (
    *("megatron_lm/iter_0000010", "megatron_lm/background_0000010", "slime-10", "slime-10-later"),
    *("ms_swift", "nemo_rl", "nemo_rl_live"),
)
# Made in the framework's own order: its files first (verl), or the reference's and then its own (SkyRL).
MIXED = {"verl/model/huggingface": "verl", "verl_mbridge/model/huggingface": "verl", "skyrl": "skyrl"}


@dataclass(frozen=True)
class Saved:
    """What all frameworks saved of one model, and what an export of the job's checkpoint gives."""

    out: Path
    seen: dict[str, Any]
    truth: dict[str, bytes]


@pytest.fixture(scope="module")
def saved(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Two ranks run the documentation's code, framework by framework."""
    out = tmp_path_factory.mktemp("frameworks")
    RememberedDefinition.write(out / "answers.json")
    command = torchrun(2, "-m", "tests.fixtures.frameworks", str(reference("qwen2")), str(out))
    run_python(command, out / "printed", timeout_s=200).checked()
    truth = out / "truth"
    export_here(checkpoint=out / "checkpoint", reference=reference("qwen2"), output=truth)
    files = {name: data for name, data in files_of(truth).items() if name != file_names.MANIFEST}
    return Saved(out, json.loads((out / "seen.json").read_text()), files)


@pytest.mark.parametrize("folder", FULL)
def test_a_whole_folder_equals_the_offline_export(saved: Saved, folder: str) -> None:
    """Live or in the background, by whichever framework's call: every file is that of the checkpoint's
    export.
    """
    found = {name: data for name, data in files_of(saved.out / folder).items() if name != file_names.MANIFEST}
    native = {name for name in found if name.startswith("iter_")}
    assert {name: data for name, data in found.items() if name not in native} == saved.truth
    assert verify_folder(saved.out / folder).ok


def test_a_checkpoint_in_the_same_folder_is_kept(saved: Saved) -> None:
    """ms-swift saves its Megatron checkpoint and the Hugging Face model into one folder; neither harms the
    other.
    """
    assert (saved.out / "ms_swift" / "iter_0000010" / "__0_0.distcp").read_text() == "native"


@pytest.mark.parametrize("folder", MIXED)
def test_weights_come_beside_the_framework_s_own_files(saved: Saved, folder: str) -> None:
    """Weights and index are those of the checkpoint's export; config and tokenizer stay the framework's."""
    found = files_of(saved.out / folder)
    weights = {name for name in saved.truth if name.endswith(".safetensors")} | {file_names.INDEX}
    assert {name: found[name] for name in weights} == {name: saved.truth[name] for name in weights}
    for name in ("config.json", "tokenizer_config.json"):
        assert json.loads(found[name])["written_by"] == MIXED[folder]
    result = verify_folder(saved.out / folder)
    assert result.ok
    assert any("not covered" in note and "config.json" in note for note in result.notes)


def test_artifacts_are_whole_before_the_framework_adds_its_own(saved: Saved) -> None:
    """After weights and `save_artifacts`, SkyRL's folder has every file of a whole export, and no other."""
    assert set(saved.seen["skyrl"]["before configs"]) == saved.truth.keys() | {file_names.MANIFEST}


def test_a_training_loop_can_go_on_after_a_failure(saved: Saved) -> None:
    """A live export without its reference raises, the loop's code logs it, and the next exports succeed."""
    seen = saved.seen["megatron_lm"]
    assert seen["gone_on"]
    assert "reference folder does not exist" in seen["logged"][0]
    assert seen["output"] == str(saved.out / "megatron_lm" / "background_0000010")
    assert saved.seen["nemo_rl"]["output"] == str(saved.out / "nemo_rl")
    assert not (saved.out / "megatron_lm" / "iter_0000011").exists()


def test_adapters_are_refused_before_anything_is_written(saved: Saved) -> None:
    """LoRA saves of verl and ms-swift are refused by name; no folder appears."""
    assert "adapter" in saved.seen["verl"]["adapter"]
    assert "adapter" in saved.seen["ms_swift"]["lora"]
    assert not (saved.out / "ms_swift_lora").exists()
    assert not (saved.out / "verl_adapter").exists()


def test_mbridge_s_names_can_be_found_by_inspection(saved: Saved) -> None:
    """verl looks at the signature of `save_weights` to decide what it may pass."""
    names = {"models", "weights_path", "memory_efficient", "distributed_filesystem", "strict"}
    assert set(saved.seen["verl"]["known"]) == names


# --- recorded calls

_OWNERS = {
    "save_hf_weights": ExportBridge,
    "save_hf_pretrained": ExportBridge,
    "save_hf_adapter": ExportBridge,
    "from_hf_pretrained": ExportBridge,
    "save_artifacts": Artifacts,
    "save_weights": ExportBridge,
}
# Calls that are not made at save time, or by a release before the signature that we have.
_OTHERS = (
    *("AutoConfig", "PreTrained", "AutoTokenizer", "save_hf_pretrained(self"),
    *("is_peft_format", "config=hf"),
)


def recorded() -> list[Any]:
    """The calls that frameworks were seen to make, each under a name for people."""
    calls = json.loads((CALLS / "calls.json").read_text())
    chosen = [
        call
        for call in calls
        if call["function"] in _OWNERS
        and not any(other in call["text"] for other in _OTHERS)
        and not (call["framework"].startswith("m") and "swift" not in call["framework"])
        and (call["function"] != "from_hf_pretrained" or "AutoBridge" in call["text"])
    ]
    names = [f"{c['framework']}-{c['version'][:8]}-{c['line']}-{c['function']}" for c in chosen]
    return [pytest.param(call, id=name) for call, name in zip(chosen, names)]


@pytest.mark.parametrize("call", recorded())
def test_every_recorded_call_binds(call: dict[str, Any]) -> None:
    """The calls in the frameworks' published sources bind to our functions, by position and by name."""
    owner = SwiftBridge if call["framework"] == "ms-swift" else _OWNERS[call["function"]]
    function = getattr(owner, call["function"])
    bound = [] if inspect.ismethod(function) else [None]
    named = {name: None for name in call["keywords"] if name != "**"}
    inspect.signature(function).bind(*bound, *[None] * call["positional"], **named)


def test_calls_of_all_frameworks_are_recorded() -> None:
    """The recorded calls that are bound come from all frameworks that have a live call."""
    frameworks = {param.values[0]["framework"] for param in recorded()}
    assert {"verl", "skyrl", "ms-swift", "slime", "nemo-rl", "areal"} <= frameworks


# --- files alone


def test_a_missing_code_file_fails_loudly(reference: Reference, tmp_path: Path) -> None:
    """`save_artifacts` of a model whose `auto_map` names a file that isn't there raises and copies
    nothing.
    """
    config = json.loads((reference("qwen2") / "config.json").read_text())
    source = tmp_path / "source"
    source.mkdir()
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_x.X"}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(ReferenceFolderError, match="modeling_x"):
        ExportBridge(source).hf_pretrained.save_artifacts(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (source / "modeling_x.py").write_text("class X: pass\n")
    (source / "extra.txt").write_text("more")
    ExportBridge(source).hf_pretrained.save_artifacts(tmp_path / "out", None, ["extra.txt"])
    assert {"config.json", "modeling_x.py", "extra.txt"} == set(files_of(tmp_path / "out"))
    with pytest.raises(OptionError, match="must lie in the reference"):
        ExportBridge(source).hf_pretrained.save_artifacts(tmp_path / "out", additional_files=["../x"])


def test_slime_refuses_what_would_be_wrong(tmp_path: Path) -> None:
    """A quantized save, and one onto the reference itself, are refused at once."""
    args = Namespace(hf_checkpoint=str(tmp_path), save=str(tmp_path))
    with pytest.raises(OptionError, match="the reference's own folder"):
        slime.save_hf_model_to_path(args, tmp_path, [])
    with pytest.raises(OptionError, match="own precision"):
        slime.save_hf_model_to_path(args, tmp_path / "x", [], quantization_config={})
    assert file_names.SUMS not in files_of(tmp_path)
