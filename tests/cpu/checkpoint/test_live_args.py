"""Claims of `pp_export.checkpoint.live_args`: a running model says its settings as its checkpoint would."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pp_export.checkpoint.live_args import args_of
from pp_export.core.settings import agree
from pp_export.megatron import settings


def part(**rope: Any) -> Any:
    """A part of a model with megatron-core's own rotary embedding."""
    module: Any = pytest.importorskip("megatron.core.models.common.embeddings.rotary_pos_embedding")
    embedding = module.RotaryEmbedding(64, 1.0, rotary_base=500_000, use_cpu_initialization=True, **rope)
    return SimpleNamespace(
        config=SimpleNamespace(num_layers=4, layernorm_epsilon=1e-3, vocab_size=256, timers=object()),
        rotary_pos_emb=embedding,
        rotary_scaling=rope.get("rope_scaling", False),
        rotary_base=500_000,
        rotary_percent=1.0,
        position_embedding_type="rope",
        share_embeddings_and_output_weights=True,
    )


def test_what_config_and_model_say_is_known() -> None:
    """Fields of the config and what the model keeps itself come under the words of training args; its
    vocabulary is the padded one and says nothing.
    """
    args = args_of(part())
    assert args["norm_epsilon"] == 1e-3
    assert args["rotary_base"] == 500_000
    assert args["untie_embeddings_and_output_weights"] is False
    assert "vocab_size" not in args
    assert "timers" not in args


@pytest.mark.parametrize("factor", [8.0, 32.0, 1.5])
def test_the_factor_is_read_from_the_frequencies(factor: float) -> None:
    """megatron-core keeps the switch and not the factor of Llama 3's scaling; the lowest frequency has it."""
    scaled = settings.derive(args_of(part(rope_scaling=True, rope_scaling_factor=factor)))["rope_scaling"]
    assert scaled.value["rope_type"] == "llama3"
    assert agree(scaled.value["factor"], factor)


def test_interpolation_and_plain_positions() -> None:
    """Interpolated and plain positions are told apart too."""
    assert settings.derive(args_of(part()))["rope_scaling"].value == {"rope_type": "default"}
    interpolated = settings.derive(args_of(part(seq_len_interpolation_factor=4)))["rope_scaling"]
    assert interpolated.value == {"rope_type": "linear", "factor": 4}


def test_the_pattern_of_a_hybrid_model_is_known() -> None:
    """The model keeps it, and not its config."""
    hybrid = SimpleNamespace(
        config=SimpleNamespace(is_hybrid_model=True, num_layers=4), hybrid_override_pattern="M*-M"
    )
    assert settings.derive(args_of(hybrid))["hybrid_layers"].value == "M*-M"


def test_a_model_without_any_of_it_says_nothing() -> None:
    """A module that keeps neither config nor embedding has no args, and no error."""
    assert args_of(SimpleNamespace()) == {}
