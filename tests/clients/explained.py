"""Models of a class that a client says it knows, and of which it answers otherwise all the same, or refuses
the folder: why, as far as its code tells. Whatever isn't here is right.

Models here are small, and have every switch of their class in an unusual place (windows of 16 tokens, heads
of which half rotates): where a client leaves such a thing out, a published model may still be right in it.
"""

from __future__ import annotations

_KEYS = "it requires keys of config.json that transformers 5 doesn't write ({})"
_WINDOW = "it has no window in its attention"
_MTP = "it takes out layers for multi-token prediction by the number that published models have"
_PATTERN = "it takes the last of each few layers as one without a window, and the model has fewer layers"

EXPLAINED: dict[str, dict[str, str]] = {
    "vllm": {
        "int8-channel": "on the CPU it has no kernel for weights alone in 8 bits (WNA16)",
        "fp8-block": "on the CPU its kernel needs a processor with AMX (Sapphire Rapids or newer)",
        "hybrid": "on the CPU its linear attention takes bfloat16 alone, too coarse to compare",
        "adapter": "on the CPU its attention takes heads of 32 and more, not the small model's of 8",
    },
    "mergekit": {
        **dict.fromkeys(
            (
                *(
                    "deepseek_v2",
                    "deepseek_v2_lite",
                    "deepseek_v2_lite_fused",
                    "deepseek_v3",
                    "deepseek_v3_mtp",
                ),
                *(
                    "deepseek_v32",
                    "deepseek_v32_mtp",
                    "dots1",
                    "ernie4_5_moe",
                    "exaone_moe",
                    "exaone_moe_mtp",
                ),
                *("glm4_moe_lite", "glm4_moe_lite_mtp", "glm_moe_dsa", "hy_v3", "hy_v3_mtp"),
                *("mimo_v2_flash", "mimo_v2_flash_mtp", "qwen3_next", "qwen3_next_mtp"),
            ),
            "it has no list of their tensors, and leaves out of the merged model the experts that"
            " transformers 5 packs in memory",
        ),
        **dict.fromkeys(
            ("nemotron_h", "nemotron_3", "nemotron_3_mtp"),
            "it has no list of their tensors, and leaves out those that transformers 5 has other names for in"
            " memory",
        ),
        "gpt_neox": "it asks for the causal mask that older releases of transformers stored with each layer",
    },
    "ctranslate2": {
        "phi3": "its converter asks layers for what those of older releases had (`rotary_emb`)",
        "gpt2": "it wants as many words in the tokenizer as the model has rows",
        "gemma3": "it can't compute a whole text that is longer than the window at once",
        "gemma2": "not known; its converter says nothing of windows",
    },
    "mlx-lm": {
        "cohere2": _PATTERN,
        "gemma3": _PATTERN,
        **dict.fromkeys(
            ("deepseek_v2", "deepseek_v2_lite", "deepseek_v2_lite_fused"),
            "it takes `rope_scaling` for granted",
        ),
        "deepseek_v3_mtp": _MTP,
        **dict.fromkeys(
            ("exaone4", "glm4_moe", "glm4_moe_mtp", "glm4_moe_two_mtp"), _KEYS.format("`rope_scaling`")
        ),
        **dict.fromkeys(("exaone_moe", "exaone_moe_mtp"), _KEYS.format("`is_moe_layer`")),
        "glm_moe_dsa": "it has an indexer in every layer, also where layers share one",
        "gpt2": _KEYS.format("`n_ctx`"),
        **dict.fromkeys(
            ("mimo_v2_flash", "mimo_v2_flash_mtp"), _KEYS.format("`hybrid_layer_pattern` and others")
        ),
        "solar_open": _KEYS.format("`first_k_dense_replace`, `partial_rotary_factor`"),
        "gpt_neox": "it has four times the width in every MLP",
        "gpt_oss": "it takes experts in 4 bits (MXFP4), as published, not in 16 or 32",
        "llama4": "its class of this name is dense, with a tied head",
        **dict.fromkeys(
            ("glm4_moe_lite", "glm4_moe_lite_mtp"),
            "it takes the dense layers from `first_k_dense_replace`, not from `mlp_layer_types`",
        ),
        "ernie4_5_moe": "it leaves out the router's correction bias",
        **dict.fromkeys(("deepseek_v32", "deepseek_v32_mtp"), "not known; its indexer is another"),
        "gemma": "its GELU is the exact one, not the tanh form that config.json says",
        "glm": "whole heads rotate in it, not the part that config.json says",
        **dict.fromkeys(("gemma2", "phi3", "starcoder2", "dots1"), _WINDOW),
    },
}
