"""Claims of `pp_export.megatron.local_names`: every parameter that megatron-core makes has a rule and a
global name.
"""

from __future__ import annotations

import pytest
import torch

from pp_export.core.errors import CheckpointError
from pp_export.core.views import View
from pp_export.megatron.local_names import Split, latent_rows, single_experts, split_of, with_global_layer

ROWS, COLUMNS, COPIES, FC1, LATENT = Split.ROWS, Split.COLUMNS, Split.COPIES, Split.FC1, Split.LATENT
SECTIONS = Split.SECTIONS
SPLITS = {
    "embedding.word_embeddings.weight": ROWS,
    "embedding.position_embeddings.weight": COPIES,
    "output_layer.weight": ROWS,
    "output_layer.bias": ROWS,
    "decoder.final_layernorm.weight": COPIES,
    "decoder.final_layernorm.bias": COPIES,
    "decoder.layers.3.input_layernorm.weight": COPIES,
    "decoder.layers.3.self_attention.linear_qkv.layer_norm_weight": COPIES,
    "decoder.layers.3.self_attention.linear_qkv.layer_norm_bias": COPIES,
    "decoder.layers.3.self_attention.linear_qkv.weight": ROWS,
    "decoder.layers.3.self_attention.linear_qkv.bias": ROWS,
    "decoder.layers.3.self_attention.q_layernorm.weight": Split.NORM,
    "decoder.layers.3.self_attention.kv_layernorm.weight": COPIES,
    "decoder.layers.3.self_attention.core_attention.softmax_offset": ROWS,
    "decoder.layers.3.self_attention.linear_proj.weight": COLUMNS,
    "decoder.layers.3.self_attention.linear_proj.bias": COPIES,
    "decoder.layers.3.self_attention.linear_q_proj.weight": ROWS,
    "decoder.layers.3.self_attention.linear_q_down_proj.weight": LATENT,
    "decoder.layers.3.self_attention.linear_kv_down_proj.weight": LATENT,
    "decoder.layers.3.self_attention.linear_q_up_proj.weight": ROWS,
    "decoder.layers.3.self_attention.linear_kv_up_proj.weight": ROWS,
    "decoder.layers.3.self_attention.linear_kv_up_proj.layer_norm_weight": COPIES,
    "decoder.layers.3.pre_mlp_layernorm.weight": COPIES,
    "decoder.layers.3.mlp.linear_fc1.weight": FC1,
    "decoder.layers.3.mlp.linear_fc1.bias": FC1,
    "decoder.layers.3.mlp.linear_fc1.layer_norm_weight": COPIES,
    "decoder.layers.3.mlp.linear_fc2.weight": COLUMNS,
    "decoder.layers.3.mlp.linear_fc2.bias": COPIES,
    "decoder.layers.3.mlp.router.weight": COPIES,
    "decoder.layers.3.mlp.router.expert_bias": COPIES,
    "decoder.layers.3.mlp.experts.7.linear_fc1.weight": FC1,
    "decoder.layers.3.mlp.experts.7.linear_fc2.weight": COLUMNS,
    "decoder.layers.3.mlp.shared_experts.linear_fc1.weight": FC1,
    "decoder.layers.3.mlp.shared_experts.linear_fc2.weight": COLUMNS,
    "decoder.layers.3.mlp.shared_experts.gate_weight": COPIES,
    "decoder.layers.3.mlp.fc1_latent_proj.weight": COPIES,
    "decoder.layers.3.norm.weight": COPIES,
    "decoder.layers.3.mixer.in_proj.layer_norm_weight": COPIES,
    "decoder.layers.3.mixer.in_proj.weight": SECTIONS,
    "decoder.layers.3.mixer.conv1d.bias": SECTIONS,
    "decoder.layers.3.mixer.conv1d_weight": SECTIONS,
    "decoder.layers.3.mixer.A_log": ROWS,
    "decoder.layers.3.mixer.D": ROWS,
    "decoder.layers.3.mixer.norm.weight": ROWS,
    "decoder.layers.3.mixer.out_proj.weight": COLUMNS,
    "decoder.layers.3.self_attention.in_proj.weight": SECTIONS,
    "decoder.layers.3.self_attention.conv1d.weight": SECTIONS,
    "decoder.layers.3.self_attention.dt_bias": ROWS,
    "decoder.layers.3.self_attention.out_norm.weight": COPIES,
    "decoder.layers.3.self_attention.out_proj.weight": COLUMNS,
    "decoder.layers.3.self_attention.core_attention.indexer.linear_wq_b.weight": COPIES,
    "decoder.layers.3.self_attention.core_attention.indexer.k_norm.bias": COPIES,
    "mtp.layers.0.mtp_model_layer.layers.1.mlp.linear_fc1.weight": FC1,
    "mtp.layers.0.mtp_model_layer.layers.1.mixer.in_proj.weight": Split.SECTIONS,
    "mtp.layers.0.enorm.weight": COPIES,
    "mtp.layers.0.hnorm.weight": COPIES,
    "mtp.layers.0.eh_proj.weight": ROWS,
    "mtp.layers.0.final_layernorm.weight": COPIES,
    "mtp.layers.0.transformer_layer.self_attention.linear_proj.weight": COLUMNS,
    "mtp.layers.0.transformer_layer.mlp.experts.1.linear_fc1.weight": FC1,
}
UNKNOWN = [
    "decoder.layers.3.mixer.in_proj.bias",
    "decoder.layers.3.self_attention.norm.weight",
    "decoder.layers.3.self_attention.linear_qkv.adapter.linear_in.weight",
    "decoder.layers.3.self_attention.linear_qkv.weight_scale",
    "decoder.layers.3.mlp.experts.local_experts.0.linear_fc1.weight",
    "decoder.layers.3.mlp.experts.weight1",
    "decoder.layers.3.eh_proj.weight",
    "encoder.layers.0.self_attention.linear_qkv.weight",
    "vision_model.decoder.layers.0.mlp.linear_fc1.weight",
]
MEMORY = torch.arange(24)


