"""Claims of `pp_export.megatron.transformer_config`: a TransformerConfig says in its own words what the
training args say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import Enum
from functools import partial
from typing import Any

import pytest
import torch
from torch.nn import functional

from pp_export.core.settings import UNKNOWN
from pp_export.megatron.settings import derive
from pp_export.megatron.transformer_config import as_args

GELU = {"_target_": "torch.nn.functional.gelu", "_call_": False}

RENAMED = [
    ("num_moe_experts", "num_experts", 8),
    ("layernorm_epsilon", "norm_epsilon", 1e-6),
    ("layernorm_zero_centered_gamma", "apply_layernorm_1p", True),
    ("num_layers_in_first_pipeline_stage", "decoder_first_pipeline_num_layers", 3),
    ("num_layers_in_last_pipeline_stage", "decoder_last_pipeline_num_layers", 2),
    ("seq_len_interpolation_factor", "rotary_seq_len_interpolation_factor", 4),
]


@pytest.mark.parametrize(("own", "name", "value"), RENAMED)
def test_words_that_differ_are_translated(own: str, name: str, value: object) -> None:
    """A renamed size is there under the training args' word only, with its value."""
    assert as_args({own: value}) == {name: value}
    assert as_args({own: None}) == {name: None}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_layers", 6),
        ("kv_channels", None),
        ("add_qkv_bias", True),
        ("rotary_base", 1e6),
        ("position_embedding_type", "rope"),
        ("moe_layer_freq", [0, 1, 1]),
        ("moe_mlp_glu_interleave_size", 32),
        ("multi_latent_attention", False),
        ("virtual_pipeline_model_parallel_size", 2),
        ("account_for_loss_in_pipeline_split", True),
        ("vocab_size", 32000),
    ],
)
def test_words_that_both_have_are_kept(name: str, value: object) -> None:
    """A word with one meaning in both vocabularies keeps it."""
    assert as_args({name: value}) == {name: value}


def test_everything_else_is_kept() -> None:
    """Words that no release knows are kept, so that they can be told; what config files say of their own
    making is not.
    """
    made_by = {"_target_": "a.Class", "_partial_": True, "_builder_": "a.Builder"}
    assert as_args({"hidden_dropout": 0.1, "of_a_fork": 3, **made_by}) == {
        "hidden_dropout": 0.1,
        "of_a_fork": 3,
    }


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (functional.silu, "torch.nn.functional.silu"),
        ("torch.nn.functional.silu", "torch.nn.functional.silu"),
        ("silu", "silu"),
        ({"_target_": "torch.nn.functional.silu", "_call_": False}, "torch.nn.functional.silu"),
        (functional.gelu, "gelu"),
        (None, None),
    ],
)
def test_functions_become_their_names(function: Any, name: str | None) -> None:
    """However a function is given, its name is kept; nothing depends on where it lies in memory."""
    args = as_args({"activation_func": function, "gated_linear_unit": True})
    assert args["gated_linear_unit"] is True
    assert name is None or args["activation_func"].endswith(name)
    assert "0x" not in str(args["activation_func"])


@pytest.mark.parametrize(
    ("function", "activation"),
    [
        (partial(functional.gelu, approximate="tanh"), "gated gelu_tanh"),
        (
            {"_target_": "torch.nn.functional.gelu", "_partial_": True, "approximate": "tanh"},
            "gated gelu_tanh",
        ),
        (
            {"_target_": "functools.partial", "_args_": [GELU], "approximate": "tanh"},
            "gated gelu_tanh",
        ),
        ({"_target_": "torch.nn.functional.gelu", "_partial_": True}, "gated gelu"),
        ({"_target_": "torch.nn.functional.gelu", "_partial_": True, "approximate": "none"}, UNKNOWN),
        (partial(functional.elu, alpha=2.0), UNKNOWN),
        (lambda x: x, UNKNOWN),
        ({"_target_": "a.fork.<lambda>"}, UNKNOWN),
    ],
)
def test_parameters_of_a_function_count(function: Any, activation: Any) -> None:
    """GELU with its tanh form chosen is another function than GELU; one with other parameters given, or
    without a name, is not known, and none is taken for the function that it was made of.
    """
    args = as_args({"activation_func": function, "gated_linear_unit": True, "bias_activation_fusion": False})
    assert derive(args)["activation"].value == activation


def test_objects_say_nothing() -> None:
    """Process groups, handles and lists of them differ from rank to rank and are left out."""
    assert as_args({"pg_collection": object(), "timers": [object()], "handles": {"a": object()}}) == {}


@pytest.mark.parametrize(
    ("config", "groups"),
    [
        ({"num_query_groups": 4, "num_attention_heads": 8}, 4),
        ({"num_query_groups": None, "num_attention_heads": 8}, 8),
        ({"num_query_groups": None}, None),
    ],
)
def test_no_groups_are_as_many_as_heads(config: Mapping[str, Any], groups: int | None) -> None:
    """megatron-core's None means one group per head, and groups always count: there is no switch."""
    args = as_args(config)
    assert (args["num_query_groups"], args["group_query_attention"]) == (groups, True)
    assert "group_query_attention" not in as_args({"num_attention_heads": 8})


def test_what_a_config_could_not_store_is_not_known() -> None:
    """Shared embeddings that are None are neither shared nor untied."""
    assert "untie_embeddings_and_output_weights" not in as_args({"share_embeddings_and_output_weights": None})


@pytest.mark.parametrize("is_shared", [True, False])
def test_shared_embeddings_are_the_opposite_of_untied(is_shared: bool) -> None:
    """`untie_embeddings_and_output_weights` is the negation, and absent where nothing is said."""
    args = as_args({"share_embeddings_and_output_weights": is_shared})
    assert args == {"untie_embeddings_and_output_weights": not is_shared}


def test_the_vocabulary_is_padded_only_where_it_says_so() -> None:
    """The divisor counts with `should_pad_vocab` alone: Bridge stores it in every config."""
    divisor = {"make_vocab_size_divisible_by": 128, "vocab_size": 1000}
    assert as_args(divisor | {"should_pad_vocab": True})["make_vocab_size_divisible_by"] == 128
    for config in (divisor | {"should_pad_vocab": False}, divisor):
        args = as_args(config)
        assert args["vocab_size"] == 1000
        assert "make_vocab_size_divisible_by" not in args


class Kind(Enum):
    ROPE = "rope"


def test_every_value_can_be_written_as_json() -> None:
    """Types, enums and functions become text, tuples lists, whatever object holds them; plain values
    stay.
    """
    config = {
        "params_dtype": torch.bfloat16,
        "position_embedding_type": Kind.ROPE,
        "moe_layer_freq": (1, (0, torch.float32)),
        "num_moe_experts": None,
        "rotary_percent": 0.5,
    }
    args = as_args(config)
    assert json.loads(json.dumps(args)) == args
    assert args["params_dtype"] == "torch.bfloat16"
    assert args["position_embedding_type"] == "Kind.ROPE"
    assert args["moe_layer_freq"] == [1, [0, "torch.float32"]]
    assert (args["num_experts"], args["rotary_percent"]) == (None, 0.5)
