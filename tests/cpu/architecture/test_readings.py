"""Claims of `pp_export.architecture.readings`: what classes take from config.json, and which keys say another
value; and of `pp_export.megatron.settings`, what training says of the same.

Sources of the values: transformers' configuration and modeling files of each class.
"""

from __future__ import annotations

from typing import Any

import pytest

from pp_export.architecture.readings import READINGS
from pp_export.core.settings import MALFORMED, UNKNOWN, agree
from pp_export.megatron.settings import derive

FOUR = {"num_hidden_layers": 4, "head_dim": 16}
SLIDING, FULL = "sliding_attention", "full_attention"
WINDOWS = {"sliding_window": 8, "layer_types": [SLIDING, FULL, FULL, FULL]}
BY_TYPE = {SLIDING: {"rope_theta": 1e4}, FULL: {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0}}
DEFAULT = {"rope_type": "default"}


@pytest.mark.parametrize(
    ("reading", "config", "value"),
    [
        ("gated_activation", {"hidden_act": "gelu"}, "gated gelu"),
        ("gated_activation_of_gemma", {"hidden_act": "gelu"}, "gated gelu_tanh"),
        ("gated_hidden_activation", {"hidden_activation": "gelu_pytorch_tanh"}, "gated gelu_tanh"),
        ("plain_activation", {"hidden_act": "relu2"}, "squared_relu"),
        ("plain_activation", {"hidden_act": "gelu"}, "gelu"),
        ("plain_activation", {}, UNKNOWN),
        ("plain_activation_function", {"activation_function": "gelu_new"}, "gelu_tanh"),
        ("attention_multiplier", {"attention_multiplier": 0.25}, None),
        ("attention_multiplier", {"attention_multiplier": 1.0}, 1.0),
        ("query_pre_attn_scalar", {"query_pre_attn_scalar": 16}, None),
        ("query_pre_attn_scalar", {"query_pre_attn_scalar": 64}, 0.125),
        ("scale_attn_weights", {"scale_attn_weights": True}, None),
        ("scale_attn_weights", {"scale_attn_weights": False}, 1.0),
        ("attn_logit_softcapping", {"attn_logit_softcapping": 50.0}, 50.0),
        ("attn_logit_softcapping", {"attn_logit_softcapping": None}, None),
        ("logits_scaling", {"logits_scaling": 8.0}, 0.125),
        ("bidirectional_attention", {"use_bidirectional_attention": True}, False),
        ("bidirectional_attention", {"is_causal": False}, True),
        ("bidirectional_attention", {"is_causal": None}, True),  # as the library takes it
        ("bidirectional_attention_of_gemma", {"use_bidirectional_attention": None}, False),
        ("bidirectional_attention_of_gemma", {"use_bidirectional_attention": True}, True),
        ("bidirectional_attention_of_gemma", {"is_causal": False}, True),
        ("rope_interleave", {"rope_interleave": None}, False),
        ("rope_interleave", {}, UNKNOWN),
        ("router_groups", {"n_group": 1, "topk_group": 0}, MALFORMED),
        ("query_pre_attn_scalar", {"query_pre_attn_scalar": 0}, MALFORMED),
        ("scaled_queries", {"rope_parameters": {"llama_4_scaling_beta": 0.5}}, MALFORMED),
        ("latent_scale", {"rope_parameters": {"rope_type": "yarn", "mscale_all_dim": 1.0}}, MALFORMED),
        ("windows_of_layers", {"sliding_window": 8, "layer_types": [SLIDING] * 4}, MALFORMED),
        ("windows_of_early_layers", {"sliding_window": 0, "layer_types": [SLIDING] * 4}, MALFORMED),
        ("n_inner", {"n_inner": None, "n_embd": 12}, 48),
        ("n_inner", {"n_inner": 20, "n_embd": 12}, 20),
        ("rope_layers", {"no_rope_layer_interval": 4}, [1, 1, 1, 0]),
        ("rope_layers", {"no_rope_layers": [1, 1, 0, 1], "no_rope_layer_interval": 4}, [1, 1, 0, 1]),
        ("rope_layers", {"no_rope_layers": [1, 1, 1, 1]}, None),
        ("rope_layers", {}, UNKNOWN),
        ("rope_in_windows", WINDOWS, [1, 0, 0, 0]),
        ("rope_in_windows", {"sliding_window": None}, [0, 0, 0, 0]),
        ("rope_in_windows_if_any", WINDOWS, [1, 0, 0, 0]),
        ("rope_in_windows_if_any", {"sliding_window": None}, None),
        ("rope_in_windows_if_any", {"sliding_window": 8, "layer_types": [FULL] * 4}, [0, 0, 0, 0]),
        ("windows_of_types", WINDOWS, [8, None, None, None]),
        ("windows_of_types", {"sliding_window": 8, "sliding_window_pattern": 2}, [8, None, 8, None]),
        ("windows_of_types", {"sliding_window": 8}, UNKNOWN),
        ("windows_of_types", {**WINDOWS, "sliding_window": None}, None),
        ("windows_without_rope", WINDOWS, None),
        ("windows_without_rope", {**WINDOWS, "use_sliding_window": True}, [8, None, None, None]),
        (
            "windows_without_rope",
            {"sliding_window": 8, "use_sliding_window": True, "no_rope_layer_interval": 2},
            [None, 8, None, 8],
        ),
        ("rotary_emb_base", {"rotary_emb_base": 500}, 500.0),
        ("rotary_emb_base", {"rotary_emb_base": 500, "rope_parameters": {"rope_theta": 7}}, 7.0),
        ("rotary_pct", {"rotary_pct": 0.25}, 0.25),
        ("rotary_pct", {"rotary_pct": 0.25, "rope_parameters": {"partial_rotary_factor": 0.5}}, 0.5),
        ("rotary_pct", {}, 1.0),
        ("rotary_base_of_types", {"rope_theta": 1e6}, 1e6),
        ("rotary_base_of_types", {"rope_theta": 1e6, "rope_local_base_freq": 1e4}, [1e4, 1e6]),
        ("rotary_base_of_types", {"rope_parameters": BY_TYPE}, [1e4, 1e6]),
        ("rotary_base_of_types", {}, UNKNOWN),
        ("rope_scaling_of_types", {"rope_theta": 1e6}, DEFAULT),
        (
            "rope_scaling_of_types",
            {"rope_parameters": BY_TYPE},
            {SLIDING: DEFAULT, FULL: {"rope_type": "linear", "factor": 8.0}},
        ),
        (
            "rope_scaling_of_types",
            {"rope_theta": 1e6, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
            {SLIDING: DEFAULT, FULL: {"rope_type": "linear", "factor": 8.0}},
        ),
    ],
)
def test_what_a_config_says(reading: str, config: dict[str, Any], value: Any) -> None:
    read = READINGS[reading].read({**FOUR, **config})
    assert read is value or agree(read, value)


@pytest.mark.parametrize(
    ("reading", "value"),
    [
        ("gated_activation_of_gemma", "gated gelu_tanh"),
        ("plain_activation", "squared_relu"),
        ("plain_activation", "gelu"),
        ("plain_activation_function", "gelu_tanh"),
        ("attention_multiplier", None),
        ("attention_multiplier", 0.01),
        ("query_pre_attn_scalar", None),
        ("query_pre_attn_scalar", 144**-0.5),
        ("attn_logit_softcapping", None),
        ("scale_attn_weights", 1.0),
        ("logits_scaling", 0.0625),
        ("rope_layers", [0, 1, 1, 1]),
        ("rope_layers", None),
        ("windows_of_types", [None, 5, None, 5]),
        ("windows_of_types", None),
        ("windows_without_rope", [None, 5, None, 5]),
        ("windows_without_rope", None),
        ("rotary_emb_base", 77.0),
        ("rotary_pct", 0.5),
        ("rotary_base_of_types", 77.0),
        ("rotary_base_of_types", [77.0, 99.0]),
        ("bidirectional_attention", False),
        ("bidirectional_attention_of_gemma", False),
        ("bidirectional_attention_of_gemma", True),
    ],
)
def test_what_is_written_is_read_again(reading: str, value: Any) -> None:
    """The keys that say a value say it, whatever stood there before."""
    before = {
        **FOUR,
        **WINDOWS,
        "use_sliding_window": True,
        "no_rope_layers": [1, 0, 1, 1],
        "rotary_emb_base": 500,
        "rotary_pct": 1.0,
        "rope_theta": 1e6,
        "is_causal": False,
        "use_bidirectional_attention": True,
    }
    keys = READINGS[reading].write(before, value)
    assert keys is not None
    assert agree(READINGS[reading].read({**before, **keys}), value)


@pytest.mark.parametrize(
    ("reading", "value"),
    [
        ("gated_activation_of_gemma", "gated gelu"),  # the class takes that name for the tanh form
        ("plain_activation", "gated silu"),
        ("scale_attn_weights", 0.3),
        ("bidirectional_attention", True),
        ("attention_multiplier", "much"),
        ("shared_experts", 40),  # experts of no size
        ("windows_of_types", [4, 5, None, None]),
    ],
)
def test_what_no_keys_can_say(reading: str, value: Any) -> None:
    assert READINGS[reading].write(FOUR, value) is None


@pytest.mark.parametrize(
    ("setting", "args", "value"),
    [
        ("embedding_multiplier", {}, 1.0),
        ("embedding_multiplier", {"use_mup": False, "mup_embedding_mult": 12.0}, 1.0),
        ("embedding_multiplier", {"use_mup": True, "mup_embedding_mult": 12.0}, 12.0),
        ("embedding_multiplier", {"embedding_multiplier": 12.0}, 12.0),
        ("logit_multiplier", {}, 1.0),
        ("logit_multiplier", {"use_mup": True, "mup_output_mult": 0.5}, 0.5),
        (
            "logit_multiplier",
            {"use_mup": True, "mup_output_mult": 1.0, "mup_base_hidden_size": 16},
            0.25,
        ),
        ("logit_multiplier", {"logits_scaling": 8.0}, 0.125),
        ("logit_multiplier", {"logit_scale": 0.0625}, 0.0625),
        ("residual_multiplier", {}, 1.0),
        ("residual_multiplier", {"residual_multiplier": 0.22}, 0.22),
        ("parallel_residual", {}, False),
        ("attention_scale", {"softmax_scale": None, "query_pre_attn_scalar": 64}, 0.125),
        ("attention_scale", {"query_pre_attn_scalar": 16}, None),
        ("attention_scale", {}, None),  # Megatron-LM has no flag for another
        ("attention_scale", {"query_pre_attn_scalar": 0}, UNKNOWN),
        ("attention_scale", {"spec": ["of.a.job", "layers"]}, UNKNOWN),
        ("attention_scale", {"hf_model_type": "gemma3"}, UNKNOWN),
        ("attention_scale", {"softmax_scale": None, "use_mup": True, "mup_base_head_dim": None}, UNKNOWN),
        (
            "attention_scale",
            {"use_mup": True, "mup_base_head_dim": 4.0, "mup_attn_scale_power": 1.0},
            0.125,
        ),
        ("activation", {"gated_linear_unit": True, "activation_func": "core.fast_gelu"}, "gated gelu_tanh"),
        ("activation", {"gated_linear_unit": False, "activation_func": "x.openai_gelu"}, "gelu_tanh"),
        ("windows", {"window_size": 7, "interleaved_attn_pattern": (2, 1)}, [8, 8, None, 8]),
        ("rope_scaling", {"rotary_base": (1e4, 1e6), "rope_scaling_factor": 1.0}, DEFAULT),
        (
            "rope_scaling",
            {"rotary_base": (1e4, 1e6), "rope_scaling_factor": 8.0},
            {SLIDING: DEFAULT, FULL: {"rope_type": "linear", "factor": 8.0}},
        ),
    ],
)
def test_what_training_says(setting: str, args: dict[str, Any], value: Any) -> None:
    sizes = {"hidden_size": 64, "num_layers": 4, "num_attention_heads": 4, "kv_channels": 16}
    found = derive({**sizes, **args})[setting].value
    assert found is value or agree(found, value)


@pytest.mark.parametrize(
    "setting", ["embedding_multiplier", "logit_multiplier", "residual_multiplier", "bidirectional_attention"]
)
def test_no_args_say_nothing(setting: str) -> None:
    assert derive({})[setting].value is UNKNOWN
