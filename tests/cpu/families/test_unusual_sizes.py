"""Claims: a family is exported with sizes and switches that none of its published members has: one query
group, as many as heads, heads of another size than the width divided by their number, ties, no dense layers
or only such, one shared expert or none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures import family_proofs
from tests.fixtures.families import FAMILIES
from tests.fixtures.releases import transformers_5

pytestmark = transformers_5
FULL, SLIDING = "full_attention", "sliding_attention"
Values = Mapping[str, Any]

ONE_GROUP = {"num_key_value_heads": 1}, {"num_query_groups": 1}
ALL_GROUPS = {"num_key_value_heads": 4}, {"num_query_groups": 1, "group_query_attention": False}
WIDE_HEADS = {"head_dim": 16}, {"kv_channels": 16}
TIED = {"tie_word_embeddings": True}, {"untie_embeddings_and_output_weights": False}
UNTIED = {"tie_word_embeddings": False}, {"untie_embeddings_and_output_weights": True}
FULL_ROWS = {"vocab_size": 128}, {"padded_vocab_size": 128}
ODD_ROWS = {"vocab_size": 257}, {"padded_vocab_size": 384}
NO_DENSE = {"first_k_dense_replace": 0}, {"moe_layer_freq": 1}
ALL_DENSE = {"first_k_dense_replace": 3}, {"moe_layer_freq": [0, 0, 0]}

UNUSUAL: dict[str, tuple[str, tuple[Values, Values]]] = {
    "one group": ("seed_oss", ONE_GROUP),
    "as many groups as heads, and no word of groups": ("seed_oss", ALL_GROUPS),
    "wide heads": ("seed_oss", WIDE_HEADS),
    "no padding": ("seed_oss", FULL_ROWS),
    "odd rows": ("phi3", ODD_ROWS),
    "one layer": ("seed_oss", ({"num_hidden_layers": 1}, {"num_layers": 1})),
    "fused, one group": ("phi3", ONE_GROUP),
    "Gemma, wide heads": ("gemma2", WIDE_HEADS),
    "untied StarCoder": ("starcoder2", UNTIED),
    "untied GPT-2": ("gpt2", UNTIED),
    "tied DeepSeek": ("deepseek_v3", TIED),
    "DeepSeek without dense layers": ("deepseek_v3", NO_DENSE),
    "DeepSeek without experts": ("deepseek_v3", ALL_DENSE),
    "DeepSeek with one shared expert": (
        "deepseek_v3",
        ({"n_shared_experts": 1}, {"moe_shared_expert_intermediate_size": 24}),
    ),
    "DeepSeek without latent queries": ("deepseek_v3", ({"q_lora_rank": None}, {"q_lora_rank": None})),
    "DeepSeek with values as long as keys": ("deepseek_v3", ({"v_head_dim": 16}, {"v_head_dim": 16})),
    "GLM without norms and biases": (
        "glm4_moe",
        ({"use_qk_norm": False, "attention_bias": False}, {"qk_layernorm": False, "add_qkv_bias": False}),
    ),
    "GLM with groups of experts": (
        "glm4_moe",
        (
            {"n_group": 4, "topk_group": 2, "num_experts_per_tok": 4},
            {"moe_router_num_groups": 4, "moe_router_group_topk": 2, "moe_router_topk": 4},
        ),
    ),
    "GLM without experts": ("glm4_moe", ALL_DENSE),
    "Qwen2 with experts in one of three layers": (
        "qwen2_moe",
        ({"mlp_only_layers": [0, 2]}, {"moe_layer_freq": [0, 1, 0]}),
    ),
    "Qwen2 without biases": ("qwen2_moe", ({"qkv_bias": False}, {"add_qkv_bias": False})),
    "OLMoE with three experts": ("olmoe", ({"num_experts": 3}, {"num_experts": 3})),
    "MiniMax, one group": ("minimax_m2", ONE_GROUP),
    "OLMo, one group": ("olmo2", ONE_GROUP),
    "gpt-oss, wide heads": ("gpt_oss", WIDE_HEADS),
    "K-EXAONE without dense layers": (
        "exaone_moe",
        ({"mlp_layer_types": ["sparse"] * 3}, {"moe_layer_freq": [1, 1, 1]}),
    ),
    "tied Hunyuan": ("hy_v3", TIED),
    "Ernie without shared experts": (
        "ernie4_5_moe",
        ({"moe_num_shared_experts": 0}, {"moe_shared_expert_intermediate_size": None}),
    ),
    "MiMo with one window": (
        "mimo_v2_flash",
        ({"layer_types": [FULL, SLIDING, FULL]}, {"hybrid_attention_pattern": [0, 1, 0]}),
    ),
    "dots without windows and dense layers": (
        "dots1",
        (
            {"first_k_dense_replace": 0, "max_window_layers": 3},
            {"moe_layer_freq": 1, "window_size": None, "window_attn_skip_freq": None},
        ),
    ),
    "Llama 4 without experts": ("llama4", ({"moe_layers": []}, {"moe_layer_freq": [0, 0, 0]})),
    "Llama 4 that rotates in all layers": (
        "llama4",
        ({"no_rope_layers": [1, 1, 1]}, {"nope_layer_interval": None, "no_rope_freq": None}),
    ),
    "Qwen3-Next without delta nets": (
        "qwen3_next",
        ({"layer_types": [FULL] * 3}, {"linear_attention_freq": [0, 0, 0]}),
    ),
    "tied Qwen3.5": ("qwen3_5", TIED),
    "Gemma 3 without windows": (
        "gemma3",
        ({"layer_types": [FULL] * 3}, {"interleaved_attn_pattern": (0, 1)}),
    ),
    "Granite with one expert per token": (
        "granitemoe",
        ({"num_experts_per_tok": 1}, {"moe_router_topk": 1}),
    ),
}


@pytest.mark.parametrize("case", UNUSUAL)
def test_the_model_comes_back(case: str, tmp_path: Path) -> None:
    """Every tensor has the name, type and bytes that transformers gave it, the loaded model its logits."""
    name, (config, args) = UNUSUAL[case]
    family = FAMILIES[name]
    family = replace(family, config={**family.config, **config}, args={**family.args, **args})
    family_proofs.write_model(family, tmp_path)
    assert family_proofs.prove_exported(family, tmp_path, tmp_path / "export")["tensors"] > 10
