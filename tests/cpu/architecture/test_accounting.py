"""Claims of `pp_export.architecture.accounting`: every tensor is used once or dropped with a reason, or
everything is listed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from pp_export.architecture import table_files
from pp_export.architecture.accounting import DEFINITION, TABLE, Account, Expected, account
from pp_export.architecture.encodings import Types
from pp_export.architecture.rules import Architecture
from pp_export.core.dtypes import DType, from_torch
from pp_export.core.errors import AccountingError
from pp_export.core.tensors import Shape, TensorSpec
from pp_export.core.views import View, check_filled
from tests.fixtures.catalogs import ToyDecoder

DENSE, MOE = ToyDecoder(), ToyDecoder(num_layers=2, num_experts=4)
BF16, FP32 = from_torch("bfloat16"), from_torch("float32")
FC1 = "decoder.layers.{layer}.mlp.experts.{expert}.linear_fc1.weight"


def settle(
    toy: ToyDecoder = DENSE,
    *,
    table: Architecture | None = None,
    specs: Mapping[str, TensorSpec] | None = None,
    expected: Mapping[str, Shape | None] | None = None,
    dtype: DType | None = None,
    drop_mtp: bool = False,
) -> Account:
    return account(
        table or table_files.load(toy.table),
        toy.specs() if specs is None else specs,
        toy.sizes,
        expected=Expected(expected, DEFINITION),
        types=Types(dtype),
        drop_mtp=drop_mtp,
    )


def findings(toy: ToyDecoder = DENSE, **given: Any) -> tuple[str, ...]:
    with pytest.raises(AccountingError, match="do not match one to one") as caught:
        settle(toy, **given)
    assert caught.value.where["expected from"] == DEFINITION
    assert "choose the right reference" in str(caught.value.advice)
    return caught.value.findings


def shapes_of(settled: Account) -> dict[str, Shape | None]:
    return {name: spec.shape for name, spec in settled.outputs.items()}


def table(folder: Path, *rows: dict[str, Any], extends: str = "qwen3_moe") -> Architecture:
    path = folder / "table.yaml"
    path.write_text(yaml.safe_dump({"extends": extends, "rules": list(rows)}))
    return table_files.load(str(path))


def test_a_dense_model_is_accounted_tensor_by_tensor() -> None:
    """Every Megatron tensor has its Hugging Face tensors with the shapes that the sizes give, and nothing
    else.
    """
    settled = settle()
    layer = "model.layers.1."
    assert {n: s.shape for n, s in settled.outputs.items() if n.startswith(layer)} == {
        layer + "self_attn.q_proj.weight": (16, 16),
        layer + "self_attn.k_proj.weight": (8, 16),
        layer + "self_attn.v_proj.weight": (8, 16),
        layer + "self_attn.q_proj.bias": (16,),
        layer + "self_attn.k_proj.bias": (8,),
        layer + "self_attn.v_proj.bias": (8,),
        layer + "self_attn.o_proj.weight": (16, 16),
        layer + "input_layernorm.weight": (16,),
        layer + "post_attention_layernorm.weight": (16,),
        layer + "mlp.gate_proj.weight": (12, 16),
        layer + "mlp.up_proj.weight": (12, 16),
        layer + "mlp.down_proj.weight": (16, 12),
    }
    assert {n for n in settled.outputs if not n.startswith("model.layers.")} == {
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.norm.weight",
    }
    assert settled.outputs["lm_head.weight"] == TensorSpec((37, 16), BF16)
    assert settled.dropped == {}
    assert settled.placements.keys() == DENSE.specs().keys()


def test_every_element_of_every_output_has_one_source() -> None:
    """The placements fill each output exactly, and use each source element once but for vocabulary
    padding.
    """
    settled = settle(MOE)
    filled = dict.fromkeys(settled.outputs, 0)
    places: dict[str, list[View]] = {name: [] for name in settled.outputs}
    for source, placements in settled.placements.items():
        used = 0
        for placement in placements:
            assert placement.source == source
            filled[placement.name] += placement.view.num_elements
            used += placement.view.num_elements
            places[placement.name].append(placement.target)
        is_padded = source in ("embedding.word_embeddings.weight", "output_layer.weight")
        assert used == MOE.specs()[source].num_elements - (3 * 16 if is_padded else 0)
    assert filled == {name: spec.num_elements for name, spec in settled.outputs.items()}
    for name, spec in settled.outputs.items():
        check_filled(name, spec.shape, places[name])


def test_units_follow_the_file_order() -> None:
    """Units sort as embedding, layers by number, head, and each tensor lies in the unit of its source."""
    units = settle(ToyDecoder(num_layers=12)).unit_of
    assert units["model.embed_tokens.weight"] < units["model.layers.0.mlp.up_proj.weight"]
    assert units["model.layers.2.mlp.up_proj.weight"] < units["model.layers.11.mlp.up_proj.weight"]
    assert units["model.layers.11.mlp.up_proj.weight"] < units["model.norm.weight"]
    assert units["model.norm.weight"] == units["lm_head.weight"]


def test_expected_names_and_shapes_that_agree_pass() -> None:
    """The model's definition may agree in full, or say names without shapes."""
    expected = shapes_of(settle())
    assert settle(expected=expected).truth == DEFINITION
    settle(expected=dict.fromkeys(expected))


