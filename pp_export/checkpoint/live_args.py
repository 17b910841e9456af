"""What a running model says of itself: its config, and what megatron-core keeps on the model
(megatron/core/models/gpt/gpt_model.py, mamba/mamba_model.py).
"""

from __future__ import annotations

import math
from typing import Any

import torch

from pp_export.megatron import transformer_config

_LONGEST_UNSCALED = 8192  # `RotaryEmbedding._apply_scaling`: original length over low frequency factor
_ON_THE_MODEL = (
    "share_embeddings_and_output_weights",
    "position_embedding_type",
    "rotary_base",
    "rotary_percent",
    "hybrid_layer_pattern",
    "hybrid_override_pattern",
)


def args_of(part: Any) -> dict[str, Any]:
    """The training args that a part of a model stands for, as far as it shows them."""
    config = getattr(part, "config", None)
    values = dict(vars(config)) if config is not None else {}
    kept = {name: getattr(part, name, None) for name in _ON_THE_MODEL}
    values.update({name: value for name, value in kept.items() if value is not None})
    if hasattr(part, "max_sequence_length"):
        values.setdefault("max_position_embeddings", part.max_sequence_length)
    values = {**_scaling(part), **values}
    values.pop("vocab_size", None)  # a model knows its padded one
    values.pop("should_pad_vocab", None)
    return transformer_config.as_args(values)


def _scaling(part: Any) -> dict[str, Any]:
    """How the model scales RoPE, of which megatron-core keeps the switch, and the factor only in the
    frequencies: the lowest one, whose wave is the longest, is divided by all of it.
    """
    found: dict[str, Any] = {}
    embedding: Any = getattr(part, "rotary_pos_emb", None)
    switch = getattr(part, "rotary_scaling", None)
    if hasattr(embedding, "seq_len_interpolation_factor"):
        found["seq_len_interpolation_factor"] = embedding.seq_len_interpolation_factor
    if isinstance(switch, bool):
        found["rope_scaling"] = switch
    frequencies = getattr(embedding, "inv_freq", None)
    if switch and isinstance(frequencies, torch.Tensor):
        unscaled = float(part.rotary_base) ** (1 / len(frequencies) - 1)
        if 2 * math.pi / unscaled <= _LONGEST_UNSCALED:
            return {**found, "rope_scaling": None}  # no frequency is divided by all of it
        found["rope_scaling_factor"] = float(f"{unscaled / float(frequencies[-1]):.6g}")
    return found
