"""Claims of `pp_export.checkpoint.legacy.names` and of the views of `archive`: every parameter that
megatron-core makes has a rule and a global name, and views move as torch's do.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pp_export.checkpoint.legacy.names import Split, latent_rows, single_experts, split_of, with_global_layer
from pp_export.core import dtypes
from pp_export.core.errors import CheckpointError
from pp_export.torch_file import archive
from pp_export.torch_file.archive import View

ROWS, COLUMNS, COPIES, FC1, LATENT = Split.ROWS, Split.COLUMNS, Split.COPIES, Split.FC1, Split.LATENT
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
    "decoder.layers.3.self_attention.q_layernorm.weight": COPIES,
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
    "mtp.layers.0.enorm.weight": COPIES,
    "mtp.layers.0.hnorm.weight": COPIES,
    "mtp.layers.0.eh_proj.weight": ROWS,
    "mtp.layers.0.final_layernorm.weight": COPIES,
    "mtp.layers.0.transformer_layer.self_attention.linear_proj.weight": COLUMNS,
    "mtp.layers.0.transformer_layer.mlp.experts.1.linear_fc1.weight": FC1,
}
UNKNOWN = [
    "decoder.layers.3.mixer.in_proj.weight",
    "decoder.layers.3.mixer.norm.weight",
    "decoder.layers.3.self_attention.in_proj.weight",
    "decoder.layers.3.self_attention.linear_qkv.adapter.linear_in.weight",
    "decoder.layers.3.self_attention.linear_qkv.weight_scale",
    "decoder.layers.3.mlp.experts.local_experts.0.linear_fc1.weight",
    "decoder.layers.3.mlp.experts.weight1",
    "decoder.layers.3.eh_proj.weight",
    "mtp.layers.0.mtp_model_layer.layers.0.mlp.linear_fc1.weight",
    "encoder.layers.0.self_attention.linear_qkv.weight",
    "vision_model.decoder.layers.0.mlp.linear_fc1.weight",
]
MEMORY = torch.arange(24)


def view(tensor: torch.Tensor) -> View:
    """What a file would say of `tensor`."""
    strides = tuple(tensor.stride())
    return View(
        "0", dtypes.from_torch(str(tensor.dtype)), int(tensor.storage_offset()), tuple(tensor.shape), strides
    )


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
    with pytest.raises(CheckpointError, match="can't be seen"):
        dict(single_experts("decoder.layers.0.mlp.experts.weight1", view(MEMORY.view(8, 3).t()), range(2)))


@pytest.mark.parametrize(
    ("name", "rows"), [("self_attention.linear_q_down_proj.weight", 12), ("linear_kv_down_proj.weight", 8)]
)
def test_latent_rows_come_from_the_args(name: str, rows: int) -> None:
    """The latent of keys and values has the rows of the position beside it."""
    assert latent_rows(name, {"q_lora_rank": 12, "kv_lora_rank": 6, "qk_pos_emb_head_dim": 2}) == rows
    assert latent_rows(name, {}) is None


@pytest.mark.parametrize(
    "tensor",
    [MEMORY.view(2, 3, 4), MEMORY.view(4, 6)[1:, 2:], MEMORY.view(2, 12).t(), MEMORY.view(1, 24)[:, ::2]],
)
def test_views_move_as_in_torch(tensor: torch.Tensor) -> None:
    """Cutting, choosing and swapping give the values that torch gives, and know whether they lie together."""
    of = view(tensor)
    for moved, expected in [
        (of, tensor),
        (of.narrow(1, 1, 1), tensor.narrow(1, 1, 1)),
        (of.narrow(0, 0, 1), tensor.narrow(0, 0, 1)),
        (of.select(0), tensor[0]),
        (of.swapped(), tensor.transpose(-1, -2)),
    ]:
        assert torch.equal(values(moved), expected)
        assert moved.is_contiguous == expected.is_contiguous()


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.uint16, torch.float8_e4m3fn, torch.bool]
)
def test_every_kind_of_tensor_is_found_in_a_file(dtype: torch.dtype, tmp_path: Path) -> None:
    """Typed storages, storages of bytes, parameters, views of them: offset and bytes are those of torch."""
    raw = torch.arange(96, dtype=torch.uint8).remainder(2).view(torch.bool) if dtype is torch.bool else None
    flat = torch.arange(96, dtype=torch.uint8).view(dtype) if raw is None else raw
    part = flat[8:].view(-1, 4)
    saved = {"plain": flat, "view": part[1:], "cut": part[:, 1:3]}
    torch.save(saved | {"parameter": torch.nn.Parameter(part, requires_grad=False)}, tmp_path / "file.pt")
    stored = archive.read(tmp_path / "file.pt")
    data = (tmp_path / "file.pt").read_bytes()
    for key, expected in (saved | {"parameter": part}).items():
        found = stored.view(stored.value[key])
        assert found is not None
        assert (found.shape, found.strides) == (tuple(expected.shape), tuple(expected.stride()))
        begin = stored.begins([found.storage])[found.storage]
        bytes_there = torch.frombuffer(bytearray(data[begin : begin + 96]), dtype=dtype)
        again = bytes_there.as_strided(found.shape, found.strides, found.offset)
        assert torch.equal(again.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8)), key
    assert stored.view({"no": "tensor"}) is None


def test_a_tensor_beyond_its_storage_is_refused(tmp_path: Path) -> None:
    """A description that does not fit the storages is refused before any byte is taken."""
    torch.save({"weight": torch.zeros(4, 4)}, tmp_path / "file.pt")
    stored = archive.read(tmp_path / "file.pt")
    shorter = {"0": archive.Member(stored.storages["0"].header, 60, 0)}
    with pytest.raises(CheckpointError, match="beyond its storage"):
        archive.Archive(stored.path, stored.value, shorter).view(stored.value["weight"])


@pytest.mark.parametrize("offset", [0, 32])
def test_a_damaged_local_header_is_refused(offset: int, tmp_path: Path) -> None:
    """A member must begin where the directory says, under the name that the directory says."""
    torch.save({"weight": torch.zeros(4, 4)}, tmp_path / "file.pt")
    stored = archive.read(tmp_path / "file.pt")
    data = bytearray((tmp_path / "file.pt").read_bytes())
    at = stored.storages["0"].header + (offset and 30 + len("file/data/0") - 1)
    data[at] ^= 1
    (tmp_path / "file.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        stored.begins(["0"])
