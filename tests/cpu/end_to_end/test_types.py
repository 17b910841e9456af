"""Claims: each tensor is stored in the type that is asked for it, and no number is lost on the way unnoticed.

The truth is torch's own cast of the values that an export without a cast has.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import pp_export
from pp_export.core.errors import OptionError
from pp_export.core.file_names import SUMS
from tests.fixtures.decoders import decoder, write_pair
from tests.fixtures.exports import export_here, remembering
from tests.fixtures.families import FAMILIES
from tests.fixtures.family_proofs import write_model
from tests.fixtures.releases import transformers_5
from tests.fixtures.stored import on_disk

DOWN = "model.layers.1.mlp.down_proj.weight"


def large(value: float) -> dict[str, torch.Tensor]:
    """The tensors of a decoder in float32, two of whose numbers are `value` and its opposite."""
    tensors = {name: tensor.float() for name, tensor in decoder().items()}
    tensors["decoder.layers.mlp.linear_fc2.weight"][1, 2, 5] = value
    tensors["decoder.layers.mlp.linear_fc2.weight"][1, 3, 4] = -value
    return tensors


@pytest.mark.parametrize("dtype", ["fp16", "torch.float16", "float16"])
def test_a_number_that_becomes_infinite_is_refused(tmp_path: Path, dtype: Any) -> None:
    """The tensor, how many and the largest are told; nothing stays."""
    pair: dict[str, Any] = write_pair(tmp_path, tensors=large(70_000.0))
    with remembering(), pytest.raises(OptionError, match="become infinite in float16") as caught:
        pp_export.export_checkpoint(**pair, dtype=dtype)
    assert caught.value.where["tensor"] == DOWN
    assert str(caught.value.got).startswith("2 of ")
    assert "70000" in str(caught.value.got)
    assert not pair["output"].exists()


def test_overflow_may_be_allowed_and_is_counted(tmp_path: Path) -> None:
    """With --allow-overflow infinities are stored, and counted for each tensor."""
    report = export_here(
        **write_pair(tmp_path, tensors=large(70_000.0)), dtype="float16", allow_overflow=True
    )
    assert dict(report.not_finite) == {DOWN: 2}
    values = on_disk(Path(report.output))[DOWN]
    assert (float(values[2, 5]), float(values[3, 4])) == (torch.inf, -torch.inf)
    assert int(values.isinf().sum()) == 2


def test_the_largest_numbers_of_a_type_pass(tmp_path: Path) -> None:
    """65,519.9 rounds to float16's largest; infinities that were trained are none that the cast made."""
    tensors = large(65_519.9)
    tensors["decoder.final_layernorm.weight"][3] = torch.inf
    report = export_here(**write_pair(tmp_path, tensors=tensors), dtype="float16")
    assert float(on_disk(Path(report.output))[DOWN][2, 5]) == 65_504
    assert dict(report.not_finite) == {"model.norm.weight": 1}


def test_patterns_decide_before_the_default(tmp_path: Path) -> None:
    """The first pattern that fits a name counts; each tensor has torch's own cast of its values, and
    config.json says the type of most.
    """
    pair = write_pair(tmp_path, tensors=large(3.0))
    plain = on_disk(Path(export_here(**{**pair, "output": tmp_path / "plain"}).output))
    types = "*.layers.0.*norm.weight=keep,*norm.weight=fp16,lm_head.*=torch.float32"
    report = export_here(**pair, dtype="bfloat16", dtype_of=types)
    stored = on_disk(Path(report.output))
    for name, value in plain.items():
        is_norm = name.endswith("norm.weight")
        kept = name.startswith("lm_head.") or (is_norm and ".layers.0." in name)
        wanted = torch.float32 if kept else torch.float16 if is_norm else torch.bfloat16
        assert stored[name].dtype == wanted, name
        assert torch.equal(stored[name], value.to(wanted)), name
    config = json.loads((Path(report.output) / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"
    assert pp_export.verify(report.output).ok


def test_a_job_file_may_have_a_mapping(tmp_path: Path) -> None:
    """The same bytes from a mapping, in its order, as from a text."""
    pair: dict[str, Any] = write_pair(tmp_path, tensors=large(3.0))
    kinds: dict[str, Any] = {"text": "lm_head.*=fp32,*=bf16", "mapping": {"lm_head.*": "fp32", "*": "bf16"}}
    for kind, dtype_of in kinds.items():
        with remembering():
            pp_export.export_checkpoint(**{**pair, "output": tmp_path / kind}, dtype_of=dtype_of)
    assert (tmp_path / "text" / SUMS).read_text() == (tmp_path / "mapping" / SUMS).read_text()


def test_a_pattern_that_fits_nothing_is_refused(tmp_path: Path) -> None:
    """Nothing is read of an export whose pattern has a typing error."""
    with pytest.raises(OptionError, match="match no tensor") as caught:
        export_here(**write_pair(tmp_path), dtype_of="lm_haed.*=fp32,*norm*=fp32")
    assert caught.value.got == "lm_haed.*"


@transformers_5
def test_what_training_keeps_in_float32_stays(tmp_path: Path) -> None:
    """Numbers that a table says need float32 (biases of routers) keep it, whatever is asked."""
    write_model(FAMILIES["deepseek_v3"], tmp_path)
    inputs = {kind: tmp_path / kind for kind in ("checkpoint", "reference")}
    report = export_here(**inputs, output=tmp_path / "export", dtype="float16", dtype_of="*=bfloat16")
    stored = on_disk(tmp_path / "export")
    kept = {name for name, value in stored.items() if value.dtype == torch.float32}
    assert kept == {name for name in stored if name.endswith("e_score_correction_bias")}
    assert kept
    assert {value.dtype for name, value in stored.items() if name not in kept} == {torch.bfloat16}
    assert set(report.other_dtypes) == kept
