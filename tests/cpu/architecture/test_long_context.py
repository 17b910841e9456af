"""Claims of `pp_export.architecture.long_context`, and of what training says of the same: chunks, queries
that grow, and norms of layers that don't rotate.

Sources of the values: transformers' modeling files of Llama 4 and Ministral 3.
"""

from __future__ import annotations

from typing import Any

import pytest

from pp_export.architecture.comparison import Comparison
from pp_export.architecture.readings import READINGS
from pp_export.core.settings import UNKNOWN, UNUSED, Setting, agree
from pp_export.megatron.settings import derive

FOUR = {"num_hidden_layers": 4}
CHUNKED, FULL = "chunked_attention", "full_attention"
NOPE = {"no_rope_layers": [1, 1, 1, 0]}
TUNED = {"attn_temperature_tuning": True, "floor_scale": 64, "attn_scale": 0.1}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e6}
SCALED = {"rope_parameters": {**YARN, "llama_4_scaling_beta": 0.1}}


@pytest.mark.parametrize(
    ("reading", "config", "value"),
    [
        ("attention_chunks", {"attention_chunk_size": 8, **NOPE}, [8, 8, 8, None]),
        ("attention_chunks", {"attention_chunk_size": 8, "layer_types": [FULL, CHUNKED]}, [None, 8]),
        ("attention_chunks", {"attention_chunk_size": 8, "layer_types": [FULL] * 4}, None),
        ("attention_chunks", {"attention_chunk_size": None, **NOPE}, None),
        ("tuned_temperature", {**TUNED, **NOPE}, {"after": 63, "factor": 0.1}),
        ("tuned_temperature", {**TUNED, "no_rope_layers": [1] * 4}, None),
        ("tuned_temperature", {**TUNED, **NOPE, "attn_temperature_tuning": False}, None),
        ("tuned_temperature", {**TUNED, **NOPE, "attn_scale": 0.0}, None),
        ("scaled_queries", SCALED, {"after": 64, "factor": 0.1}),
        ("scaled_queries", {"rope_parameters": YARN}, None),
        ("windows_of_late_layers", {"sliding_window": 8, "max_window_layers": 2}, [None, None, 8, 8]),
        ("windows_of_late_layers", {"sliding_window": 8, "max_window_layers": 4}, None),
        ("windows_of_late_layers", {"sliding_window": None, "max_window_layers": 2}, None),
        ("rope_layers", {"no_rope_layers": [], "no_rope_layer_interval": 4}, [1, 1, 1, 0]),
    ],
)
def test_what_a_config_says(reading: str, config: dict[str, Any], value: Any) -> None:
    assert agree(READINGS[reading].read({**FOUR, **config}), value)


@pytest.mark.parametrize(
    ("reading", "value"),
    [
        ("attention_chunks", [None, 8, 8, None]),
        ("attention_chunks", None),
        ("tuned_temperature", {"after": 31, "factor": 0.2}),
        ("tuned_temperature", None),
        ("scaled_queries", {"after": 64, "factor": 0.2}),
        ("scaled_queries", None),
    ],
)
def test_what_is_written_is_read_again(reading: str, value: Any) -> None:
    before = {**FOUR, **NOPE, **TUNED, **SCALED, "attention_chunk_size": 4, "rope_theta": 5.0}
    keys = READINGS[reading].write(before, value)
    assert keys is not None
    assert agree(READINGS[reading].read({**before, **keys}), value)


@pytest.mark.parametrize(
    ("reading", "value"),
    [("attention_chunks", [4, 8, None, None]), ("scaled_queries", {"after": 32, "factor": 0.1})],
)
def test_what_no_keys_can_say(reading: str, value: Any) -> None:
    """One size of chunks, and one length for YaRN and queries."""
    assert READINGS[reading].write({**FOUR, **SCALED}, value) is None


@pytest.mark.parametrize(
    ("reading", "name", "config"),
    [
        ("attention_chunks", "attention_chunks", {"attention_chunk_size": 64, **NOPE}),
        ("scaled_queries", "query_growth", SCALED),
    ],
)
@pytest.mark.parametrize(("sequence", "agrees"), [(64, True), (65, False), (UNKNOWN, False)])
def test_what_begins_behind_every_sequence_changes_nothing(
    reading: str, name: str, config: dict[str, Any], sequence: Any, agrees: bool
) -> None:
    """Chunks and growing queries agree with none, and are told, where no sequence was long enough to see
    them.
    """
    effect = {**FOUR, **config}
    compared = Comparison(name, READINGS[reading], Setting(None, {}), effect, effect, sequence)
    assert compared.agrees == agrees
    assert bool(compared.notes()) == agrees


@pytest.mark.parametrize(
    ("setting", "args", "value"),
    [
        ("attention_chunks", {}, None),
        ("attention_chunks", {"attention_chunk_size": 8}, [8, 8, 8, 8]),
        ("query_growth", {}, None),
        ("query_growth", {"transformer_layer_spec": "models.ministral_layer_spec"}, UNKNOWN),
        ("query_growth", {"llama_4_scaling_beta": 0.1}, UNKNOWN),
        (
            "query_growth",
            {"llama_4_scaling_beta": 0.1, "llama_4_original_max_position_embeddings": 64},
            {"after": 64, "factor": 0.1},
        ),
        ("l2_norm_without_rope", {"no_rope_freq": 4}, UNUSED),
        ("l2_norm_without_rope", {"qk_l2_norm": True}, False),
        ("l2_norm_without_rope", {"qk_l2_norm": True, "no_rope_freq": 4}, True),
        ("l2_norm_without_rope", {"qk_l2_norm": True, "no_rope_freq": 4, "hf_model_type": "llama4"}, False),
        ("l2_norm_without_rope", {"qk_l2_norm": True, "nope_layer_interval": 4}, False),
        ("rope_layers", {"no_rope_freq": None, "nope_layer_interval": 2}, [1, 0, 1, 0]),
    ],
)
def test_what_training_says(setting: str, args: dict[str, Any], value: Any) -> None:
    found = derive({"hidden_size": 64, "num_layers": 4, **args})[setting].value
    assert found is value or agree(found, value)
