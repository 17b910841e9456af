"""Settings of every layer: sizes, norms, activation, positions, windows, attention.

Sources: megatron/core/transformer/transformer_config.py, megatron/training/arguments.py, and what each
function names.
"""

from __future__ import annotations

from typing import Any

from pp_export.core.settings import UNKNOWN, OneOf, is_nth
from pp_export.megatron import rope
from pp_export.megatron.derivation import Args, Derivations, is_count, is_layers, known

SETTINGS = Derivations()
_OF_OTHERS = ("spec", "hf_model_type", "llm_model_type", "megatron_model_type")
"""Args of runs whose layers aren't, or may not be, those of Megatron-LM."""

SETTINGS.plain("hidden_size", "ffn_hidden_size", "num_attention_heads", "rotary_base")


@SETTINGS.of("num_layers", "hybrid_layer_pattern", "hybrid_override_pattern")
def _num_layers(args: Args) -> Any:
    """As said; hybrid models of newer releases say it in their pattern alone."""
    pattern = args.get("hybrid_layer_pattern") or args.get("hybrid_override_pattern")
    said = args.get("num_layers")
    if said is None and isinstance(pattern, str):
        return len(pattern.partition("/")[0].replace("|", ""))
    return known(said)


@SETTINGS.of("num_query_groups", "group_query_attention", "num_attention_heads")
def _num_query_groups(args: Args) -> Any:
    """Groups count only under `group_query_attention`: their default of 1 means nothing without it."""
    grouped = args.get("group_query_attention")
    if not isinstance(grouped, bool):
        return UNKNOWN
    return known(args.get("num_query_groups") if grouped else args.get("num_attention_heads"))


@SETTINGS.of("kv_channels", "hidden_size", "num_attention_heads")
def _head_dim(args: Args) -> Any:
    hidden, heads = args.get("hidden_size"), args.get("num_attention_heads")
    if args.get("kv_channels") is not None:
        return args["kv_channels"]
    return hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads else UNKNOWN


@SETTINGS.of("norm_epsilon", "layernorm_epsilon")
def _norm_epsilon(args: Args) -> Any:
    first = args.get("norm_epsilon")
    return known(args.get("layernorm_epsilon") if first is None else first)


@SETTINGS.of("apply_layernorm_1p", "layernorm_zero_centered_gamma")
def _zero_centered_norm(args: Args) -> Any:
    """Whether a norm multiplies by 1 + weight."""
    first = args.get("apply_layernorm_1p")
    return known(args.get("layernorm_zero_centered_gamma") if first is None else first)


@SETTINGS.of("untie_embeddings_and_output_weights")
def _tied(args: Args) -> Any:
    untied = args.get("untie_embeddings_and_output_weights")
    return not untied if isinstance(untied, bool) else UNKNOWN


@SETTINGS.of(
    "swiglu",
    "squared_relu",
    "quick_geglu",
    "gated_linear_unit",
    "activation_func",
    "bias_gelu_fusion",
    "bias_activation_fusion",
)
def _activation(args: Args) -> Any:
    """`gated silu`, `gelu`, ...: args have flags, in this order of precedence; configs a gate and a function.

    Without a flag it is GELU, whose fused kernel computes the tanh form (core/fusions/fused_bias_gelu.py).
    """
    for flag, name in (
        ("swiglu", "gated silu"),
        ("quick_geglu", "gated quick_gelu"),
        ("squared_relu", "squared_relu"),
    ):
        if args.get(flag):
            return name
    function, gated = args.get("activation_func"), args.get("gated_linear_unit")
    if function is not None and gated is not None:
        name = str(function).rpartition(".")[2].rstrip(">")
        if name in ("fast_gelu", "openai_gelu"):  # core/activations.py, Megatron-Bridge: always the tanh form
            return "gated gelu_tanh" if gated else "gelu_tanh"
        return _fused(f"{'gated ' if gated else ''}{name}", args.get("bias_activation_fusion"))
    if args.get("swiglu") is None or (function, gated) != (None, None):
        return UNKNOWN
    return _fused("gelu", args.get("bias_gelu_fusion"))


def _fused(name: str, fusion: Any) -> Any:
    """GELU's fused kernels compute its tanh form (core/fusions/fused_bias_gelu.py, fused_bias_geglu.py)."""
    if not name.endswith("gelu") or name.endswith("quick_gelu") or fusion is False:
        return name
    tanh = f"{name}_tanh"
    return (
        tanh if fusion else OneOf((name, tanh), "whether GELU was fused, and so its tanh form, isn't known")
    )


