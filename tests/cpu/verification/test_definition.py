"""Claims of `pp_export.verification.definition`: a folder is what the class of its config would write."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import pp_export
from pp_export.core.errors import ReferenceFolderError
from pp_export.verification import Verification, verify_folder
from tests.fixtures.hf_folders import DOWN, HEAD, found

CLASS = "LlamaForCausalLM"
EMBED, NORM = "model.embed_tokens.weight", "model.norm.weight"
SHAPES = {EMBED: (12, 4), "model.layers.0.mlp.up_proj.weight": (6, 4), NORM: (4,), HEAD: (12, 4)}
TIED = {name: shape for name, shape in SHAPES.items() if name != HEAD}
Change = Callable[[dict[str, torch.Tensor]], object]


@dataclass(frozen=True)
class Answer:
    """A definition."""

    tensors: Mapping[str, tuple[int, ...]]
    config: Mapping[str, Any]


@dataclass
class Known:
    """A definition that somebody knows already."""

    tensors: Mapping[str, tuple[int, ...]] | None = field(default_factory=lambda: SHAPES)
    config: Mapping[str, Any] = field(default_factory=dict)
    asked: list[Mapping[str, Any]] = field(default_factory=list)
    num_closed: int = 0
    error: Exception | None = None

    def __call__(self, config: Mapping[str, Any]) -> Known:
        self.asked.append(config)
        return self

    def result(self) -> Answer | None:
        if self.error is not None:
            raise self.error
        return None if self.tensors is None else Answer(self.tensors, self.config)

    def close(self) -> None:
        self.num_closed += 1


def model_folder(folder: Path, change: Change = lambda tensors: None, **config: Any) -> Path:
    """The folder of a model with SHAPES, in one file, changed."""
    folder.mkdir(exist_ok=True)
    tensors = {name: torch.randn(shape).to(torch.bfloat16) for name, shape in SHAPES.items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"architectures": [CLASS], "vocab_size": 12} | config))
    return folder


def why_not_held(result: Verification) -> str:
    """The one note on why a folder wasn't held against a definition."""
    assert result.definition is None
    assert "definition" not in result.depth
    (note,) = (note for note in result.notes if note.startswith("not compared with"))
    return note


def test_a_folder_that_fits_is_proved(tmp_path: Path) -> None:
    """The definition is asked once, with config.json, and closed; the result names class and depth."""
    known = Known()
    result = verify_folder(model_folder(tmp_path / "m"), ask=known)
    assert result.ok
    assert result.definition == CLASS
    assert result.depth.startswith("structure and definition; no manifest")
    assert not any("definition" in note for note in result.notes)
    assert [config["architectures"] for config in known.asked] == [[CLASS]]
    assert known.num_closed == 1


def replaced(name: str, value: torch.Tensor) -> Change:
    return lambda tensors: tensors.update({name: value})