def view(tensor: torch.Tensor) -> View:
    return View(int(tensor.storage_offset()), tuple(tensor.shape), tuple(tensor.stride()))


def values(of: View) -> torch.Tensor:
    return MEMORY.as_strided(of.shape, of.strides, of.offset)


@pytest.mark.parametrize("name", SPLITS)
def test_parameters_are_cut_as_megatron_cuts_them(name: str) -> None:
    """The table of docs and facts, one parameter each."""
    assert split_of(name) is SPLITS[name]


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_name_has_no_rule(name: str) -> None:
    """Other modules, adapters and spellings that were not resolved are never taken for something known."""
    assert split_of(name) is None


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ("decoder.layers.1.mlp.linear_fc1.weight", "decoder.layers.9.mlp.linear_fc1.weight"),
        ("decoder.final_layernorm.weight", "decoder.final_layernorm.weight"),
        (
            "mtp.layers.1.mtp_model_layer.mlp.router.weight",
            "mtp.layers.1.transformer_layer.mlp.router.weight",
        ),
        (
            "mtp.layers.1.transformer_layer.mlp.router.weight",
            "mtp.layers.1.transformer_layer.mlp.router.weight",
        ),
        ("mtp.layers.0.eh_proj.weight", "mtp.layers.0.eh_proj.weight"),
    ],
)
def test_layers_get_their_numbers_in_the_model(stored: str, expected: str) -> None:
    """A decoder layer counts on from the first of its stage; layers of multi-token prediction keep theirs."""
    assert with_global_layer(stored, range(8, 10)) == expected


@pytest.mark.parametrize(
    ("rest", "tensor", "expected"),
    [
        ("local_experts.1.linear_fc2.weight", MEMORY, {"5.linear_fc2.weight": MEMORY}),
        ("linear_fc1.weight0", MEMORY, {"4.linear_fc1.weight": MEMORY}),
        ("linear_fc2.bias1", MEMORY, {"5.linear_fc2.bias": MEMORY}),
        (
            "linear_fc1.weight",
            MEMORY.view(2, 3, 4),
            {f"{4 + e}.linear_fc1.weight": MEMORY.view(2, 3, 4)[e] for e in range(2)},
        ),
        (
            "weight1",
            MEMORY.view(3, 8),
            {f"{4 + e}.linear_fc1.weight": MEMORY.view(2, 3, 4)[e].t() for e in range(2)},
        ),
        (
            "weight2",
            MEMORY.view(6, 4),
            {f"{4 + e}.linear_fc2.weight": MEMORY.view(2, 3, 4)[e].t() for e in range(2)},
        ),
    ],
)
def test_experts_are_seen_singly(rest: str, tensor: torch.Tensor, expected: dict[str, torch.Tensor]) -> None:
    """Each way in which modules hold experts gives the same single experts, by strides alone."""
    stem = "decoder.layers.0.mlp.experts"
    found = dict(single_experts(f"{stem}.{rest}", view(tensor), range(4, 6)))
    assert set(found) == {f"{stem}.{name}" for name in expected}
    for name, part in expected.items():
        assert torch.equal(values(found[f"{stem}.{name}"]), part)


def test_a_grouped_weight_that_is_no_solid_block_is_refused() -> None:
    """GroupedMLP's weight is another reading of its memory, which a transposed tensor doesn't have."""
    with pytest.raises(CheckpointError, match="can't be viewed"):
        dict(single_experts("decoder.layers.0.mlp.experts.weight1", view(MEMORY.view(8, 3).t()), range(2)))


@pytest.mark.parametrize(
    ("name", "rows"), [("self_attention.linear_q_down_proj.weight", 12), ("linear_kv_down_proj.weight", 8)]
)
def test_latent_rows_come_from_the_args(name: str, rows: int) -> None:
    """The latent of keys and values has the rows of the position beside it."""
    assert latent_rows(name, {"q_lora_rank": 12, "kv_lora_rank": 6, "qk_pos_emb_head_dim": 2}) == rows
    assert latent_rows(name, {}) is None
