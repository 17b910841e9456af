"""Two vocabularies for one model: Megatron-LM's training args, and the attributes of megatron-core's
TransformerConfig, which Megatron-Bridge and NeMo store instead of args and which a live model carries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_RENAMED = {
    "num_moe_experts": "num_experts",
    "layernorm_epsilon": "norm_epsilon",
    "layernorm_zero_centered_gamma": "apply_layernorm_1p",
    "num_layers_in_first_pipeline_stage": "decoder_first_pipeline_num_layers",
    "num_layers_in_last_pipeline_stage": "decoder_last_pipeline_num_layers",
}
_KEPT = (
    *(
        "num_layers",
        "hidden_size",
        "ffn_hidden_size",
        "num_attention_heads",
        "num_query_groups",
        "kv_channels",
    ),
    *("normalization", "add_bias_linear", "add_qkv_bias", "qk_layernorm", "attention_output_gate"),
    *("position_embedding_type", "rotary_base", "rotary_percent", "rotary_interleaved", "vocab_size"),
    *("moe_layer_freq", "moe_ffn_hidden_size", "moe_router_topk", "moe_shared_expert_intermediate_size"),
    *("moe_grouped_gemm", "moe_mlp_glu_interleave_size", "moe_shared_expert_glu_interleave_size"),
    *(
        "multi_latent_attention",
        "q_lora_rank",
        "kv_lora_rank",
        "qk_head_dim",
        "qk_pos_emb_head_dim",
        "v_head_dim",
    ),
    *("tensor_model_parallel_size", "pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size"),
    *("expert_model_parallel_size", "expert_tensor_parallel_size", "context_parallel_size"),
    *("mtp_num_layers", "params_dtype", "account_for_embedding_in_pipeline_split"),
    "account_for_loss_in_pipeline_split",
)
# Words of training args that TransformerConfig has too, and with the same meaning, are kept as they are.


def as_args(config: Mapping[str, Any]) -> dict[str, Any]:
    """The training args that a TransformerConfig stands for; values as in the config, or as YAML holds
    them.
    """
    args = {name: config[name] for name in _KEPT if name in config}
    args.update({name: config[own] for own, name in _RENAMED.items() if own in config})
    if "num_query_groups" in config:
        args["num_query_groups"] = config["num_query_groups"] or config.get("num_attention_heads")
        args["group_query_attention"] = True
    if "gated_linear_unit" in config:
        args["swiglu"] = bool(config["gated_linear_unit"]) and _name(config.get("activation_func")) == "silu"
    if "share_embeddings_and_output_weights" in config:
        args["untie_embeddings_and_output_weights"] = not config["share_embeddings_and_output_weights"]
    if config.get("should_pad_vocab"):
        args["make_vocab_size_divisible_by"] = config.get("make_vocab_size_divisible_by")
    return {name: _plain(value) for name, value in args.items()}


def _name(function: Any) -> str:
    """The bare name of a function that is given as itself, by its path, or as a `_target_` of a config
    file.
    """
    path = function.get("_target_", "") if isinstance(function, Mapping) else function
    return str(getattr(path, "__name__", path)).rpartition(".")[2]


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value)
