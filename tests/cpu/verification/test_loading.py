"""Claims of `pp_export.verification.loading`: a folder loads into its model, and runs nothing on the way."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pp_export.verification import verify_folder
from tests.fixtures.damage import Damage, edit_json
from tests.fixtures.hf_folders import INDEX
from tests.fixtures.releases import transformers_5

MODEL_NAMES = ["llama", "mistral", "qwen2", "qwen2_tied", "qwen3", "qwen3_moe", "qwen3_moe_list", "mixtral"]


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders that transformers itself saved, by the name of the model; nobody may change them."""
    transformers: Any = pytest.importorskip("transformers")
    from tests.fixtures.models import MODELS, hf_config

    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            model = dataclasses.replace(
                MODELS[name], num_layers=2, num_experts=MODELS[name].num_experts and 4
            )
            if model.moe_layers:
                model = dataclasses.replace(model, moe_layers=(0, 1))
            made[name] = tmp_path_factory.mktemp(name) / "model"
            model_class = getattr(transformers, model.hf_class)
            model_class(hf_config(model)).save_pretrained(made[name], max_shard_size="100KB")
        return made[name]

    return make


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_model_loads(make_model: Callable[[str], Path], name: str) -> None:
    """A folder that transformers saved has no fault and loads: dense, tied, packed experts."""
    assert "HF_HUB_OFFLINE" not in os.environ
    result = verify_folder(make_model(name), load=True)
    assert result.faults == ()
    assert result.depth.startswith("structure and load; ")
    assert "HF_HUB_OFFLINE" not in os.environ


def without_tensor(name: str) -> Damage:
    return change_tensors(lambda tensors: {key: value for key, value in tensors.items() if key != name})


def change_tensors(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Damage:
    """The folder's tensors changed, in one file with no index: sound in structure."""

    def damage(folder: Path) -> None:
        tensors: dict[str, torch.Tensor] = {}
        for path in sorted(folder.glob("*.safetensors")):
            tensors |= load_file(path)
            path.unlink()
        (folder / INDEX).unlink(missing_ok=True)
        save_file(change(tensors), folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def set_config(**values: object) -> Damage:
    return edit_json("config.json", lambda config: config.update(values))


UP = "model.layers.1.mlp.up_proj.weight"


EXPERT = "model.layers.1.mlp.experts.3.down_proj.weight"


LOAD_DEFECTS: dict[str, tuple[str, str | None, str, Damage]] = {  # name: model, tensor, kind, damage
    "missing": ("llama", UP, "load-missing", without_tensor(UP)),
    "unexpected": (
        "llama",
        "x",
        "load-unexpected",
        change_tensors(lambda tensors: {**tensors, "x": torch.ones(1)}),
    ),
    "other shape": (
        "llama",
        UP,
        "load-mismatch",
        change_tensors(lambda tensors: {**tensors, UP: torch.ones(2, 3)}),
    ),
    "missing expert": (
        "qwen3_moe",
        "model.layers.1.mlp.experts.down_proj",
        "load-mismatch",
        without_tensor(EXPERT),
    ),
    "more layers": (
        "llama",
        "model.layers.2.mlp.up_proj.weight",
        "load-missing",
        set_config(num_hidden_layers=3),
    ),
    "other heads": (
        "mistral",
        "model.layers.0.self_attn.k_proj.weight",
        "load-mismatch",
        set_config(num_key_value_heads=2),
    ),
    "unknown class": ("llama", None, "load-failed", set_config(architectures=["NobodyForCausalLM"])),
    "class that is no model": ("llama", None, "load-failed", set_config(architectures=["AutoTokenizer"])),
    "no class": ("llama", None, "load-failed", set_config(architectures=[])),
    "nonsense": ("llama", None, "load-failed", set_config(hidden_size="many")),
}


# Release 4 of transformers raises at another shape, and keeps experts apart: other kinds of faults, as clear.
OF_RELEASE_5 = {"other shape", "missing expert", "other heads"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=transformers_5 if name in OF_RELEASE_5 else ()) for name in LOAD_DEFECTS],
)
def test_model_that_does_not_fit(make_model: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    """A folder that is sound in itself but not what its config.json describes is found by loading it."""
    model, tensor, kind, damage = LOAD_DEFECTS[name]
    folder = Path(shutil.copytree(make_model(model), tmp_path / "model"))
    damage(folder)
    assert verify_folder(folder).ok
    faults = verify_folder(folder, load=True).faults
    assert (tensor, kind) in {(fault.tensor, fault.kind) for fault in faults}


def test_loading_runs_no_code_of_the_folder(make_model: Callable[[str], Path], tmp_path: Path) -> None:
    """Code that config.json points at is never run, and weights or kernels that it names are not fetched."""
    folder = Path(shutil.copytree(make_model("llama"), tmp_path / "model"))
    marker = tmp_path / "was run"
    (folder / "modeling_x.py").write_text(f"open({str(marker)!r}, 'w')\nclass X: pass\n")
    set_config(
        auto_map={"AutoConfig": "modeling_x.X", "AutoModelForCausalLM": "modeling_x.X"},
        attn_implementation="somebody/kernel",
        _attn_implementation="somebody/kernel",
        transformers_weights="other.safetensors",
    )(folder)
    assert verify_folder(folder, load=True).faults == ()
    assert not marker.exists()
