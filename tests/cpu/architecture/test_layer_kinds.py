"""Claims of `pp_export.architecture.layer_kinds`, and of `pp_export.megatron.hybrid_settings`, which say of
training what these say of config.json.

Sources of the values: transformers' configuration files of each class.
"""

from __future__ import annotations

import math
from typing import Any

import pytest

from pp_export.architecture.readings import READINGS
from pp_export.core.settings import MALFORMED, UNKNOWN, UNUSED, agree
from pp_export.megatron.settings import derive

LINEAR, FULL = "linear_attention", "full_attention"
FOUR = {"num_hidden_layers": 4}
PATTERN = {"hybrid_override_pattern": "M*-E"}
KINDS = {"layers_block_type": [LINEAR, FULL, "mlp", "moe"]}
OLD_KINDS = {"layers_block_type": ["mamba", "attention", "mlp", "moe"]}
ENDLESS = {"__float__": "Infinity"}


@pytest.mark.parametrize(
    ("reading", "config", "value"),
    [
        ("linear_layers", {"full_attention_interval": 2}, [1, 0, 1, 0]),
        ("linear_layers", {"full_attention_interval": 1}, None),
        ("linear_layers", {"full_attention_interval": 2, "layer_types": [LINEAR, FULL] * 2}, [1, 0, 1, 0]),
        ("linear_layers", {"layer_types": [FULL, FULL, LINEAR, FULL]}, [0, 0, 1, 0]),
        ("linear_layers", {}, UNKNOWN),
        ("linear_layers", {"layer_types": ["sliding_attention"] * 4}, MALFORMED),
        ("linear_layers", {"full_attention_interval": 0}, MALFORMED),
        ("layer_pattern", PATTERN, "M*-E"),
        ("layer_pattern", KINDS, "M*-E"),
        ("layer_pattern", OLD_KINDS, "M*-E"),
        ("layer_pattern", {}, UNKNOWN),
        ("layer_pattern", {"hybrid_override_pattern": "MG"}, MALFORMED),
        ("layer_pattern", {"layers_block_type": ["mamba", "hybrid"]}, MALFORMED),
        ("num_layers_of_pattern", {**PATTERN, "num_hidden_layers": 7}, 4),
        ("num_layers_of_pattern", {}, UNKNOWN),
        ("experts_of_pattern", {**PATTERN, "n_routed_experts": 8}, 8),
        ("experts_of_pattern", {"hybrid_override_pattern": "M*-", "n_routed_experts": 8}, None),
        ("experts_of_pattern", PATTERN, UNKNOWN),
        ("experts_of_pattern", {}, UNKNOWN),
        ("time_step_limit", {"time_step_limit": [0.0, math.inf]}, None),
        ("time_step_limit", {"time_step_limit": [0.0, ENDLESS]}, None),
        ("time_step_limit", {"time_step_limit": [0.001, ENDLESS]}, [0.001, math.inf]),
        ("time_step_limit", {"time_step_limit": [0.0, 0.1]}, [0.0, 0.1]),
        ("time_step_limit", {}, None),
        ("time_step_limit", {"time_step_limit": [0.0]}, MALFORMED),
        ("time_step_min", {}, None),
        ("time_step_min", {"time_step_min": 0.0}, None),
        ("time_step_min", {"time_step_min": 0.001}, None),
        ("time_step_min", {"time_step_min": 0.01}, 0.01),
        ("time_step_min", {"time_step_min": "little"}, MALFORMED),
    ],
)
def test_what_a_config_says(reading: str, config: dict[str, Any], value: Any) -> None:
    read = READINGS[reading].read({**FOUR, **config})
    assert read is value or agree(read, value)


@pytest.mark.parametrize(
    ("reading", "before", "value"),
    [
        ("linear_layers", {"full_attention_interval": 2}, [1, 1, 1, 0]),
        ("linear_layers", {"layer_types": [FULL] * 4}, [1, 0, 0, 1]),
        ("linear_layers", {"full_attention_interval": 2}, None),
        ("layer_pattern", PATTERN, "MM-E"),
        ("layer_pattern", KINDS, "MM-E"),
        ("layer_pattern", {**PATTERN, **KINDS}, "MM-E"),
        ("layer_pattern", {}, "MM-E"),
        ("experts_of_pattern", PATTERN, 8),
    ],
)
def test_what_is_written_is_read_again(reading: str, before: dict[str, Any], value: Any) -> None:
    """The keys that say a value say it, whatever stood there before, and in each place."""
    keys = READINGS[reading].write({**FOUR, **before}, value)
    assert keys is not None
    after = {**FOUR, **before, **keys}
    assert agree(READINGS[reading].read(after), value)
    if reading == "layer_pattern":
        assert {said for _, said in READINGS[reading].statements(after)} == {value}


