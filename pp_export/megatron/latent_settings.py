"""Settings of latent attention (MLA), whose args every run stores and only models that have it read.

Source: megatron/core/transformer/multi_latent_attention.py.
"""

from __future__ import annotations

from typing import Any

from pp_export.core.settings import UNKNOWN, UNUSED, OneOf
from pp_export.megatron import rope
from pp_export.megatron.derivation import Args, Derivations, known

SETTINGS = Derivations()


def _size(args: Args, name: str) -> Any:
    return known(args.get(name)) if args.get("multi_latent_attention") else UNUSED


@SETTINGS.of("multi_latent_attention", "kv_lora_rank")
def _kv_lora_rank(args: Args) -> Any:
    return _size(args, "kv_lora_rank")


@SETTINGS.of("multi_latent_attention", "qk_head_dim")
def _qk_head_dim(args: Args) -> Any:
    """The part of a head of queries and keys that doesn't rotate."""
    return _size(args, "qk_head_dim")


@SETTINGS.of("multi_latent_attention", "qk_pos_emb_head_dim")
def _qk_pos_emb_head_dim(args: Args) -> Any:
    """The part that rotates."""
    return _size(args, "qk_pos_emb_head_dim")


@SETTINGS.of("multi_latent_attention", "v_head_dim")
def _v_head_dim(args: Args) -> Any:
    return _size(args, "v_head_dim")


@SETTINGS.of("multi_latent_attention", "rotary_scaling_factor", "mscale", "mscale_all_dim")
def _latent_scale(args: Args) -> Any:
    """What scores are multiplied by besides one over the root of the head's size."""
    if not args.get("multi_latent_attention"):
        return UNUSED
    if any(args.get(name) is None for name in ("rotary_scaling_factor", "mscale", "mscale_all_dim")):
        return UNKNOWN
    factors = rope.score_factors(args)
    why = "releases of megatron-core through 0.13 scaled scores by mscale, later ones by mscale_all_dim"
    return factors[0] if len(factors) == 1 else OneOf(factors, why)
