"""Settings of layers with experts: which they are, and how a router's scores become weights.

Sources: megatron/core/transformer/moe/router.py and moe_utils.py.
"""

from __future__ import annotations

from typing import Any

from pp_export.core.settings import UNKNOWN, UNUSED
from pp_export.megatron.derivation import Args, Derivations, Derive, is_count, is_layers, known

SETTINGS = Derivations()


def _is_sinkhorn(args: Args) -> bool:
    balancing = args.get("moe_router_load_balancing_type")
    return "sinkhorn" in (balancing if isinstance(balancing, list) else [balancing])


def _router(function: Derive) -> Derive:
    """A setting that only a model with experts has."""

    def derive_(args: Args) -> Any:
        if "num_experts" not in args:
            return UNKNOWN
        return function(args) if args["num_experts"] else UNUSED

    derive_.__name__ = function.__name__
    return derive_


@SETTINGS.of("num_experts")
def _num_experts(args: Args) -> Any:
    return args["num_experts"] or None if "num_experts" in args else UNKNOWN


@SETTINGS.of("num_experts", "moe_layer_freq", "num_layers")
@_router
def _moe_layers(args: Args) -> Any:
    """Which layers have experts, 1 or 0 per layer: a list, or N for the layers 0, N, 2N, ...
    (`get_gpt_decoder_block_spec` in core/models/gpt/gpt_layer_specs.py).
    """
    how, layers = args.get("moe_layer_freq"), args.get("num_layers")
    if isinstance(how, (list, tuple)):
        return [int(bool(has)) for has in how]
    if not is_layers(layers) or not is_count(how) or how < 1:
        return UNKNOWN
    return [int(i % how == 0) for i in range(layers)]


@SETTINGS.of("num_experts", "moe_router_topk")
@_router
def _moe_router_topk(args: Args) -> Any:
    return known(args.get("moe_router_topk"))


@SETTINGS.of("num_experts", "moe_ffn_hidden_size", "ffn_hidden_size")
@_router
def _moe_ffn_hidden_size(args: Args) -> Any:
    return known(args.get("moe_ffn_hidden_size") or args.get("ffn_hidden_size"))


@SETTINGS.of("num_experts", "moe_router_score_function", "moe_router_load_balancing_type", "moe_router_topk")
@_router
def _moe_router_score_function(args: Args) -> Any:
    """Sinkhorn balances in training only; then experts are weighted by a sigmoid if one is chosen, else by a
    softmax (`TopKRouter.sinkhorn_load_balancing`).
    """
    if _is_sinkhorn(args):
        return {True: "sigmoid", False: "softmax"}.get(args.get("moe_router_topk") == 1)
    return known(args.get("moe_router_score_function"))


@SETTINGS.of(
    "num_experts",
    "moe_router_pre_softmax",
    "moe_router_score_function",
    "moe_router_topk",
    "moe_router_load_balancing_type",
)
@_router
def _normalized_topk(args: Args) -> Any:
    """Whether the weights of the chosen experts add up to 1 (core/transformer/moe/moe_utils.py,
    `topk_routing_with_score_function`): a softmax of the chosen, or one of all that isn't divided again.
    """
    if _is_sinkhorn(args):
        return False
    score, topk = args.get("moe_router_score_function"), args.get("moe_router_topk")
    if score in ("sigmoid", "sqrtsoftplus"):
        return topk > 1 if isinstance(topk, int) else UNKNOWN
    before = args.get("moe_router_pre_softmax")
    return not before if isinstance(before, bool) else UNKNOWN


@SETTINGS.of("num_experts", "moe_router_load_balancing_type")
@_router
def _router_quantile_bias(args: Args) -> Any:
    """Whether a bias that training keeps takes part in the choice of experts."""
    balancing = args.get("moe_router_load_balancing_type")
    kinds = balancing if isinstance(balancing, list) else [balancing]
    return UNKNOWN if balancing is None else any("quantile" in str(kind) for kind in kinds)


@SETTINGS.of("num_experts", "moe_router_topk_scaling_factor")
@_router
def _router_scaling_factor(args: Args) -> Any:
    """What the weights of the chosen experts are multiplied by."""
    if "moe_router_topk_scaling_factor" not in args:
        return UNKNOWN
    return float(args["moe_router_topk_scaling_factor"] or 1.0)


@SETTINGS.of(
    "num_experts", "moe_router_num_groups", "moe_router_group_topk", "moe_router_topk_limited_devices"
)
@_router
def _router_groups(args: Args) -> Any:
    """[groups, chosen groups] of experts; None where all experts compete."""
    groups, chosen = args.get("moe_router_num_groups"), args.get("moe_router_group_topk")
    if args.get("moe_router_topk_limited_devices"):
        return [None, args["moe_router_topk_limited_devices"]]
    if "moe_router_num_groups" not in args:
        return UNKNOWN
    return [groups, chosen] if groups and chosen and chosen < groups else None


@SETTINGS.of("num_experts", "moe_router_num_groups", "moe_router_group_topk", "moe_router_topk")
@_router
def _router_group_experts(args: Args) -> Any:
    """How many of a group's best experts tell how good it is (`group_limited_topk`)."""
    groups, chosen, topk = (
        args.get(name) for name in ("moe_router_num_groups", "moe_router_group_topk", "moe_router_topk")
    )
    if "moe_router_num_groups" not in args or (groups and topk is None):
        return UNKNOWN
    return topk // chosen if groups and chosen and chosen < groups else UNUSED


@SETTINGS.of("num_experts", "moe_shared_expert_intermediate_size")
@_router
def _shared_expert_size(args: Args) -> Any:
    if "moe_shared_expert_intermediate_size" not in args:
        return UNKNOWN
    return args["moe_shared_expert_intermediate_size"] or None


@SETTINGS.of(
    *("num_experts", "moe_shared_expert_intermediate_size", "moe_shared_expert_gate"),
    "use_shared_expert_gate",
)
@_router
def _shared_expert_gate(args: Args) -> Any:
    if not args.get("moe_shared_expert_intermediate_size"):
        return UNUSED
    own = args.get("use_shared_expert_gate")  # ms-swift's
    return known(args.get("moe_shared_expert_gate") if own is None else own)


@SETTINGS.of("num_experts", "moe_router_enable_expert_bias")
@_router
def _router_expert_bias(args: Args) -> Any:
    return known(args.get("moe_router_enable_expert_bias"))