def test_everything_wrong_is_listed_at_once() -> None:
    """A tensor without a rule, missing, unexpected and misshapen ones and adapters come in one error."""
    specs = DENSE.specs()
    expected = shapes_of(settle())
    expected["model.layers.0.mlp.down_proj.weight"] = (16, 99)
    expected["model.rotary.inv_freq"] = (4,)
    del expected["lm_head.weight"]
    specs["decoder.layers.0.mlp.shared_experts.w"] = TensorSpec((2, 2), BF16)
    specs["decoder.layers.0.self_attention.linear_qkv.adapter.linear_in.weight"] = TensorSpec((2, 2), BF16)
    specs["decoder.layers.1.mlp.linear_fc1.weight"] = TensorSpec((23, 16), BF16)
    specs["decoder.layers.2.mlp.linear_fc1.layer_norm_weight"] = TensorSpec((16,), BF16)
    found = findings(specs=specs, expected=expected)
    adapter = "decoder.layers.0.self_attention.linear_qkv.adapter.linear_in.weight"
    doubled = "model.layers.2.post_attention_layernorm.weight"
    assert set(found) == {
        f"{adapter} belongs to an adapter (LoRA); say what to do with it: --lora merge or --lora adapter",
        "no rule for the Megatron tensor decoder.layers.0.mlp.shared_experts.w bfloat16[2, 2]",
        f"{doubled} is made twice, from decoder.layers.2.mlp.linear_fc1.layer_norm_weight and"
        " decoder.layers.2.pre_mlp_layernorm.weight",
        "decoder.layers.1.mlp.linear_fc1.weight: split_glu does not fit the tensor: expected an even number"
        " of rows, got shape [23, 16]",
        "model.layers.1.mlp.gate_proj.weight is expected, and no rule makes it",
        "model.layers.1.mlp.up_proj.weight is expected, and no rule makes it",
        "model.rotary.inv_freq is expected, and no rule makes it",
        "lm_head.weight bfloat16[37, 16] is made but the model does not have it",
        "model.layers.0.mlp.down_proj.weight: the model expects shape [16, 99],"
        " the checkpoint gives [16, 12]",
    }
    assert len(found) == 9


