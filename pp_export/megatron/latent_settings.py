"""Settings of latent attention (MLA), whose args every run stores and only models that have it read.

Source: megatron/core/transformer/multi_latent_attention.py.
"""

from __future__ import annotations

from typing import Any

from pp_export.core.settings import UNKNOWN, UNUSED, OneOf
from pp_export.megatron import rope
from pp_export.megatron.derivation import Args, Derivations, Derive, known

SETTINGS = Derivations()
_OF_CLASSES = 1e-6


def _size_of(name: str) -> Derive:
    return lambda args: known(args.get(name)) if args.get("multi_latent_attention") else UNUSED


# Of a head of queries and keys, `qk_pos_emb_head_dim` is the part that rotates, `qk_head_dim` the rest.
for _name in ("kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim"):
    SETTINGS.by_name[_name] = (("multi_latent_attention", _name), _size_of(_name))


@SETTINGS.of("multi_latent_attention", "norm_epsilon")
def _latent_norm_epsilon(args: Args) -> Any:
    """Of the norms of latents, where it isn't what transformers' classes have there."""
    epsilon = args.get("norm_epsilon")
    return UNUSED if not args.get("multi_latent_attention") or epsilon == _OF_CLASSES else known(epsilon)


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
