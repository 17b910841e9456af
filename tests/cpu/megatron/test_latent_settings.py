"""Claims of `pp_export.megatron.latent_settings`: norms of latents in training and in the class."""

from __future__ import annotations

from typing import Any

import pytest

from pp_export.architecture import meaning, table_files
from pp_export.core.settings import UNUSED
from pp_export.megatron.settings import derive
from tests.fixtures.families import FAMILIES

CLASSES = ("deepseek_v2", "deepseek_v3", "glm4_moe_lite")


@pytest.mark.parametrize(
    ("args", "value"),
    [
        ({"multi_latent_attention": True, "norm_epsilon": 1e-5}, 1e-5),
        ({"multi_latent_attention": True, "norm_epsilon": 1e-6}, UNUSED),
        ({"multi_latent_attention": False, "norm_epsilon": 1e-5}, UNUSED),
    ],
)
def test_an_epsilon_that_classes_of_latents_ignore_counts(args: dict[str, Any], value: Any) -> None:
    """Only where latents are normed by another epsilon than transformers' classes have."""
    assert derive(args)["latent_norm_epsilon"].value == value


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("epsilon", [1e-5, 1e-6])
def test_another_epsilon_is_told(name: str, epsilon: float) -> None:
    """Moonlight was trained with 1e-5 in all norms; its class loads, and norms latents otherwise."""
    family = FAMILIES[name]
    table = table_files.for_class(family.hf_class)
    config = family.whole_config() | {"rms_norm_eps": epsilon}
    settled = meaning.settle(table, derive(family.whole_args() | {"norm_epsilon": epsilon}), config, None)
    told = [note for note in settled.notes if note.startswith("latent_norm_epsilon is 1e-05")]
    assert len(told) == (epsilon == 1e-5)
