"""Claims of tensors that are stored in sections: those of Mamba and of gated delta nets, whose projections
and convolutions hold parts of several sizes. Each format gives the whole tensor.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pp_export.checkpoint import live
from pp_export.checkpoint.canonical_names import in_order, spelled
from pp_export.checkpoint.formats import describe_checkpoint
from pp_export.core.errors import CheckpointError
from pp_export.megatron.local_names import sections
from tests.fixtures.stored import read_all, write_plain, write_stored

MIXER = "decoder.layers.3.mixer."
NET = "decoder.layers.3.self_attention."
PROJECTED = {"z": (4, 3), "x": (4, 3), "B": (6, 3), "C": (6, 3), "dt": (2, 3)}
MAMBA = {
    "mamba_num_heads": 2,
    "mamba_head_dim": 4,
    "mamba_num_groups": 2,
    "mamba_state_dim": 3,
    "hidden_size": 7,
}
DELTA_NET = {
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 3,
    "linear_num_value_heads": 4,
    "linear_value_head_dim": 5,
}


@pytest.mark.parametrize(
    ("key", "name", "part"),
    [
        (f"{MIXER}in_proj.weight.dt", f"{MIXER}in_proj.weight", "dt"),
        (f"{MIXER}conv1d.bias.B", f"{MIXER}conv1d.bias", "B"),
        (f"{MIXER}conv1d_weight.x", f"{MIXER}conv1d_weight", "x"),
        (f"{NET}in_proj.weight.alpha", f"{NET}in_proj.weight", "alpha"),
        (f"{NET}in_proj.layer_norm_weight", f"{NET}in_proj.layer_norm_weight", None),
        ("decoder.layers.0.mlp.linear_fc1.weight_w", "decoder.layers.0.mlp.linear_fc1.weight", "w"),
    ],
)
def test_a_key_tells_the_tensor_and_the_part(key: str, name: str, part: str | None) -> None:
    assert spelled(key) == (name, part)


def test_parts_have_one_order_and_only_together() -> None:
    """The order is that of the rows in Megatron's modules, whatever order the keys come in."""
    assert in_order(["dt", "C", "x", "B", "z"]) == ("z", "x", "B", "C", "dt")
    assert in_order(["value", "query", "key"]) == ("query", "key", "value")
    assert in_order(["z", "x", "B", "C"]) is None
    assert in_order(["query", "key", "x"]) is None


@pytest.mark.parametrize("stacked", [False, True])
def test_sections_become_one_tensor(stacked: bool, tmp_path: Path) -> None:
    """One behind the other, for a layer of its own as for stacked ones."""
    parts = {
        part: torch.randn(2, *shape) if stacked else torch.randn(shape) for part, shape in PROJECTED.items()
    }
    stem = "decoder.layers.mixer." if stacked else MIXER
    stored = {f"{stem}in_proj.weight.{part}": value for part, value in parts.items()}
    found = read_all(describe_checkpoint(write_stored(tmp_path / "iter_0000010", stored, {}), None))
    whole = torch.cat(list(parts.values()), dim=int(stacked))
    expected = (
        {f"decoder.layers.{i}.mixer.in_proj.weight": whole[i] for i in range(2)}
        if stacked
        else {f"{MIXER}in_proj.weight": whole}
    )
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("broken", [None, torch.randn(2, 4), torch.randn(2, 3).double()])
def test_sections_that_don_t_belong_together_are_refused(broken: torch.Tensor | None, tmp_path: Path) -> None:
    """One that is missing, of other columns, or of another type."""
    parts: dict[str, Any] = {part: torch.randn(shape) for part, shape in PROJECTED.items()} | {"dt": broken}
    stored = {f"{MIXER}in_proj.weight.{part}": value for part, value in parts.items() if value is not None}
    with pytest.raises(CheckpointError, match="do not belong together") as caught:
        describe_checkpoint(write_stored(tmp_path / "iter_0000010", stored, {}), None)
    assert caught.value.where["tensor"] == f"{MIXER}in_proj.weight"


