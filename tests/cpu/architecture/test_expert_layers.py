"""Claims of `pp_export.architecture.expert_layers`: which layers of a class have experts, and which keys say
other ones.

Sources of the values: transformers' configuration and modeling files of each class.
"""

from __future__ import annotations

from typing import Any

import pytest

from pp_export.architecture.readings import READINGS
from pp_export.core.settings import MALFORMED, UNKNOWN, agree

FOUR = {"num_hidden_layers": 4, "moe_intermediate_size": 8}
DENSE, SPARSE = "dense", "sparse"
GROUPS = {"n_group": 8, "topk_group": 3}
LIMITED = {"topk_method": "group_limited_greedy"}
RANGE = {"moe_layer_interval": 1, "moe_layer_start_index": 1, "moe_layer_end_index": -1}


@pytest.mark.parametrize(
    ("reading", "config", "value"),
    [
        ("layers_of_types", {"mlp_layer_types": [DENSE, SPARSE, DENSE, SPARSE]}, [0, 1, 0, 1]),
        ("layers_of_types", {"first_k_dense_replace": 1}, [0, 1, 1, 1]),
        (
            "layers_of_types",
            {"first_k_dense_replace": 1, "mlp_layer_types": [SPARSE] * 5},
            [1, 1, 1, 1],
        ),
        ("layers_of_types", {"mlp_layer_types": ["moe"] * 4}, MALFORMED),
        ("layers_of_types", {}, UNKNOWN),
        ("layers_at_interval", {"interleave_moe_layer_step": 2}, [0, 1, 0, 1]),
        ("layers_at_interval", {"interleave_moe_layer_step": 2, "moe_layers": [0]}, [1, 0, 0, 0]),
        ("layers_at_interval", {"interleave_moe_layer_step": 2, "moe_layers": []}, [0, 0, 0, 0]),
        ("layers_at_interval", {"interleave_moe_layer_step": 0}, UNKNOWN),
        ("layers_of_range", RANGE, [0, 1, 1, 1]),
        ("layers_of_range", {**RANGE, "moe_layer_end_index": 2}, [0, 1, 1, 0]),
        ("layers_of_range", {**RANGE, "moe_layer_interval": 2}, [0, 1, 0, 1]),
        ("layers_of_range", {**RANGE, "moe_layer_interval": 0}, UNKNOWN),
        ("layers_of_range", {}, UNKNOWN),
        ("router_groups_by_method", {**GROUPS, **LIMITED}, [8, 3]),
        ("router_groups_by_method", {**GROUPS, "topk_method": "greedy"}, None),
        ("router_groups_by_method", LIMITED, None),
        ("shared_experts", {"n_shared_experts": 2}, 16),
        ("num_shared_experts", {"num_shared_experts": 3}, 24),
        ("moe_num_shared_experts", {"moe_num_shared_experts": 0}, None),
        ("shared_intermediate_size", {"shared_intermediate_size": 0}, None),
        ("shared_intermediate_size", {"shared_intermediate_size": 5}, 5),
    ],
)
def test_what_a_config_says(reading: str, config: dict[str, Any], value: Any) -> None:
    read = READINGS[reading].read({**FOUR, **config})
    assert read is value or agree(read, value)


@pytest.mark.parametrize(
    ("reading", "value", "keys"),
    [
        (
            "layers_of_types",
            [0, 0, 1, 1],
            {"mlp_layer_types": [DENSE, DENSE, SPARSE, SPARSE], "first_k_dense_replace": 2},
        ),
        ("layers_of_types", [1, 0, 1, 1], {"mlp_layer_types": [SPARSE, DENSE, SPARSE, SPARSE]}),
        ("layers_at_interval", [0, 1, 0, 1], {"moe_layers": [1, 3], "interleave_moe_layer_step": 2}),
        ("layers_at_interval", [1, 0, 1, 0], {"moe_layers": [0, 2]}),
        ("layers_at_interval", [0, 0, 0, 0], {"moe_layers": []}),
        ("layers_of_range", [0, 1, 1, 0], {**RANGE, "moe_layer_end_index": 2}),
        (
            "layers_of_range",
            [0, 1, 0, 1],
            {"moe_layer_interval": 2, "moe_layer_start_index": 1, "moe_layer_end_index": 3},
        ),
        ("layers_of_range", [1, 0, 1, 1], None),
        ("layers_of_range", [0, 0, 0, 0], None),
        ("router_groups_by_method", [8, 3], {**GROUPS, **LIMITED}),
        ("router_groups_by_method", None, {"n_group": 1, "topk_group": 1, "topk_method": "greedy"}),
        ("num_shared_experts", 16, {"num_shared_experts": 2}),
        ("num_shared_experts", 12, None),
        ("shared_intermediate_size", None, {"shared_intermediate_size": 0}),
    ],
)
def test_which_keys_say_a_value(reading: str, value: Any, keys: Any) -> None:
    """The keys that say it, read again as the same value; None where there are none."""
    assert READINGS[reading].write(FOUR, value) == keys
    if keys is not None:
        assert agree(READINGS[reading].read({**FOUR, **keys}), value)


def test_keys_that_disagree_are_two_statements() -> None:
    """A list and a count, or numbers and an interval, are each a statement of its own."""
    types = {"mlp_layer_types": [SPARSE] * 4, "first_k_dense_replace": 2}
    said = dict(READINGS["layers_of_types"].statements({**FOUR, **types}))
    assert said == {"mlp_layer_types": [1, 1, 1, 1], "first_k_dense_replace": [0, 0, 1, 1]}
    numbers = {"moe_layers": [0], "interleave_moe_layer_step": 2}
    said = dict(READINGS["layers_at_interval"].statements({**FOUR, **numbers}))
    assert said == {"moe_layers": [1, 0, 0, 0], "interleave_moe_layer_step": [0, 1, 0, 1]}
