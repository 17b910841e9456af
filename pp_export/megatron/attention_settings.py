"""Settings of attention that few families have: chunks, queries that grow, norms of layers without RoPE.

Sources: megatron/core/models/gpt/gpt_layer_specs.py, and the layer specs of NeMo, Megatron-Bridge and
ms-swift, in whose configs these args are.
"""

from __future__ import annotations

from typing import Any

from pp_export.core.settings import UNKNOWN, UNUSED
from pp_export.megatron.derivation import Args, Derivations, is_count, is_layers

SETTINGS = Derivations()


@SETTINGS.of("attention_chunk_size", "num_layers")
def _attention_chunks(args: Args) -> Any:
    """Tokens of the chunks that see only themselves, per layer; None where none are cut. NeMo cuts in all."""
    size, layers = args.get("attention_chunk_size"), args.get("num_layers")
    if not size:
        return None if len(args) else UNKNOWN
    return [size] * layers if is_count(size) and is_layers(layers) else UNKNOWN


@SETTINGS.of(
    *("llama_4_scaling_beta", "llama_4_original_max_position_embeddings", "transformer_layer_spec"),
    "hidden_size",
)
def _query_growth(args: Args) -> Any:
    """After how many tokens queries are multiplied by a number that grows, and how fast; None where none are.

    Only Megatron-Bridge's layers for Ministral 3 do it. Its older ones took the numbers from a Hugging Face
    config, which it doesn't store.
    """
    factor, tokens = args.get("llama_4_scaling_beta"), args.get("llama_4_original_max_position_embeddings")
    if factor is None and "ministral" in str(args.get("transformer_layer_spec")):
        return UNKNOWN
    if not factor:
        return None if len(args) else UNKNOWN
    return {"after": tokens, "factor": factor} if is_count(tokens) else UNKNOWN


@SETTINGS.of("qk_l2_norm", "no_rope_freq", "nope_layer_interval", "hf_model_type", "llm_model_type")
def _l2_norm_without_rope(args: Args) -> Any:
    """Whether the L2 norm is in layers too that don't rotate: in megatron-core's own spec it is in all, in
    NeMo's (which counts `nope_layer_interval`) and ms-swift's for Llama 4 only in those that do.
    """
    if not args.get("qk_l2_norm"):
        return UNUSED
    if args.get("nope_layer_interval") is not None:
        return False
    models = (str(args.get(name)) for name in ("hf_model_type", "llm_model_type"))
    return bool(args.get("no_rope_freq")) and not any(model.startswith("llama4") for model in models)