def test_a_regular_pattern_is_also_an_interval() -> None:
    """Loaders that know no `layer_types` read `full_attention_interval`."""
    write = READINGS["linear_layers"].write
    assert write(FOUR, [1, 0, 1, 0]) == {"layer_types": [LINEAR, FULL] * 2, "full_attention_interval": 2}
    assert write(FOUR, [0, 1, 1, 0]) == {"layer_types": [FULL, LINEAR, LINEAR, FULL]}


def test_code_on_the_hub_gets_no_key_that_it_can_t_take() -> None:
    """Where the pattern alone is said, and says it, `layers_block_type` isn't written."""
    write = READINGS["layer_pattern"].write
    assert write({**FOUR, **PATTERN}, "M*-E") == PATTERN
    assert write({**FOUR, **PATTERN, **KINDS}, "M*-E") == PATTERN
    assert write(FOUR, "MG") is None


def test_both_counts_of_layers_are_stated() -> None:
    """A `num_hidden_layers` that isn't the length of the pattern is a contradiction, not a default."""
    statements = READINGS["num_layers_of_pattern"].statements
    assert statements({**PATTERN, "num_hidden_layers": 7}) == [
        ("hybrid_override_pattern", 4),
        ("num_hidden_layers", 7),
    ]
    assert statements(PATTERN) == []


GDN = {"experimental_attention_variant": "gated_delta_net"}
HYBRID = {"hybrid_override_pattern": "MM"}


@pytest.mark.parametrize(
    ("setting", "args", "value"),
    [
        ("linear_layers", {**GDN, "linear_attention_freq": 2}, [1, 0, 1, 0]),
        ("linear_layers", {**GDN, "linear_attention_freq": [1, 1, 0, 1]}, [1, 1, 0, 1]),
        ("linear_layers", {**GDN, "linear_attention_freq": None}, UNKNOWN),
        ("linear_layers", {"experimental_attention_variant": None, "linear_attention_freq": 2}, None),
        ("linear_layers", {}, UNKNOWN),
        ("delta_net_modules", GDN, "megatron-core"),
        ("delta_net_modules", {**GDN, "tuner_type": "full"}, "ms-swift"),
        ("delta_net_modules", {"experimental_attention_variant": "dsa"}, UNUSED),
        ("delta_net_modules", {}, UNKNOWN),
        (
            "linear_layers",
            {"experimental_attention_variant": "gated_delta_net", "linear_attention_freq": [0, 0]},
            None,
        ),
        ("is_hybrid", {"hybrid_override_pattern": None, "hybrid_attention_ratio": 0.0}, False),
        ("is_hybrid", {"hybrid_attention_ratio": 0.1}, True),
        ("hybrid_layers", {"hybrid_layer_pattern": "M*|-E/*-/*-"}, "M*-E"),
        ("hybrid_layers", {"hybrid_layer_pattern": None, **HYBRID}, "MM"),
        ("hybrid_layers", {"hybrid_attention_ratio": 0.1}, UNKNOWN),
        ("hybrid_layers", {"hybrid_override_pattern": None}, UNUSED),
        ("hybrid_layers", {}, UNKNOWN),
        ("mamba_num_heads", {**HYBRID, "mamba_num_heads": 6, "mamba_head_dim": 8}, 6),
        ("mamba_num_heads", {**HYBRID, "mamba_num_heads": None, "mamba_head_dim": 8}, 16),
        ("mamba_num_heads", {**HYBRID}, UNKNOWN),
        ("mamba_num_heads", {"hybrid_override_pattern": None, "mamba_head_dim": 8}, UNUSED),
        ("mamba_activation", HYBRID, "silu"),
        ("mamba_norm_epsilon", HYBRID, 1e-5),
        ("time_step_limit", HYBRID, None),
        ("time_step_limit", {"hybrid_override_pattern": ""}, UNUSED),
        ("time_step_min", HYBRID, None),
    ],
)
def test_what_training_says(setting: str, args: dict[str, Any], value: Any) -> None:
    found = derive({"hidden_size": 64, "num_layers": 4, **args})[setting].value
    assert found is value or agree(found, value)