@pytest.mark.parametrize("name", ["decoder.layers.0.mlp.lora_A.weight", "decoder.layers.0.adapter.w"])
def test_adapters_are_refused_as_such(name: str) -> None:
    """LoRA keys are called adapters, so that nobody writes a rule for them."""
    found = findings(specs=DENSE.specs() | {name: TensorSpec((2, 2), BF16)})
    assert (
        f"{name} belongs to an adapter (LoRA); say what to do with it: --lora merge or --lora adapter"
        in found
    )


def test_a_missing_layer_is_named_tensor_by_tensor() -> None:
    """A checkpoint that lacks a layer names each tensor that the model expects of it."""
    specs = {name: spec for name, spec in DENSE.specs().items() if not name.startswith("decoder.layers.1.")}
    found = findings(specs=specs, expected=shapes_of(settle()))
    assert len(found) == 12
    assert all(line.startswith("model.layers.1.") and "no rule makes it" in line for line in found)


def test_names_that_collide_are_made_twice(tmp_path: Path) -> None:
    """Two sources that end under one name are refused, in one row and across rows."""
    glued = {"megatron": FC1, "hf": "w{layer}{expert}"}
    specs = {FC1.format(layer=at[0], expert=at[1]): TensorSpec((4, 4), BF16) for at in ((1, 12), (11, 2))}
    found = findings(specs=specs, table=table(tmp_path, glued))
    assert found == (f"w112 is made twice, from {' and '.join(sorted(specs))}",)
    rows = tuple({"megatron": f"{x}.w", "hf": "same", "unit": "head"} for x in "ab")
    specs = dict.fromkeys(("a.w", "b.w"), TensorSpec((4,), BF16))
    assert findings(specs=specs, table=table(tmp_path, *rows)) == ("same is made twice, from b.w and a.w",)


def test_stacks_of_different_rows_are_made_twice(tmp_path: Path) -> None:
    """Rows that stack into one tensor are refused even where their numbers would fit together."""
    rows = [{"megatron": f"{x}.{{expert}}.w", "hf": "experts.w", "unit": "head"} for x in "ab"]
    specs = dict.fromkeys(("a.0.w", "b.1.w", "b.0.w"), TensorSpec((4,), BF16))
    found = findings(specs=specs, table=table(tmp_path, *rows))
    assert found == ("experts.w is made twice, from b.0.w and a.0.w",)


def test_dropped_tensors_carry_their_reason(tmp_path: Path) -> None:
    """A dropped tensor makes nothing and is reported with the row's reason; an expected one is still
    missed.
    """
    row = {"megatron": "decoder.layers.{layer}.mlp.router.weight", "drop": "the router is retrained"}
    settled = settle(MOE, table=table(tmp_path, row))
    names = [f"decoder.layers.{layer}.mlp.router.weight" for layer in range(2)]
    assert settled.dropped == dict.fromkeys(names, "the router is retrained")
    assert not set(names) & settled.placements.keys()
    assert not any(".mlp.gate." in name for name in settled.outputs)
    found = findings(MOE, table=table(tmp_path, row), expected=shapes_of(settle(MOE)))
    assert found[:2] == tuple(
        f"model.layers.{layer}.mlp.gate.weight is expected, and no rule makes it" for layer in range(2)
    )
    assert found[2] == f"(dropped by a rule: {', '.join(names)})"


def test_mtp_layers_are_dropped_only_on_demand() -> None:
    """With --mtp drop everything under `mtp.` is left out for that reason; without it a rule must exist."""
    specs = DENSE.specs() | {"mtp.layers.0.eh_proj.weight": TensorSpec((4, 4), BF16)}
    assert settle(specs=specs, drop_mtp=True).dropped == {"mtp.layers.0.eh_proj.weight": "--mtp drop"}
    assert findings(specs=specs) == (
        "no rule for the Megatron tensor mtp.layers.0.eh_proj.weight bfloat16[4, 4] (--mtp drop leaves MTP"
        " layers out)",
    )


