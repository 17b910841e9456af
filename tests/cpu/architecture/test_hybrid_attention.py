"""Claims of how layers with a window differ from the others in MiMo-V2-Flash, as both sides say it.

Sources of the values: transformers' configuration_mimo_v2_flash.py, Megatron-Bridge's models/mimo_v2_flash.
"""

from __future__ import annotations

from typing import Any

import pytest

from pp_export.architecture.readings import READINGS
from pp_export.core.settings import UNKNOWN, UNUSED, agree
from pp_export.megatron.settings import derive

SEVEN = {"num_hidden_layers": 7}
SLIDING, FULL = "sliding_attention", "full_attention"
PARTS = {SLIDING: {"partial_rotary_factor": 0.5}, FULL: {"partial_rotary_factor": 0.25}}
HYBRID: dict[str, Any] = {"hybrid_attention_pattern": [0, 1], "v_head_dim": 6}


@pytest.mark.parametrize(
    ("reading", "config", "value"),
    [
        ("windows_of_hybrid_layers", {"sliding_window": 8}, [None, 8, 8, 8, 8, None, 8]),
        (
            "windows_of_hybrid_layers",
            {"sliding_window": 8, "sliding_window_size": 8},
            [None, *[9] * 4, None, 9],
        ),
        ("windows_of_hybrid_layers", {"sliding_window": 8, "layer_types": [FULL, SLIDING]}, [None, 8]),
        ("partial_rotary_of_types", {"rope_parameters": PARTS}, [0.5, 0.25]),
        ("partial_rotary_of_types", {"rope_parameters": {**PARTS, SLIDING: PARTS[FULL]}}, 0.25),
        ("attention_value_scale", {"attention_value_scale": None}, None),
    ],
)
def test_what_a_config_says(reading: str, config: dict[str, Any], value: Any) -> None:
    assert agree(READINGS[reading].read({**SEVEN, **config}), value)


@pytest.mark.parametrize("before", [{}, {"sliding_window_size": 4}])
def test_both_ways_of_counting_a_window_are_written(before: dict[str, Any]) -> None:
    """Where a `sliding_window_size` is, which wins, it says the same window without the token itself."""
    reading = READINGS["windows_of_hybrid_layers"]
    value = [8, None, 8, 8, 8, 8, 8]
    keys = reading.write({**SEVEN, **before}, value)
    assert keys is not None
    assert reading.read({**SEVEN, **before, **keys}) == value


def test_a_part_that_rotates_is_written_for_both_types() -> None:
    reading = READINGS["partial_rotary_of_types"]
    keys = reading.write({"rope_parameters": PARTS}, 0.75)
    assert keys is not None
    assert reading.read(keys) == 0.75


@pytest.mark.parametrize(
    ("setting", "args", "value"),
    [
        ("windows", {**HYBRID, "window_size": 8}, [None, 8]),
        ("windows", {**HYBRID, "window_size": 8, "sliding_window_size": 16}, [None, 16]),
        ("windows", {**HYBRID, "window_size": (7, 0)}, UNKNOWN),
        ("softmax_type", {**HYBRID, "softmax_type": "vanilla"}, "learnable with a window"),
        ("softmax_type", {"softmax_type": "vanilla"}, "vanilla"),
        ("softmax_type", {}, UNKNOWN),
        ("window_groups", {**HYBRID, "swa_num_query_groups": 8, "full_attn_num_query_groups": 4}, 2),
        ("window_groups", HYBRID, UNKNOWN),
        ("window_groups", {"swa_num_query_groups": 8}, UNUSED),
        ("value_head_dim", HYBRID, 6),
        ("value_head_dim", {"v_head_dim": 128}, UNUSED),
    ],
)
def test_what_training_says(setting: str, args: dict[str, Any], value: Any) -> None:
    found = derive({"num_layers": 2, "seq_length": 64, **args})[setting].value
    assert found is value or agree(found, value)
