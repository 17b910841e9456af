"""Claims of `pp_export.architecture.indexers`, and of what training says of the same: which layers of sparse
attention choose tokens themselves, and how their indexers rotate.

Sources of the values: transformers' configuration_glm_moe_dsa.py, megatron-core's transformer_config.py.
"""

from __future__ import annotations

from typing import Any

import pytest

from pp_export.architecture.readings import READINGS
from pp_export.core.settings import MALFORMED, UNKNOWN, UNUSED, agree
from pp_export.megatron.settings import derive

EIGHT = {"num_hidden_layers": 8}
READING = READINGS["indexers_of_types"]
OWN, SHARED = "full", "shared"
GLM_5_2 = [1, 1, 1, 0, 0, 0, 1, 0]  # the 1st, 2nd, 3rd, 7th, 11th layer, ...


@pytest.mark.parametrize(
    ("config", "value"),
    [
        ({}, [1] * 8),
        ({"index_topk_freq": 4, "index_skip_topk_offset": 3}, GLM_5_2),
        ({"index_topk_freq": 4, "indexer_types": [OWN] * 4 + [SHARED] * 5}, [1, 1, 1, 1, 0, 0, 0, 0]),
        ({"indexer_types": ["other"] * 8}, MALFORMED),
        ({"index_topk_freq": "4"}, UNKNOWN),
        ({"num_hidden_layers": None}, UNKNOWN),
    ],
)
def test_what_a_config_says(config: dict[str, Any], value: Any) -> None:
    read = READING.read({**EIGHT, **config})
    assert read is value or agree(read, value)


@pytest.mark.parametrize("value", [[1] * 8, GLM_5_2, [1, 0, 0, 1, 1, 1, 1, 0]])
def test_what_is_written_is_read_again(value: list[int]) -> None:
    """The list says it, and where they can, the numbers alone."""
    keys = READING.write({**EIGHT, "index_topk_freq": 5}, value)
    assert keys is not None
    assert READING.read({**EIGHT, **keys}) == value
    numbers = {key: number for key, number in keys.items() if key != "indexer_types"}
    assert not numbers or READING.read({**EIGHT, **numbers}) == value
    assert bool(numbers) == (value != [1, 0, 0, 1, 1, 1, 1, 0])


@pytest.mark.parametrize(
    ("setting", "args", "value"),
    [
        ("indexer_layers", {"dsa_indexer_topk_freq": 1}, [1] * 8),
        ("indexer_layers", {"dsa_indexer_topk_freq": 4, "dsa_indexer_skip_topk_offset": 3}, GLM_5_2),
        ("indexer_layers", {"dsa_indexer_topk_freq": 4, "dsa_indexer_skip_topk_offset": 0}, UNKNOWN),
        ("indexer_layers", {"experimental_attention_variant": None}, UNUSED),
        ("indexer_rotation", {"dsa_indexer_rope_interleaved": True}, "the first part, in pairs"),
        ("indexer_rotation", {"dsa_indexer_rotary_interleaved": False}, "the first part, in halves"),
        ("indexer_rotation", {}, "a part that no arg tells"),
        ("indexer_rotation", {"experimental_attention_variant": None}, UNUSED),
    ],
)
def test_what_training_says(setting: str, args: dict[str, Any], value: Any) -> None:
    given = {"experimental_attention_variant": "dsa", "num_layers": 8, **args}
    found = derive(given)[setting].value
    assert found is value or agree(found, value)