@SETTINGS.of("position_embedding_type", "use_rotary_position_embeddings")
def _position_embedding(args: Args) -> Any:
    """The old flag overrides the type. YaRN is a way of scaling RoPE."""
    if args.get("use_rotary_position_embeddings"):
        return "rope"
    kind = args.get("position_embedding_type")
    return UNKNOWN if kind is None else {"yarn": "rope"}.get(str(kind), str(kind))


@SETTINGS.of("rotary_percent", "partial_rotary_factor")
def _rotary_percent(args: Args) -> Any:
    """The part of each head that rotates; ms-swift has config.json's word for it."""
    own = args.get("partial_rotary_factor")
    return known(args.get("rotary_percent") if own is None else own)


@SETTINGS.of(*rope.ARGS, "rotary_base")
def _rope_scaling(args: Args) -> Any:
    """As `rope_parameters`; by type of layers where Megatron-Bridge's Gemma 3, which has a base for each,
    divides the frequencies of those without a window.
    """
    if isinstance(args.get("rotary_base"), (list, tuple)):
        factor = args.get("rope_scaling_factor")
        usual = {"rope_type": "default"}
        scaled = {"rope_type": "linear", "factor": factor}
        by_type = {"sliding_attention": usual, "full_attention": scaled}
        return UNKNOWN if factor is None else usual if factor == 1 else by_type
    found = rope.scaling(args)
    if found is None:
        return UNKNOWN
    values, why = found
    return values[0] if len(values) == 1 else OneOf(values, why)


@SETTINGS.of("no_rope_freq", "nope_layer_interval", "num_layers")
def _rope_layers(args: Args) -> Any:
    """Which layers rotate, 1 or 0 per layer; None where all do. In Megatron's list 1 means that a layer
    does not, and N that every N-th one doesn't; NeMo has a word of its own for N.
    """
    own = args.get("nope_layer_interval")
    if "no_rope_freq" not in args and own is None:
        return UNKNOWN
    how, layers = args.get("no_rope_freq") if own is None else own, args.get("num_layers")
    if not how:
        return None
    if is_count(how) and is_layers(layers):
        return [int(not is_nth(i, how)) for i in range(layers)]
    if not isinstance(how, (list, tuple)):
        return UNKNOWN
    return [1 - int(bool(skips)) for skips in how] if any(how) else None


@SETTINGS.of("seq_length", "max_position_embeddings")
def _sequence_length(args: Args) -> Any:
    """The longest sequence that the model was trained on."""
    return known(args.get("seq_length") or args.get("max_position_embeddings"))


def _hybrid_windows(args: Args) -> Any:
    """Those of Megatron-Bridge's MiMo, for the layers that its pattern marks."""
    own = args.get("sliding_window_size")
    size = args.get("window_size") if own is None else own
    return (
        [size if windowed else None for windowed in args["hybrid_attention_pattern"]]
        if is_count(size)
        else UNKNOWN
    )


@SETTINGS.of(
    *("window_size", "window_attn_skip_freq", "interleaved_attn_pattern", "num_layers", "seq_length"),
    *("max_position_embeddings", "hybrid_attention_pattern", "sliding_window_size"),
)
def _windows(args: Args) -> Any:
    """Tokens that each layer's queries see, themselves included, None where all; None where no layer has
    fewer than the sequences that were trained on.

    Megatron counts the tokens to the left of the query, -1 for all of them; `window_attn_skip_freq` N leaves
    out each N-th layer (core/transformer/utils.py, `is_layer_window_attention`), and so does
    Megatron-Bridge's `interleaved_attn_pattern` of N - 1 layers with a window and one without. Where it has a
    `hybrid_attention_pattern`, it counts the query too.
    """
    hybrid = args.get("hybrid_attention_pattern")
    if hybrid or "window_size" not in args:
        return _hybrid_windows(args) if hybrid else UNKNOWN
    window, layers, sequence = args["window_size"], args.get("num_layers"), _sequence_length(args)
    left = window[0] if isinstance(window, (list, tuple)) and window else window
    if left is None or (is_count(left) and is_count(sequence) and left + 1 >= sequence):
        return None
    if not is_count(left):
        return None if left == -1 else UNKNOWN
    skips, pattern = args.get("window_attn_skip_freq"), args.get("interleaved_attn_pattern")
    if pattern is not None:
        skips = sum(pattern)
    if isinstance(skips, (list, tuple)):
        return [left + 1 if windowed else None for windowed in skips]
    if not is_layers(layers) or not (skips is None or is_count(skips)):
        return UNKNOWN
    return [None if skips and is_nth(layer, skips) else left + 1 for layer in range(layers)]


