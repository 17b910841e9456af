"""Readings of what config.json says of experts: the layers that have them, how many are shared, groups."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from pp_export.architecture import expert_layers
from pp_export.architecture.reading import Reading


def _shared_experts(key: str) -> Reading:
    """The size of all shared experts together, which a `key` counts."""
    read, write = expert_layers.shared_size, expert_layers.write_shared
    return Reading((key,), partial(read, key=key), partial(write, key=key))


READINGS: Mapping[str, Reading] = {
    "sparse_layers": Reading(
        ("decoder_sparse_step", "mlp_only_layers"), expert_layers.of_sparse, expert_layers.write_sparse
    ),
    "layers_after_dense": Reading(
        (expert_layers.FIRST_DENSE,), expert_layers.after_dense, expert_layers.write_after_dense
    ),
    "layers_of_types": Reading(
        (expert_layers.TYPES, expert_layers.FIRST_DENSE),
        expert_layers.of_types,
        expert_layers.write_types,
        expert_layers.statements_of_types,
    ),
    "layers_at_interval": Reading(
        (expert_layers.NUMBERS, expert_layers.INTERVAL),
        expert_layers.of_interval,
        expert_layers.write_interval,
        expert_layers.statements_of_interval,
    ),
    "router_groups": Reading(("n_group", "topk_group"), expert_layers.groups, expert_layers.write_groups),
    "router_groups_by_method": Reading(
        (expert_layers.METHOD, "n_group", "topk_group"),
        expert_layers.groups_by_method,
        expert_layers.write_groups_by_method,
    ),
    "shared_experts": _shared_experts("n_shared_experts"),
    "num_shared_experts": _shared_experts("num_shared_experts"),
    "moe_num_shared_experts": _shared_experts("moe_num_shared_experts"),
    "shared_intermediate_size": Reading(
        ("shared_intermediate_size",),
        lambda config: config.get("shared_intermediate_size") or None,
        lambda _, value: {"shared_intermediate_size": value or 0},
    ),
    "layers_of_range": Reading(expert_layers.RANGE, expert_layers.of_range, expert_layers.write_range),
    "every_layer": Reading((), expert_layers.every_layer, lambda *_: None),
}
