"""Claims of `pp_export.verification.quantized`: of weights that are quantized by block or by row it is known
what the model has, and whatever of their form is not as config.json says is a fault; of other forms
nothing is said.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pp_export.reference.definition import Definition
from pp_export.verification import verify_folder
from pp_export.verification.quantized import form_of

BLOCKS: dict[str, Any] = {
    "quant_method": "fp8",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
    "modules_to_not_convert": ["lm_head"],
}
ROWS: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True},
            "input_activations": {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True},
        }
    },
    "ignore": ["lm_head", "re:.*norm"],
}
PACKED: dict[str, Any] = {
    **ROWS,
    "format": "pack-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True},
        }
    },
}
SAID = {"blocks": BLOCKS, "rows": ROWS, "packed": PACKED}
FLOAT8 = torch.zeros(200, 256).to(torch.float8_e4m3fn)
TENSORS: dict[str, dict[str, torch.Tensor]] = {
    "blocks": {"up.weight": FLOAT8, "up.weight_scale_inv": torch.ones(2, 2)},
    "rows": {"up.weight": FLOAT8, "up.weight_scale": torch.ones(200, 1).bfloat16()},
    "packed": {
        "up.weight_packed": torch.zeros(200, 64, dtype=torch.int32),
        "up.weight_scale": torch.ones(200, 1).bfloat16(),
        "up.weight_shape": torch.tensor([200, 256]),
    },
}
HEAD = {"lm_head.weight": torch.zeros(12, 256).bfloat16()}


class Known:
    """A definition that is there."""

    def __init__(self, config: Any) -> None:
        self._definition = Definition({"up.weight": (200, 256), "lm_head.weight": (12, 256)}, config)

    def result(self) -> Definition:
        return self._definition

    def close(self) -> None:
        """Nothing goes on."""


def write(folder: Path, tensors: dict[str, torch.Tensor], said: Any) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = {"architectures": ["SomeForCausalLM"], "vocab_size": 12, "quantization_config": said}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("form", SAID)
def test_what_the_model_has_is_known(tmp_path: Path, form: str) -> None:
    """Names and shapes are held against the definition, as if nothing were quantized; cut blocks count."""
    found = verify_folder(write(tmp_path / "m", {**HEAD, **TENSORS[form]}, SAID[form]), ask=Known)
    assert (found.faults, found.definition) == ((), "SomeForCausalLM")


Change = Callable[[dict[str, torch.Tensor]], Any]


def without(end: str) -> Change:
    return lambda tensors: [tensors.pop(name) for name in list(tensors) if name.endswith(end)]


def scale_of(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Change:
    return lambda tensors: tensors.update(
        {name: torch.ones(shape).to(dtype) for name in tensors if "_scale" in name}
    )


WRONG: dict[str, tuple[str, Change, str]] = {
    "blocks without scales": ("blocks", without("_scale_inv"), "there is no 'up.weight_scale_inv'"),
    "rows without scales": ("rows", without("_scale"), "there is no 'up.weight_scale'"),
    "packed without shape": ("packed", without("_shape"), "there is no 'up.weight_shape'"),
    "scales of nothing": ("rows", without("up.weight"), "no quantized weight"),
    "too few blocks": ("blocks", scale_of((1, 2)), "not F32 [2, 2]"),
    "one row's scale for all": ("rows", scale_of((1, 1)), "not F32 [200, 1]"),
    "scales that are integers": ("packed", scale_of((200, 1), torch.int32), "not F32 [200, 1]"),
    "a head that config.json says is kept": (
        "rows",
        lambda tensors: tensors.update(
            {"lm_head.weight": FLOAT8[:12], "lm_head.weight_scale": torch.ones(12, 1)}
        ),
        "says that it isn't",
    ),
    "no rows and columns": (
        "blocks",
        lambda tensors: tensors.update({"up.weight": FLOAT8[:, None].contiguous()}),
        "no rows and columns",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_not_in_its_form_is_a_fault(tmp_path: Path, case: str) -> None:
    """Also without a definition, and quickly: an export isn't published with it."""
    form, change, message = WRONG[case]
    tensors = {name: value.clone() for name, value in {**HEAD, **TENSORS[form]}.items()}
    change(tensors)
    found = verify_folder(write(tmp_path / "m", tensors, SAID[form]), quick=True)
    faults = [fault for fault in found.faults if fault.kind == "quantized-form"]
    assert any(message in fault.message for fault in faults), found.faults


def test_a_shape_that_the_model_does_not_have_is_a_fault(tmp_path: Path) -> None:
    """Told in the model's own rows and columns, also of packed values."""
    tensors = {**HEAD, **TENSORS["packed"], "up.weight_packed": torch.zeros(200, 32, dtype=torch.int32)}
    found = verify_folder(write(tmp_path / "m", tensors, PACKED), ask=Known)
    assert [(fault.kind, fault.tensor) for fault in found.faults] == [("definition-shape", "up.weight")]
    assert "[200, 128]" in found.faults[0].message


STRANGE: dict[str, Any] = {
    "another method": {"quant_method": "gptq", "bits": 4},
    "a method that is no text": {"quant_method": [1]},
    "float8 of whole tensors": {"quant_method": "fp8", "activation_scheme": "dynamic"},
    "static activations": {**BLOCKS, "activation_scheme": "static"},
    "blocks of nothing": {**BLOCKS, "weight_block_size": [0, 128]},
    "blocks of text": {**BLOCKS, "weight_block_size": ["128", None]},
    "no groups": {**ROWS, "config_groups": {}},
    "groups that are none": {**ROWS, "config_groups": {"group_0": 3}},
    "two groups": {**ROWS, "config_groups": {"a": {}, "b": {}}},
    "four bits": {
        **PACKED,
        "config_groups": {"g": {"weights": {"num_bits": 4, "strategy": "channel", "symmetric": True}}},
    },
    "a cache that is quantized too": {**ROWS, "kv_cache_scheme": {"num_bits": 8}},
    "a list": [BLOCKS],
}


@pytest.mark.parametrize("case", STRANGE)
def test_of_other_forms_nothing_is_said(tmp_path: Path, case: str) -> None:
    """They are no faults, and a note says that names were not looked at."""
    assert form_of({"quantization_config": STRANGE[case]}) is None
    if not isinstance(STRANGE[case], dict):
        return
    found = verify_folder(write(tmp_path / "m", {**HEAD, **TENSORS["blocks"]}, STRANGE[case]), ask=Known)
    assert found.definition is None
    assert any("the weights are quantized" in note for note in found.notes)
