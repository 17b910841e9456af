"""Claims of `pp_export.checkpoint.model_config`: a framework's config is found, read as data, and flat."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pp_export.checkpoint import model_config
from pp_export.core.errors import CheckpointError

FLAT = {"num_layers": 2, "rotary_base": 500000, "vocab_size": 250, "position_embedding_type": "rope"}


def args_of(folder: Path, model: Any) -> dict[str, Any]:
    (folder / "run_config.yaml").write_text(yaml.safe_dump({"model": model}))
    found = model_config.find(folder)
    assert found is not None
    return model_config.read(found)


def test_a_nested_config_says_what_a_flat_one_says(tmp_path: Path) -> None:
    """The fields of a nested TransformerConfig and those of the model around it are one config."""
    inner = {"_target_": "a.Config", "num_layers": 2}
    outer = {name: value for name, value in FLAT.items() if name not in inner}
    outer |= {"_target_": "a.Model", "_builder_": "a.Builder", "transformer": inner}
    assert args_of(tmp_path, outer) == args_of(tmp_path, FLAT)


def test_the_model_goes_before_its_transformer_unless_it_is_silent(tmp_path: Path) -> None:
    """Of two fields of one name the model's counts, but not where it is None; None alone stays None."""
    model = {"num_layers": 3, "hidden_size": None, "kv_channels": None}
    found = args_of(tmp_path, model | {"transformer": {"num_layers": 2, "hidden_size": 8}})
    assert (found["num_layers"], found["hidden_size"], found["kv_channels"]) == (3, 8, None)


def test_the_config_of_a_language_model_is_the_whole(tmp_path: Path) -> None:
    """Around the language model of one that sees, NeMo's configs have sizes that are nobody's."""
    around = {"num_layers": 1, "num_attention_heads": 8, "layernorm_epsilon": 1e-5, "rotary_percent": 0.5}
    model = around | {"language_transformer_config": FLAT, "vision_transformer_config": {"num_layers": 7}}
    assert args_of(tmp_path, model) == args_of(tmp_path, FLAT)


@pytest.mark.parametrize("transformer", [None, "x", 3, {}])
def test_what_is_no_nested_config_changes_nothing(tmp_path: Path, transformer: Any) -> None:
    """A key `transformer` that holds no fields is a key like others."""
    found = args_of(tmp_path, FLAT | {"transformer": transformer})
    assert {name: found[name] for name in FLAT} == FLAT


def test_which_file_counts(tmp_path: Path) -> None:
    """Bridge's config goes before NeMo's, this before verl's; verl's in the folder before the one beside."""
    folder = tmp_path / "weights"
    folder.mkdir()
    (tmp_path / "context").mkdir()
    assert model_config.find(folder) is None
    for path, writer in (
        (tmp_path / "transformer_config.json", "verl"),
        (folder / "transformer_config.json", "verl"),
        (tmp_path / "context" / "model.yaml", "NeMo 2"),
        (folder / "run_config.yaml", "Megatron-Bridge"),
    ):
        path.write_text("{}")
        found = model_config.find(folder)
        assert found is not None
        assert (found.path, found.writer) == (path, writer)
        assert found.goes_first == (writer == "Megatron-Bridge")
        assert found.is_disentangled == (writer != "verl")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"a": 1, "a": 2}', '{"a": NaN}', "\xff"])
def test_a_damaged_config_of_verl_is_refused(tmp_path: Path, text: str) -> None:
    """A transformer_config.json that is no JSON object is refused by name."""
    path = tmp_path / "transformer_config.json"
    path.write_bytes(text.encode("latin1"))
    found = model_config.find(tmp_path)
    assert found is not None
    with pytest.raises(CheckpointError, match=r"transformer_config\.json can't be understood") as caught:
        model_config.read(found)
    assert caught.value.where == {"file": str(path)}


def test_infinity_is_a_number_of_configs(tmp_path: Path) -> None:
    """Python's json writes Infinity, and so a config may hold it."""
    (tmp_path / "transformer_config.json").write_text(json.dumps({"num_layers": 2, "x": float("inf")}))
    found = model_config.find(tmp_path)
    assert found is not None
    assert model_config.read(found)["num_layers"] == 2
