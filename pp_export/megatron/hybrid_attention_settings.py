"""Settings of models whose layers with a window differ from the others in more than the window.

Source: Megatron-Bridge's models/mimo_v2_flash; no release of Megatron-LM has such layers.
"""

from __future__ import annotations

from typing import Any

from pp_export.core.settings import UNKNOWN, UNUSED
from pp_export.megatron.derivation import Args, Derivations, is_count, known

SETTINGS = Derivations()
_PATTERN = "hybrid_attention_pattern"


@SETTINGS.of("softmax_type", _PATTERN)
def _softmax_type(args: Args) -> Any:
    return "learnable with a window" if args.get(_PATTERN) else known(args.get("softmax_type"))


@SETTINGS.of(_PATTERN, "swa_num_query_groups", "full_attn_num_query_groups")
def _window_groups(args: Args) -> Any:
    """How many times as many query groups layers with a window have as the others."""
    if not args.get(_PATTERN):
        return UNUSED
    own, others = args.get("swa_num_query_groups"), args.get("full_attn_num_query_groups")
    return own / others if is_count(own) and is_count(others) and others else UNKNOWN


@SETTINGS.of(_PATTERN, "v_head_dim")
def _value_head_dim(args: Args) -> Any:
    """The size of a head's value, where it isn't that of its key; every run stores the arg."""
    return known(args.get("v_head_dim")) if args.get(_PATTERN) else UNUSED