FAULTS: dict[str, tuple[str, str, str, Change]] = {  # name: file, tensor, kind, change
    "missing": ("config.json", NORM, "definition-missing", lambda tensors: tensors.pop(NORM)),
    "unexpected": ("model.safetensors", "x", "definition-unexpected", replaced("x", torch.ones(2))),
    "shape": ("model.safetensors", NORM, "definition-shape", replaced(NORM, torch.ones(5))),
    "transposed": ("model.safetensors", HEAD, "definition-shape", replaced(HEAD, torch.ones(4, 12))),
    "float8": (
        *("model.safetensors", NORM, "wrong-dtype"),
        replaced(NORM, torch.ones(4).to(torch.float8_e4m3fn)),
    ),
    "int8": ("model.safetensors", HEAD, "wrong-dtype", replaced(HEAD, torch.ones(12, 4, dtype=torch.int8))),
    "int32": ("model.safetensors", HEAD, "wrong-dtype", replaced(HEAD, torch.ones(12, 4, dtype=torch.int32))),
    "layer too many": (
        *("model.safetensors", "model.layers.1.mlp.up_proj.weight", "definition-unexpected"),
        replaced("model.layers.1.mlp.up_proj.weight", torch.ones(6, 4)),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_does_not_fit_is_named(tmp_path: Path, name: str) -> None:
    """A tensor too few or too many, another shape, or a quantized type gives exactly that fault."""
    file, tensor, kind, change = FAULTS[name]
    known = Known(config={"num_hidden_layers": 1})
    assert found(verify_folder(model_folder(tmp_path / "m", change), ask=known)) == {(file, tensor, kind)}


@pytest.mark.parametrize(
    ("change", "shapes", "words"),
    [
        (replaced("model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(2)), SHAPES, "buffer"),
        (lambda tensors: None, TIED, "tied"),
        (replaced("mtp.layers.0.up_proj.weight", torch.ones(6, 4)), SHAPES, "further tokens"),
        (replaced("model.layers.1.mlp.up_proj.weight", torch.ones(6, 4)), SHAPES, "further tokens"),
    ],
    ids=["buffer", "tied head", "mtp", "layer beyond the last"],
)
def test_what_loaders_leave_alone_is_a_note(
    tmp_path: Path, change: Change, shapes: Mapping[str, tuple[int, ...]], words: str
) -> None:
    """Buffers, a head that is tied and stored too, and MTP layers that config.json counts, are notes."""
    known = Known(shapes, {"num_hidden_layers": 1})
    result = verify_folder(model_folder(tmp_path / "m", change, num_nextn_predict_layers=1), ask=known)
    assert result.faults == ()
    assert sum(words in note for note in result.notes) == 1
    assert result.definition == CLASS


def test_a_head_that_cannot_be_the_embedding_is_a_fault(tmp_path: Path) -> None:
    """A head of another shape than the embedding isn't tied to it."""
    folder = model_folder(tmp_path / "m", replaced(HEAD, torch.ones(13, 4)))
    assert found(verify_folder(folder, ask=Known(TIED))) == {
        ("model.safetensors", HEAD, "definition-unexpected")
    }


def test_a_type_that_no_tensor_has_is_a_note(tmp_path: Path) -> None:
    """Where config.json says another type than all tensors have, loaders don't agree on what they get."""
    cases: list[tuple[dict[str, Any], bool]] = [
        ({"dtype": "float32"}, True),
        ({"torch_dtype": "bfloat16"}, False),
        ({}, False),
    ]
    for config, is_noted in cases:
        result = verify_folder(model_folder(tmp_path / "m", **config), ask=Known())
        assert any("no tensor is of it" in note for note in result.notes) == is_noted
        assert found(result) == set()


def test_a_refused_config_is_a_fault(tmp_path: Path) -> None:
    """A class that can't be made from config.json is a fault with the class's own words."""
    known = Known(error=ReferenceFolderError("refused", got="ValueError: no such activation"))
    result = verify_folder(model_folder(tmp_path / "m"), ask=known)
    assert found(result) == {("config.json", None, "definition-refused")}
    assert "no such activation" in result.faults[0].message
    assert known.num_closed == 1


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config the weights are quantized"),
        ({"text_config": {"quantization_config": {"bits": 4}}}, "text_config.quantization_config"),
        ({"architectures": None}, "names no class"),
        ({"configuration_files": ["config.4.0.0.json"]}, "by configuration_files in config.json"),
        ({"transformers_weights": "others.safetensors"}, "by transformers_weights in config.json"),
    ],
    ids=["quantized", "quantized inside", "no class", "another config", "other weights"],
)
def test_why_a_folder_is_not_held(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    """Quantized weights, a config without a class, and one that sends loaders to other files are said, and
    nobody is asked.
    """
    known = Known()
    folder = model_folder(tmp_path / "m", replaced(NORM, torch.ones(4, dtype=torch.int8)), **config)
    result = verify_folder(folder, ask=known)
    assert result.faults == ()
    assert words in why_not_held(result)
    assert known.asked == []


def test_a_class_that_nobody_knows_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the class, or without transformers at all, the folder is verified otherwise and a note says
    what is missing; code of the folder's own is never an answer.
    """
    folder = model_folder(tmp_path / "m", auto_map={"AutoModel": "x.X"})
    note = why_not_held(verify_folder(folder, ask=Known(None)))
    assert f"no class '{CLASS}'" in note
    assert "auto_map" in note
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "transformers is not installed" in why_not_held(verify_folder(folder, ask=Known(None)))


def test_names_that_loaders_translate_are_no_faults(tmp_path: Path) -> None:
    """Where no name is the class's own, as in old folders, one note says so, and not a fault per tensor."""
    shapes = {f"decoder.{name}": shape for name, shape in SHAPES.items()}
    result = verify_folder(model_folder(tmp_path / "m"), ask=Known(shapes))
    assert result.faults == ()
    assert "--load" in why_not_held(result)


def test_folders_that_are_no_model_are_said(folder: Path, tmp_path: Path) -> None:
    """Adapters, weights alone, and weights that can't be read, are held against nothing; nobody is asked."""
    known = Known()
    adapter = model_folder(tmp_path / "adapter")
    (adapter / "config.json").rename(adapter / "adapter_config.json")
    assert "adapters" in why_not_held(verify_folder(adapter, ask=known))
    alone = model_folder(tmp_path / "alone")
    (alone / "config.json").unlink()
    assert "no config.json" in why_not_held(verify_folder(alone, ask=known))
    next(folder.glob("*.safetensors")).unlink()
    assert "missing or can't be read" in why_not_held(verify_folder(folder, ask=known))
    assert known.asked == []


def test_a_quick_look_asks_nobody(tmp_path: Path) -> None:
    """`quick` stays quick: no definition, and a note says so."""
    known = Known({})
    result = verify_folder(model_folder(tmp_path / "m"), quick=True, ask=known)
    assert (result.ok, result.depth, known.asked) == (True, "structure", [])
    assert "quick" in why_not_held(result)


def test_who_asks_also_ends(folder: Path) -> None:
    """The one who was asked is closed also when the verification ends on the way."""
    known = Known()

    def stop(num_bytes: int) -> None:
        raise OSError("told to stop")

    with pytest.raises(OSError, match="told to stop"):
        verify_folder(folder, ask=known, on_bytes=stop)
    assert (len(known.asked), known.num_closed) == (1, 1)


def test_a_folder_of_ours_is_full_and_definition(sealed: Path) -> None:
    """Values, and the definition: both are in the depth, and a share of the files says which."""
    shapes = {
        name: tuple(tensor.shape)
        for path in sealed.glob("*.safetensors")
        for name, tensor in load_file(path).items()
        if tensor.dtype in (torch.bfloat16, torch.float32)
    }
    result = verify_folder(sealed, ask=Known(shapes))
    assert result.depth == "full and definition"
    assert {fault.kind for fault in result.faults} == {"definition-unexpected"}
    assert verify_folder(sealed, subset=(1, 2), ask=Known(shapes)).depth == "subset 1/2 and definition"
    assert DOWN in shapes


@pytest.mark.parametrize("family", ["qwen2_tied", "qwen3_moe"])
def test_a_folder_that_transformers_saved_fits(tmp_path: Path, family: str) -> None:
    """By the real definition, from the child process, what transformers saved fits, tied and packed too."""
    transformers: Any = pytest.importorskip("transformers")
    from tests.fixtures.models import MODELS, hf_config

    model = dataclasses.replace(MODELS[family], num_layers=1)
    if model.moe_layers:
        model = dataclasses.replace(model, moe_layers=(0,))
    folder = tmp_path / "model"
    getattr(transformers, model.hf_class)(hf_config(model)).save_pretrained(folder)
    result = pp_export.verify(folder)
    assert result.faults == ()
    assert result.definition == model.hf_class
    assert result.depth.startswith("structure and definition")
