"""Claims of `pp_export.checkpoint.canonical_names`: stored keys become names with global layer and expert
numbers.
"""

from __future__ import annotations

import pytest

from pp_export.checkpoint.canonical_names import canonical
from pp_export.core.tensors import Box


@pytest.mark.parametrize(
    ("key", "template", "num_stacked"),
    [
        ("embedding.word_embeddings.weight", "embedding.word_embeddings.weight", 0),
        ("decoder.final_layernorm.weight", "decoder.final_layernorm.weight", 0),
        (
            "decoder.layers.self_attention.linear_qkv.weight",
            "decoder.layers.{}.self_attention.linear_qkv.weight",
            1,
        ),
        (
            "decoder.layers.3.self_attention.linear_qkv.weight",
            "decoder.layers.3.self_attention.linear_qkv.weight",
            0,
        ),
        (
            "decoder.layers.mlp.experts.experts.linear_fc1.weight",
            "decoder.layers.{}.mlp.experts.{}.linear_fc1.weight",
            2,
        ),
        (
            "decoder.layers.12.mlp.experts.experts.linear_fc1.weight",
            "decoder.layers.12.mlp.experts.{}.linear_fc1.weight",
            1,
        ),
        (
            "decoder.layers.12.mlp.experts.experts.7.linear_fc2.weight",
            "decoder.layers.12.mlp.experts.7.linear_fc2.weight",
            0,
        ),
        (
            "mtp.layers.0.transformer_layer.mlp.linear_fc1.weight",
            "mtp.layers.0.transformer_layer.mlp.linear_fc1.weight",
            0,
        ),
        ("vision_model.decoder.layers.mlp.w", "vision_model.decoder.layers.{}.mlp.w", 1),
        ("decoder.layers_norm.weight", "decoder.layers_norm.weight", 0),
    ],
)
def test_keys_become_templates(key: str, template: str, num_stacked: int) -> None:
    """Every stacking of megatron-core's keys is recognised: layers, experts, both, and numbers that are
    there.
    """
    assert (canonical(key).template, canonical(key).num_stacked) == (template, num_stacked)


def test_a_stacked_box_expands_in_the_order_of_its_bytes() -> None:
    """A box over layers and experts gives each tensor's inner box, the last stacking axis varying fastest."""
    key = canonical("decoder.layers.mlp.experts.experts.linear_fc2.weight")
    inner = Box((0, 6), (5, 2))
    assert key.expand(Box((3, 1, 0, 6), (2, 2, 5, 2))) == [
        ("decoder.layers.3.mlp.experts.1.linear_fc2.weight", inner),
        ("decoder.layers.3.mlp.experts.2.linear_fc2.weight", inner),
        ("decoder.layers.4.mlp.experts.1.linear_fc2.weight", inner),
        ("decoder.layers.4.mlp.experts.2.linear_fc2.weight", inner),
    ]


def test_a_plain_key_keeps_name_and_box() -> None:
    """A key without stacking keeps its name and its box, also that of a scalar."""
    box = Box((2, 0), (3, 4))
    assert canonical("output_layer.weight").expand(box) == [("output_layer.weight", box)]
    assert canonical("scale").expand(Box((), ())) == [("scale", Box((), ()))]


def test_names_are_all_numbers_of_the_stacking_axes() -> None:
    """`names` lists each layer and expert of the stored shape once."""
    key = canonical("decoder.layers.mlp.experts.experts.w")
    assert key.names((2, 3, 7, 7)) == [
        f"decoder.layers.{layer}.mlp.experts.{expert}.w" for layer in range(2) for expert in range(3)
    ]
    assert canonical("plain").names((4, 4)) == ["plain"]
