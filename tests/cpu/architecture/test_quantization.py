"""Claims of `pp_export.architecture.quantization`: the weights of linear layers are quantized, and no others;
what servers fuse is quantized together or not at all; and config.json tells which are not.

The truth is each family's class in transformers: its linear layers, and how the library itself matches the
names of modules that are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest

from pp_export.architecture.accounting import Account
from pp_export.architecture.encodings import Types
from pp_export.architecture.quantization import (
    FP8_BLOCK,
    FP8_CHANNEL,
    INT8_CHANNEL,
    SCHEMES,
    Projection,
    decide,
)
from pp_export.core.dtypes import from_torch
from pp_export.core.tensors import TensorSpec
from tests.fixtures.families import FAMILIES
from tests.fixtures.family_proofs import planned_account
from tests.fixtures.releases import transformers_5
from tests.fixtures.wide_families import WIDE

pytestmark = transformers_5
BF16 = from_torch("bfloat16")
GATES = ("gate", "router", "shared_expert_gate", "in_proj_a", "in_proj_b", "in_proj_ba", "weights_proj")
"""What modules that decide are called: no class has linear layers of other kinds under these names."""
NOTHING = {"gpt2"}
"""Families without a linear layer that has outputs for rows."""
CASES = [(name, FP8_CHANNEL) for name in sorted(FAMILIES.keys() - NOTHING)] + [
    (name, FP8_BLOCK) for name in sorted(WIDE)
]


@cache
def account_of(name: str, scheme: str = FP8_CHANNEL) -> Account:
    """Of a small model; of one whose blocks are whole where there are blocks."""
    family = WIDE[name] if scheme == FP8_BLOCK else FAMILIES[name]
    return planned_account(family, family.whole_config(), scheme)[0]


@dataclass(frozen=True)
class Modules:
    """The linear layers of a class, the modules that hold a layer's experts, and how the library renames
    what is on disk.
    """

    linear: frozenset[str]
    experts: frozenset[str]
    renamings: tuple[Any, ...]

    def in_memory(self, module: str) -> str:
        """What the class calls a module that is on disk."""
        name = f"{module}."
        for renaming in self.renamings:
            name, _ = renaming.rename_source_key(name)
        return name.removesuffix(".")


@cache
def modules_of(name: str, *, wide: bool = False) -> Modules:
    import accelerate
    import transformers
    from torch import nn
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    family = (WIDE if wide else FAMILIES)[name]
    model_class: Any = getattr(transformers, family.hf_class)
    config = model_class.config_class(**family.whole_config())
    with accelerate.init_empty_weights(include_buffers=True):
        model = model_class(config)
    named = dict(model.named_modules())
    return Modules(
        frozenset(name for name, module in named.items() if isinstance(module, nn.Linear)),
        frozenset(name for name in named if name.endswith(".experts")),
        tuple(each for each in get_model_conversion_mapping(model) if type(each) is WeightRenaming),
    )


def is_inside(name: str, modules: frozenset[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


@pytest.mark.parametrize("name", sorted(FAMILIES.keys() - NOTHING))
def test_only_linear_layers_are_quantized(name: str) -> None:
    """Each is a linear layer of the class, or an expert, and no router, gate or head; of MTP layers, which
    the class leaves out, what is quantized is called as in other layers.
    """
    account, modules = account_of(name), modules_of(name)
    assert account.quantization is not None
    assert account.quantization.tensors
    ends = {module.rpartition(".")[2] for module in modules.linear}
    for tensor in account.quantization.tensors:
        module = modules.in_memory(tensor.removesuffix(".weight"))
        if tensor in account.mtp:
            assert module.rpartition(".")[2] in ends or is_inside_experts(module)
        else:
            assert module in modules.linear or is_inside(module, modules.experts), module
        assert module.rpartition(".")[2] not in (*GATES, "lm_head", "eh_proj", "embed_tokens")


def is_inside_experts(module: str) -> bool:
    return ".experts." in module


@pytest.mark.parametrize(("name", "scheme"), CASES)
def test_transformers_leaves_alone_what_is_kept(name: str, scheme: str) -> None:
    """With the list in config.json, the library's own matching takes every linear layer and all experts that
    are quantized for quantized ones, and no others; the head too where it is tied.
    """
    from transformers.quantizers.quantizers_utils import should_convert_module

    account, modules = account_of(name, scheme), modules_of(name, wide=scheme == FP8_BLOCK)
    assert account.quantization is not None
    excluded = [modules.in_memory(module) for module in account.quantization.excluded]
    quantized = {modules.in_memory(each.removesuffix(".weight")) for each in account.quantization.tensors}
    for module in modules.linear:
        assert should_convert_module(module, excluded) == (module in quantized), module
    for module in modules.experts:
        inside = any(each.startswith(f"{module}.") for each in quantized)
        assert should_convert_module(module, excluded) == inside, module
    for module in quantized:
        assert should_convert_module(module, excluded), module


@pytest.mark.parametrize(("name", "scheme"), CASES)
def test_what_servers_fuse_is_stored_alike(name: str, scheme: str) -> None:
    """Queries, keys and values; gate and up; latent queries and keys; all experts of a layer."""
    account = account_of(name, scheme)
    assert account.quantization is not None
    for fused in FUSED:
        found: dict[str, set[bool]] = {}
        for tensor in (*account.quantization.tensors, *account.quantization.kept):
            parent, _, last = tensor.removesuffix(".weight").rpartition(".")
            if ".experts." in tensor:
                parent, last = tensor.partition(".experts.")[0], "expert"
            if last in fused:
                found.setdefault(parent, set()).add(tensor in account.quantization.tensors)
        assert all(len(kinds) == 1 for kinds in found.values())


FUSED = (
    {"q_proj", "k_proj", "v_proj"},
    {"gate_proj", "up_proj"},
    {"q_a_proj", "kv_a_proj_with_mqa"},
    {"in_proj_qkv", "in_proj_z"},
    {"expert"},
)


def test_latent_attention_s_first_projections_are_one_group() -> None:
    """DeepSeek-V3's latent keys have 576 rows, 4.5 blocks: they and the queries fused with them are kept,
    each with the reason; everything else of a layer in these sizes is quantized.
    """
    config = {**FAMILIES["deepseek_v3"].published_config(), "num_hidden_layers": 4, "n_routed_experts": 8}
    quantization = planned_account(FAMILIES["deepseek_v3"], config, FP8_BLOCK)[0].quantization
    assert quantization is not None
    assert len(quantization.kept) == 2 * 4
    first = "model.layers.0.self_attn."
    assert quantization.kept[f"{first}kv_a_proj_with_mqa.weight"] == (
        "576 rows x 7168 columns aren't whole blocks of 128 x 128"
    )
    assert quantization.kept[f"{first}q_a_proj.weight"].startswith(f"servers fuse it with {first}kv_a_proj")
    by_row = planned_account(FAMILIES["deepseek_v3"], config, FP8_CHANNEL)[0].quantization
    assert by_row is not None
    assert not by_row.kept


def test_experts_in_one_tensor_are_kept_and_said() -> None:
    """gpt-oss has no form for quantized experts here: they are listed, as a module, with the reason."""
    quantization = account_of("gpt_oss").quantization
    assert quantization is not None
    assert set(quantization.kept.values()) == {"the class holds the experts of a layer in one tensor"}
    assert "model.layers.0.mlp.experts" in quantization.excluded
    assert "re:model.layers.0.mlp.experts[.].*" in quantization.config()["ignore"]


def test_no_layer_of_gpt2_is_quantized() -> None:
    """Its class stores weights transposed: rows are no outputs."""
    quantization = account_of("gpt2").quantization
    assert quantization is not None
    assert not quantization.tensors
    assert len(set(quantization.kept.values())) == 1


def test_matrices_in_one_tensor_are_whole_blocks_each() -> None:
    """Where a class has gate and up, or queries, keys and values, in one tensor, servers cut it: each part
    must be of whole blocks.
    """
    assert "aren't whole blocks" in reason(projection("x", parts=(192, 192)), (384, 256), FP8_BLOCK)
    assert reason(projection("x", parts=(128, 256)), (384, 256), FP8_BLOCK) == ""
    wide = account_of("phi3", FP8_BLOCK).quantization
    assert wide is not None
    assert {tensor.split(".")[-2] for tensor in wide.tensors} == {
        *("gate_up_proj", "qkv_proj", "down_proj", "o_proj"),
    }
    narrow = {**WIDE["phi3"].whole_config(), "num_key_value_heads": 1, "num_attention_heads": 6}
    kept = planned_account(WIDE["phi3"], narrow, FP8_BLOCK)[0].quantization
    assert kept is not None
    assert "512 rows (384, 64, 64)" in kept.kept["model.layers.0.self_attn.qkv_proj.weight"]


def projection(group: str, parts: tuple[int, ...] = ()) -> Projection:
    return Projection(group, parts)


def reason(one: Projection, shape: tuple[int, ...], scheme: str) -> str:
    """Why a tensor of this shape is kept; "" where it is quantized."""
    return decide({"w.weight": one}, {"w.weight": TensorSpec(shape, BF16)}, scheme, Types()).kept.get(
        "w.weight", ""
    )


def test_shapes_that_a_scheme_has_no_form_for() -> None:
    """Blocks need whole ones, packed int8 columns by four; rows of float8 fit anything."""
    one = projection("g")
    assert "192 rows x 128" in reason(one, (192, 128), FP8_BLOCK)
    assert "128 rows x 200" in reason(one, (128, 200), FP8_BLOCK)
    assert reason(one, (128, 256), FP8_BLOCK) == ""
    assert "30 columns" in reason(one, (128, 30), INT8_CHANNEL)
    assert reason(one, (7, 32), INT8_CHANNEL) == reason(one, (7, 31), FP8_CHANNEL) == ""


def test_a_tensor_whose_type_was_chosen_is_kept() -> None:
    """--dtype-of names it: its group is kept with it, and others aren't."""
    projections = {"a.weight": projection("1"), "b.weight": projection("1"), "c.weight": projection("2")}
    mapped = {name: TensorSpec((128, 128), BF16) for name in projections}
    types = Types(patterns=(("a.*", from_torch("float16")),))
    quantization = decide(projections, mapped, FP8_BLOCK, types)
    assert quantization.tensors.keys() == {"c.weight"}
    assert quantization.kept == {
        "a.weight": "--dtype-of says its type",
        "b.weight": "servers fuse it with a.weight: --dtype-of says its type",
    }


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_account_has_both_names_and_forms(scheme: str) -> None:
    """The model's tensors are what they are without quantizing; what is stored follows from them."""
    family = WIDE["deepseek_v3_mtp"]
    account, plain = (planned_account(family, family.whole_config(), each)[0] for each in (scheme, None))
    assert account.tensors == plain.outputs == plain.tensors
    assert account.main_dtype == plain.main_dtype == BF16
    assert account.quantization is not None
    for name, spec in account.quantization.tensors.items():
        stored = {n: account.outputs[n] for n in account.outputs if n.startswith(name)}
        assert all(account.unit_of[n] == plain.unit_of[name] for n in stored)
        assert all(account.sources_of[n] == plain.sources_of[name] for n in stored)
        rows, columns = spec.shape
        shapes = {n.removeprefix(name): (s.dtype.torch_name, s.shape) for n, s in stored.items()}
        assert (
            shapes
            == {
                FP8_BLOCK: {
                    "": ("float8_e4m3fn", (rows, columns)),
                    "_scale_inv": ("float32", (rows // 128, columns // 128)),
                },
                FP8_CHANNEL: {"": ("float8_e4m3fn", (rows, columns)), "_scale": ("bfloat16", (rows, 1))},
                INT8_CHANNEL: {
                    "_packed": ("int32", (rows, columns // 4)),
                    "_scale": ("bfloat16", (rows, 1)),
                    "_shape": ("int64", (2,)),
                },
            }[scheme]
        )