@SETTINGS.of(
    *("softmax_scale", "kv_channels", "hidden_size", "num_attention_heads", "query_pre_attn_scalar"),
    *("use_mup", "mup_base_head_dim", "mup_attn_scale_power", *_OF_OTHERS),
)
def _attention_scale(args: Args) -> Any:
    """What scores are multiplied by; None for one over the root of the head's size. Gemma's providers say a
    number whose root it is one over, muP a head size to begin from.

    Configs say the scale. Megatron-LM has no flag for another than the usual one, so its args don't; only a
    job's own layers may have one then, or ms-swift, which takes it from the reference.
    """
    scale, size = args.get("softmax_scale"), _head_dim(args)
    if scale is None and args.get("query_pre_attn_scalar") is not None:
        scale = args["query_pre_attn_scalar"] ** -0.5
    if scale is None and args.get("use_mup"):
        base, power = args.get("mup_base_head_dim"), args.get("mup_attn_scale_power")
        if base is None or power is None or size is UNKNOWN:
            return UNKNOWN
        scale = base**0.5 / size**power
    is_others = size is UNKNOWN or any(args.get(name) for name in _OF_OTHERS)
    if scale is None and "softmax_scale" not in args and is_others:
        return UNKNOWN
    usual = isinstance(scale, float) and isinstance(size, int) and abs(scale * size**0.5 - 1) < 1e-6
    return None if scale is None or usual else scale


@SETTINGS.of("embedding_multiplier", "use_mup", "mup_embedding_mult", "hidden_size")
def _embedding_multiplier(args: Args) -> Any:
    """What embeddings are multiplied by: 1 but for muP, and for frameworks that say it as Granite does."""
    if args.get("embedding_multiplier") is None and args.get("use_mup"):
        return known(args.get("mup_embedding_mult"))
    return _said_or(1.0, "embedding_multiplier", args)


@SETTINGS.of(
    *("logit_scale", "logits_scaling", "use_mup", "mup_output_mult", "mup_base_hidden_size", "hidden_size")
)
def _logit_multiplier(args: Args) -> Any:
    """What logits are multiplied by. muP takes the ratio of the base's width to the model's where it is told
    no other number than 1; Granite says the reciprocal.
    """
    if args.get("logits_scaling"):
        return 1 / args["logits_scaling"]
    if args.get("logit_scale") is None and args.get("use_mup"):
        told, hidden = args.get("mup_output_mult"), args.get("hidden_size")
        base = args.get("mup_base_hidden_size")
        if told is None or not isinstance(hidden, int):
            return UNKNOWN
        return (base or hidden) / hidden if told == 1 else told
    return _said_or(1.0, "logit_scale", args)


@SETTINGS.of("residual_multiplier", "hidden_size")
def _residual_multiplier(args: Args) -> Any:
    """What each block's output is multiplied by before it is added: 1, as no release has such a thing."""
    return _said_or(1.0, "residual_multiplier", args)


@SETTINGS.of("use_parallel_residual", "hidden_size")
def _parallel_residual(args: Args) -> Any:
    """Whether attention and MLP see the same input: GPT models of megatron-core run one after the other."""
    return _said_or(False, "use_parallel_residual", args)


@SETTINGS.of("use_bidirectional_attention", "hidden_size")
def _bidirectional_attention(args: Args) -> Any:
    """Whether queries see what comes after them: not in GPT models of megatron-core."""
    return _said_or(False, "use_bidirectional_attention", args)


@SETTINGS.of("scale_attn_by_inverse_layer_idx", "hidden_size")
def _scale_attn_by_inverse_layer_idx(args: Args) -> Any:
    """Whether scores are also divided by the layer's number. `apply_query_key_layer_scaling` takes it back
    before the softmax (core/transformer/dot_product_attention.py).
    """
    return _said_or(False, "scale_attn_by_inverse_layer_idx", args)


def _said_or(usual: Any, name: str, args: Args) -> Any:
    """What a framework says in an arg of its own, else what every model of megatron-core does."""
    said = args.get(name)
    return said if said is not None else usual if len(args) else UNKNOWN