@pytest.mark.parametrize("name", [f"{MIXER}in_proj.weight", f"{NET}conv1d.weight", f"{MIXER}conv1d_bias"])
def test_a_tensor_that_is_stored_whole_is_refused(name: str, tmp_path: Path) -> None:
    """megatron-core stores its sections; in a whole one the rows may have any order, as ms-swift's do."""
    with pytest.raises(CheckpointError, match="is stored whole") as caught:
        describe_checkpoint(write_stored(tmp_path / "iter_0000010", {name: torch.randn(4, 3)}, {}), None)
    assert caught.value.where["tensor"] == name


@pytest.mark.parametrize("size", [1, 2, None])
def test_a_whole_tensor_of_one_rank_is_read(size: int | None, tmp_path: Path) -> None:
    """FSDP formats store parameters as modules have them: of one tensor parallel rank the order is known."""
    args = Namespace(num_layers=4, **({} if size is None else {"tensor_model_parallel_size": size}))
    whole = torch.randn(22, 3)
    state = {"model": {f"{MIXER}in_proj.weight": whole}, "args": args, "iteration": 10}
    folder = write_plain(tmp_path / "iter_0000010", state)
    if size == 1:
        assert torch.equal(read_all(describe_checkpoint(folder, None))[f"{MIXER}in_proj.weight"], whole)
    else:
        with pytest.raises(CheckpointError, match="is stored whole"):
            describe_checkpoint(folder, None)


def test_sections_come_from_the_args() -> None:
    """As many rows as megatron-core's modules give them; unknown where an arg is missing."""
    assert sections(f"{MIXER}in_proj.weight", MAMBA) == (8, 8, 6, 6, 2)
    assert sections(f"{MIXER}conv1d.bias", MAMBA) == (8, 6, 6)
    assert sections(f"{MIXER}conv1d.bias", MAMBA | {"mamba_num_heads": None, "hidden_size": 8}) == (16, 6, 6)
    assert sections(f"{NET}in_proj.weight", DELTA_NET) == (6, 6, 20, 20, 4, 4)
    assert sections(f"{NET}conv1d.weight", DELTA_NET) == (6, 6, 20)
    for name, args in ((f"{MIXER}in_proj.weight", MAMBA), (f"{NET}in_proj.weight", DELTA_NET)):
        for missing in args.keys() - {"hidden_size"}:
            assert sections(name, {**args, missing: None, "hidden_size": None}) is None


class Model(torch.nn.Module):
    """What a rank of a job holds: one tensor, which a `factory` cuts."""

    config = SimpleNamespace()

    def __init__(self, factory: Any) -> None:
        super().__init__()
        self._factory = factory

    def sharded_state_dict(self) -> dict[str, Any]:
        return {"w": self._factory}


def test_sections_of_a_live_model_become_one_tensor() -> None:
    """Of each section a rank has its own part; megatron-core's factory gives them under keys of their own."""
    mapping: Any = pytest.importorskip("megatron.core.dist_checkpointing.mapping")
    ssm: Any = pytest.importorskip("megatron.core.ssm.gated_delta_net")
    parts = {part: torch.randn(shape) for part, shape in PROJECTED.items()}
    whole = torch.cat(list(parts.values()))
    counts = [len(value) // 2 for value in parts.values()]
    ranks = []
    for rank in range(2):
        own = torch.cat([value.chunk(2)[rank] for value in parts.values()])
        sharded = mapping.ShardedTensor.from_rank_offsets(f"{MIXER}in_proj.weight", own, (0, rank, 2))
        factory = ssm._split_tensor_factory(sharded, counts, list(PROJECTED), 0)
        ranks.append(live.look_at([Model(factory)]))
    catalog = live.merge([rank.to_bytes() for rank in ranks])
    assert [(t.key, t.shape) for t in catalog.tensors] == [(f"{MIXER}in_proj.weight", tuple(whole.shape))]
    assert catalog.holders is not None
    found = torch.full_like(whole, torch.nan)
    for slice_ in catalog.slices[f"{MIXER}in_proj.weight"]:
        (rank,) = catalog.holders[catalog.stored_items[slice_.item].file]
        data = bytearray(slice_.num_bytes)
        with live.LiveReader(ranks[rank], catalog) as reader:
            reader.read(slice_, memoryview(data))
        begin = slice_.box.offset[0]
        values = torch.frombuffer(data, dtype=torch.float32).view(slice_.box.shape)
        found[begin : begin + slice_.box.shape[0]] = values
    assert torch.equal(found, whole)