def test_stacking_needs_equal_tensors_without_gaps(tmp_path: Path) -> None:
    """A stack of tensors that differ in shape or type, or that misses a number, is refused."""
    row = {
        "megatron": FC1,
        "hf": {"gate": "layers.{layer}.gate", "up": "layers.{layer}.up"},
        "transform": "split_glu",
    }
    stacked, whole_specs = table(tmp_path, row), MOE.specs()
    names = [FC1.format(layer=1, expert=expert) for expert in range(4)]
    sources = ", ".join(names)
    assert settle(MOE, table=stacked).outputs["layers.1.gate"] == TensorSpec((4, 12, 16), BF16)
    for other in (TensorSpec((26, 16), BF16), TensorSpec((24, 16), FP32)):
        found = findings(MOE, table=stacked, specs=whole_specs | {names[2]: other})
        assert found == tuple(
            f"layers.1.{role} stacks tensors that differ or leave gaps: {sources}" for role in ("gate", "up")
        )
    gap = {name: spec for name, spec in whole_specs.items() if name != names[1]}
    assert len(findings(MOE, table=stacked, specs=gap)) == 2
    last = {name: spec for name, spec in whole_specs.items() if name not in names[:3]}
    assert len(findings(MOE, table=stacked, specs=last)) == 2


def test_the_cast_changes_every_floating_type() -> None:
    """A chosen type replaces all others; without one, each tensor keeps its own, and those unlike most are
    known.
    """
    row = {"decoder.final_layernorm.weight": TensorSpec((16,), FP32)}
    settled = settle(specs=DENSE.specs() | row, dtype=FP32)
    assert {spec.dtype for spec in settled.outputs.values()} == {FP32}
    assert settled.other_dtypes == {}
    kept = settle(specs=DENSE.specs() | row)
    assert kept.main_dtype == BF16
    assert kept.other_dtypes == {"model.norm.weight": FP32}


@pytest.mark.parametrize("raw", ["int32", "uint8", "bool", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("dtype", [None, BF16])
def test_weights_that_are_no_plain_numbers_are_refused(raw: str, dtype: DType | None) -> None:
    """Integers, and float8 without scales, are what a quantized run left: refused by tensor and type, cast
    or not.
    """
    row = {"decoder.final_layernorm.weight": TensorSpec((16,), from_torch(raw))}
    with pytest.raises(AccountingError) as caught:
        settle(specs=DENSE.specs() | row, dtype=dtype)
    (finding,) = caught.value.findings
    assert finding.startswith(f"model.norm.weight is {raw}, ")


def test_what_the_grid_needs_is_known_of_every_source() -> None:
    """Each source's number of parts under tensor parallelism and its expert are known."""
    settled = settle(MOE)
    fc1 = FC1.format(layer=1, expert=3)
    assert settled.num_parts_of[fc1] == 2
    assert settled.num_parts_of["decoder.layers.1.mlp.router.weight"] == 1
    assert settled.expert_of[fc1] == 3
    assert "decoder.layers.1.mlp.router.weight" not in settled.expert_of
    assert settled.sources_of["model.layers.1.mlp.experts.3.up_proj.weight"] == (fc1,)


def test_without_a_definition_the_table_is_the_truth() -> None:
    """Where no expected names are known, nothing is compared and the account says that the table was the
    truth.
    """
    settled = account(
        table_files.load("qwen2"),
        DENSE.specs(),
        DENSE.sizes,
        expected=Expected(None, TABLE),
        drop_mtp=False,
    )
    assert settled.truth == "the table itself"


def test_an_empty_tensor_is_listed_and_not_passed_on() -> None:
    """A tensor without elements is a finding like any other, not an error that hides the rest."""
    one, none = TensorSpec((1,), BF16), TensorSpec((0,), BF16)
    found = findings(specs=DENSE.specs() | {"decoder.final_layernorm.weight": none, "x": one})
    assert len(found) == 2
    assert any(line.startswith("decoder.final_layernorm.weight: ") for line in found)
