"""Claims of `pp_export.verification.by_layer`: errors are told of layers, by kind of tensor."""

from __future__ import annotations

import pytest

from pp_export.verification.by_layer import KINDS, LayerErrors, by_layer, kind_of
from pp_export.verification.side_by_side import ValueDifference

NAMES = {
    "model.embed_tokens.weight": "embedding",
    "lm_head.weight": "head",
    "model.norm.weight": "norms",
    "model.layers.0.input_layernorm.weight": "norms",
    "model.layers.1.self_attn.q_norm.weight": "norms",
    "model.layers.1.self_attn.kv_a_layernorm.weight": "norms",
    "model.layers.1.self_attn.q_proj.bias": "attention",
    "model.layers.2.linear_attn.in_proj_qkvz.weight": "attention",
    "model.layers.3.mlp.gate_proj.weight": "mlp",
    "model.layers.3.mlp.gate.weight": "router",
    "model.layers.3.mlp.gate.e_score_correction_bias": "router",
    "model.layers.3.block_sparse_moe.gate.weight": "router",
    "model.layers.3.block_sparse_moe.experts.4.w2.weight": "experts",
    "model.layers.3.mlp.experts.gate_up_proj": "experts",
    "model.layers.3.mlp.shared_experts.up_proj.weight": "experts",
    "backbone.layers.4.mixer.A_log": "mixer",
    "backbone.embeddings.weight": "embedding",
    "transformer.h.5.attn.c_attn.weight": "attention",
    "transformer.wte.weight": "embedding",
    "transformer.h.5.ln_1.weight": "norms",
    "model.visual.blocks.3.attn.qkv.weight": "vision",
    "model.layers.7.eh_proj.weight": "others",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_tells_the_kind(name: str) -> None:
    """Names of published models are of the kind that people call them, routers no part of the MLP."""
    assert kind_of(name) == NAMES[name]


def difference(name: str, absolute: float, relative: float, steps: float | None) -> ValueDifference:
    return ValueDifference(name, 8, 1, 0, 1, absolute, relative, steps)


def test_errors_are_the_largest_of_a_layer() -> None:
    """Layers are in the order of their numbers, beside tensors of none; equal tensors are counted, and make
    rows of zeros.
    """
    names = [f"model.layers.{layer}.self_attn.{of}_proj.weight" for layer in (10, 9) for of in "qkvo"]
    names += ["model.norm.weight", "model.layers.9.input_layernorm.weight"]
    values = [
        difference(names[0], 0.5, 0.25, 3.0),
        difference(names[3], 0.25, 0.75, None),
        difference(names[8], 1.0, 0.5, 2.0),
    ]
    assert by_layer(names, values) == (
        LayerErrors("norms", None, 1, 1, 1.0, 0.5, 2.0),
        LayerErrors("norms", 9, 1, 0, 0.0, 0.0, 0.0),
        LayerErrors("attention", 9, 4, 0, 0.0, 0.0, 0.0),
        LayerErrors("attention", 10, 4, 2, 0.5, 0.75, 3.0),
    )
    assert by_layer([], []) == ()
    assert len(set(KINDS)) == len(KINDS)
