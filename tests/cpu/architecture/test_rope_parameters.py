"""Claims of `pp_export.architecture.rope_parameters`: what latent attention multiplies its scores by is said
so that the class multiplies by it.
"""

from __future__ import annotations

from typing import Any

import pytest

from pp_export.architecture.readings import READINGS
from pp_export.core.settings import agree
from tests.fixtures.releases import transformers_5

pytestmark = transformers_5
SIZES: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "max_position_embeddings": 16384,
    "rope_theta": 10_000.0,
}


@pytest.mark.parametrize(
    ("angles", "scores"),
    [(1.0, 1.4142**2), (1.1, 1.2), (0.9, 1.05), (1.0, 1.0)],
    ids=["both scales", "larger angles", "smaller angles", "no scale of scores"],
)
def test_both_factors_are_taken_by_the_class(angles: float, scores: float) -> None:
    """transformers' own attention and angles of DeepSeek-V3 have the two factors that were written."""
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as modeling

    scaling = {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "attention_factor": angles,
    }
    keys = READINGS["rope_scaling"].write(SIZES, scaling)
    if scores != 1.0:
        keys = READINGS["latent_scale"].write({**SIZES, **(keys or {})}, scores)
    assert keys is not None
    config: Any = DeepseekV3Config.from_dict({**SIZES, **keys})
    attention: Any = modeling.DeepseekV3Attention(config, 0)
    rotary: Any = modeling.DeepseekV3RotaryEmbedding(config)
    assert agree(attention.scaling, scores * attention.qk_head_dim**-0.5)
    assert agree(rotary.attention_scaling, angles)


def test_scores_have_no_factor_where_positions_are_not_scaled() -> None:
    assert READINGS["latent_scale"].write(SIZES, 2.0) is None
