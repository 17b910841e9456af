"""Settings of models whose layers are of different kinds: linear attention, or Mamba, among others.

Sources: megatron/core/models/gpt/experimental_attention_variant_module_specs.py, and in megatron/core/ssm
mamba_mixer.py and the allocation of layers (mamba_hybrid_layer_allocation.py).
"""

from __future__ import annotations

from typing import Any

from pp_export.core.settings import UNKNOWN, UNUSED, is_nth
from pp_export.megatron.derivation import Args, Derivations, Derive, is_count, is_layers

SETTINGS = Derivations()
_HYBRID = (
    *("hybrid_layer_pattern", "hybrid_override_pattern", "is_hybrid_model"),
    *("hybrid_attention_ratio", "hybrid_mlp_ratio"),
)
_OF_SWIFT = (
    *("hf_model_type", "llm_model_type", "mcore_model", "megatron_model_type", "llm_architectures"),
    *("mlp_padding_free", "tuner_type", "train_type", "linear_decoupled_in_proj"),
)


@SETTINGS.of("experimental_attention_variant", "linear_attention_freq", "num_layers")
def _linear_layers(args: Args) -> Any:
    """Which layers have a gated delta net for attention, 1 or 0 per layer; None where none has. N leaves out
    each N-th layer (`get_linear_attention_pattern`).
    """
    variant, how, layers = (
        args.get(name) for name in ("experimental_attention_variant", "linear_attention_freq", "num_layers")
    )
    if variant != "gated_delta_net":
        return None if "experimental_attention_variant" in args else UNKNOWN
    if isinstance(how, (list, tuple)):
        return [int(bool(is_linear)) for is_linear in how] if any(how) else None
    if not is_count(how) or how < 1 or not is_layers(layers):
        return UNKNOWN
    return [int(not is_nth(layer, how)) for layer in range(layers)]


@SETTINGS.of("experimental_attention_variant", *_OF_SWIFT)
def _delta_net_modules(args: Args) -> Any:
    """Whose gated delta nets and gated attention they are. ms-swift's (mcore_bridge/model/modules) have
    parameters of the same names and sizes, with rows in another order and a norm that multiplies by its
    weight.
    """
    if any(name in args for name in _OF_SWIFT):
        return "ms-swift"
    variant = args.get("experimental_attention_variant")
    return UNKNOWN if variant is None else "megatron-core" if variant == "gated_delta_net" else UNUSED


@SETTINGS.of(*_HYBRID)
def _is_hybrid(args: Args) -> Any:
    """Whether the model is one whose layers each are one of several kinds."""
    return any(bool(args.get(name)) for name in args) if len(args) else UNKNOWN


def _of_hybrids(function: Derive) -> Derive:
    """A setting that only a hybrid model has."""

    def derive_(args: Args) -> Any:
        is_hybrid = _is_hybrid(Args(args, _HYBRID))
        return (UNUSED if is_hybrid is False else UNKNOWN) if is_hybrid is not True else function(args)

    derive_.__name__ = function.__name__
    return derive_


@SETTINGS.of(*_HYBRID)
@_of_hybrids
def _hybrid_layers(args: Args) -> Any:
    """The kind of each layer: M Mamba, * attention, - MLP, E experts. A | only ends a pipeline stage, and
    what follows a / are layers of multi-token prediction.
    """
    pattern = args.get("hybrid_layer_pattern") or args.get("hybrid_override_pattern")
    return pattern.partition("/")[0].replace("|", "") if isinstance(pattern, str) else UNKNOWN


@SETTINGS.of(*_HYBRID, "mamba_num_heads", "mamba_head_dim", "hidden_size")
@_of_hybrids
def _mamba_num_heads(args: Args) -> Any:
    """As said, else as many as twice the model's width has."""
    heads, dim, hidden = (args.get(name) for name in ("mamba_num_heads", "mamba_head_dim", "hidden_size"))
    if heads is not None or not dim or not isinstance(hidden, int):
        return UNKNOWN if heads is None else heads
    return 2 * hidden // dim


def _always(name: str, value: Any) -> None:
    """Register what Mamba layers of megatron-core do whatever the args are."""
    SETTINGS.by_name[name] = (_HYBRID, _of_hybrids(lambda _: value))


_always("mamba_activation", "silu")
_always("mamba_norm_epsilon", 1e-5)
_always("time_step_limit", None)
_always("time_step_min", None)
