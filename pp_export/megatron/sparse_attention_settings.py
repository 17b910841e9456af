"""Settings of sparse attention (DSA), in which an indexer chooses the tokens that are seen.

Source: megatron/core/transformer/experimental_attention_variant/dsa.py.
"""

from __future__ import annotations

from typing import Any

from pp_export.core.settings import UNKNOWN, UNUSED
from pp_export.megatron.derivation import Args, Derivations, is_count, is_layers

SETTINGS = Derivations()
HALVES, PAIRS, UNTOLD = "the first part, in halves", "the first part, in pairs", "a part that no arg tells"


def _has_indexer(args: Args) -> bool:
    return args.get("experimental_attention_variant") == "dsa"


@SETTINGS.of(
    *("experimental_attention_variant", "dsa_indexer_topk_freq", "dsa_indexer_skip_topk_offset"),
    "num_layers",
)
def _indexer_layers(args: Args) -> Any:
    """Which layers choose tokens themselves, 1 or 0 per layer; the others see what the last one chose."""
    if not _has_indexer(args):
        return UNUSED
    step, first = args.get("dsa_indexer_topk_freq") or 1, args.get("dsa_indexer_skip_topk_offset") or 0
    layers = args.get("num_layers")
    if not (is_layers(layers) and is_count(step) and is_count(first)) or (step > 1 and not first):
        return UNKNOWN
    return [int(max(layer + 1 - first, 0) % step == 0) for layer in range(layers)]


@SETTINGS.of(
    *("experimental_attention_variant", "dsa_indexer_rope_interleaved", "dsa_indexer_rotary_interleaved")
)
def _indexer_rotation(args: Args) -> Any:
    """Which part of an indexer's head rotates, and how; ms-swift has a word of its own for pairs. Without an
    arg for it, release 0.16 rotates the last part, in pairs, and later ones the first, in halves.
    """
    if not _has_indexer(args):
        return UNUSED
    own = args.get("dsa_indexer_rotary_interleaved")
    pairs = args.get("dsa_indexer_rope_interleaved") if own is None else own
    if pairs is None:
        return UNTOLD
    return PAIRS if pairs else HALVES
