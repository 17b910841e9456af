"""Claims of `pp_export.checkpoint.hf_shards`: names and places of what ranks have saved are torch's."""

from __future__ import annotations

import itertools
import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.distributed.tensor._utils import _compute_local_shape_and_global_offset
from torch.distributed.tensor.placement_types import Replicate, Shard, _StridedShard

import pp_export
from pp_export.checkpoint.hf_shards.placements import Placement, local_box
from pp_export.checkpoint.hf_shards.saved_names import kind_of_other, saved_names
from pp_export.checkpoint.hf_shards.source import RankSavedSource
from pp_export.checkpoint.hf_shards.steps_of_runs import step_of
from pp_export.core.errors import CheckpointError, ExportError
from pp_export.core.tensors import Box, check_coverage
from tests.cpu.conftest import RankSaves
from tests.fixtures.releases import torch_2_13
from tests.fixtures.write_rank_shards import tensors_of

pytestmark = torch_2_13

WEIGHTS = ("model.layers.0.self_attn.q_proj.weight", "model.norm.weight", "lm_head.weight")


@pytest.mark.parametrize(
    ("prefix", "taken_off"),
    [
        *((prefix, prefix) for prefix in ("", "model.", "app.model.", "app.", "module.", "state_dict.")),
        ("_orig_mod.", ""),
        ("model._orig_mod.", "model."),
    ],
)
def test_what_frameworks_put_before_names_is_taken_off(prefix: str, taken_off: str) -> None:
    """Each name is that of Hugging Face, and what all of them had before is told."""
    known = saved_names(prefix + name for name in WEIGHTS)
    assert known.name_of == {prefix + name: name for name in WEIGHTS}
    assert known.prefix == taken_off


@pytest.mark.parametrize(
    "names",
    [
        ("model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight"),  # a tied head is not saved
        ("transformer.h.0.attn.c_attn.weight", "transformer.wte.weight"),
        ("model.language_model.layers.0.a", "model.visual.blocks.0.a"),
        ("0.weight", "1.weight"),
    ],
)
def test_names_that_begin_alike_stay(names: tuple[str, ...]) -> None:
    """Many models have one name before all others; nothing is taken off that may be it."""
    assert saved_names(names).name_of == {name: name for name in names}


def test_one_name_of_two_keys_is_refused() -> None:
    """A wrapper's name that is taken off must not make two tensors one."""
    with pytest.raises(CheckpointError, match="several stored keys"):
        saved_names(["a._orig_mod.weight", "a.weight"])


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("decoder.layers.0.mlp.linear_fc1.weight", "Megatron's names"),
        ("tok_embeddings.weight", "torchtitan's own"),
        ("layers.0.attention.wq.weight", "torchtitan's own"),
    ],
)
def test_names_of_others_are_told(name: str, what: str) -> None:
    """Megatron's and torchtitan's own are no Hugging Face names."""
    with pytest.raises(CheckpointError, match=what):
        saved_names([name])


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("optimizer.state.model.norm.weight.exp_avg", "optimizer"),
        ("app.optim.state.model.norm.weight.step", "optimizer"),
        ("optimizers.0.param_groups", "optimizer"),
        ("lr_scheduler.last_epoch", "lr_scheduler"),
        ("train_state.step", "train_state"),
        ("dataloader.rank_0", "dataloader"),
        ("step", "step"),
        ("model.norm._extra_state", "_extra_state"),
        ("model.norm.weight", None),
        ("model.steps.0.weight", None),
        ("model.optimizer_head.weight", None),
    ],
)
def test_what_is_no_weight(key: str, kind: str | None) -> None:
    """States of a training job are told from weights by what their keys begin with."""
    assert kind_of_other(key, True) == kind


@pytest.mark.parametrize(
    ("path", "step"),
    [
        ("/runs/global_step_100/actor", 100),
        ("/runs/epoch_0_step_10/model", 10),
        ("/runs/checkpoint/step-1000", 1000),
        ("/runs/mine", None),
    ],
)
def test_the_step_is_in_the_names_of_folders(path: str, step: int | None) -> None:
    """As verl, Automodel and torchtitan call them."""
    assert step_of(Path(path)) == step


# --- places

MESHES: list[tuple[tuple[int, ...], list[Any]]] = [
    ((4,), [Shard(0)]),
    ((3,), [Shard(1)]),
    ((5,), [Replicate()]),
    ((2, 3), [Replicate(), Shard(0)]),
    ((2, 3), [Shard(0), Shard(0)]),
    ((2, 2), [Shard(1), Shard(0)]),
    ((2, 3), [_StridedShard(0, split_factor=3), Shard(0)]),
    ((2, 2, 2), [Replicate(), _StridedShard(0, split_factor=2), Shard(0)]),
]


def ours(placement: Any) -> Placement:
    """A placement of torch's as we have it."""
    if isinstance(placement, Replicate):
        return Placement(None)
    return Placement(placement.dim, getattr(placement, "split_factor", 1))


@pytest.mark.parametrize(("mesh", "placements"), MESHES, ids=[f"{m}-{p}" for m, p in MESHES])
@pytest.mark.parametrize("shape", [(24, 12), (7, 5), (2, 9), (1, 1), (13, 6, 2)])
def test_boxes_are_those_of_torch(
    mesh: tuple[int, ...], placements: list[Any], shape: tuple[int, ...]
) -> None:
    """For every rank of every mesh, even or not, the box is the one that torch computes; together, copies
    once, they fill the tensor.
    """
    boxes = set()
    for at in itertools.product(*map(range, mesh)):
        box = local_box(shape, mesh, at, [ours(each) for each in placements])
        sizes, offset = _compute_local_shape_and_global_offset(
            torch.Size(shape), mesh, at.__getitem__, placements
        )
        assert box.shape == tuple(sizes)
        if box.volume:
            assert box.offset == tuple(offset)
            boxes.add(box)
    check_coverage("weight", shape, sorted(boxes))


def test_the_order_of_cuts_may_be_said() -> None:
    """Newer releases say in which order mesh dims cut a dim of the tensor."""
    placements = [Placement(0), Placement(0)]
    assert local_box((8,), (2, 4), (1, 0), placements, {0: (1, 0)}) == Box((1,), (1,))
    assert local_box((8,), (2, 4), (1, 0), placements) == Box((4,), (1,))


def test_cuts_that_are_not_known_are_refused() -> None:
    """A split factor that the mesh doesn't explain is no box."""
    with pytest.raises(CheckpointError, match="an unknown way"):
        local_box((8,), (2, 4), (0, 0), [Placement(0, 3), Placement(0)])
    assert math.prod(local_box((8,), (2, 4), (0, 0), [Placement(0, 4), Placement(0)]).shape) == 1


# --- files of others


@pytest.mark.parametrize("kind", ["hf_odd", "verl", "verl_fsdp1", "dcp_plain"])
def test_damaged_files_end_in_one_error(rank_saves: RankSaves, kind: str, tmp_path: Path) -> None:
    """Bytes that changed in headers and pickles are refused or meant as they stand; nothing else happens."""
    folder = Path(shutil.copytree(rank_saves.save("qwen2", kind), tmp_path / "save"))
    ours = {"hf_odd": "shard-*", "verl": "model_world*", "verl_fsdp1": "model_world*", "dcp_plain": ".meta*"}
    path = sorted(folder.glob(ours[kind]))[0]
    whole = path.read_bytes()
    begin = whole.find(b"data.pkl") + 20 if kind.startswith("verl") else 0
    source = RankSavedSource(folder, check_source=True, num_ranks=4 if kind == "hf_odd" else None)
    refused = 0
    for seed in range(120):
        numbers = random.Random(seed)
        data = bytearray(whole)
        for _ in range(numbers.randint(1, 3)):
            data[begin + numbers.randrange(min(3000, len(data) - begin))] = numbers.randrange(256)
        path.write_bytes(data)
        try:
            source.describe([])
        except ExportError:
            refused += 1
    assert refused > 20
    path.write_bytes(whole)
    source.describe([])


def test_tensors_without_elements_are_kept(tmp_path: Path) -> None:
    """They have no bytes anywhere, and are in the result."""
    info = {name: {"saved_offsets": [0, 0]} for name in ("layers.0.empty", "layers.0.full")}
    tensors = {"layers.0.empty": torch.zeros(0, 4), "layers.0.full": torch.ones(2, 3)}
    for number, names in enumerate((["layers.0.empty"], ["layers.0.empty", "layers.0.full"]), start=1):
        (tmp_path / f"in-{number}").mkdir()
        save_file(
            {name: tensors[name] for name in names},
            tmp_path / f"in-{number}" / "shard-00001-model-00001-of-00001.safetensors",
            metadata={"DCP_SHARDING_INFO": json.dumps({name: info[name] for name in names})},
        )
    pp_export.consolidate(tmp_path / "in-2", output=tmp_path / "out", input_ranks=1)
    made = tensors_of(tmp_path / "out")
    assert {name: value.shape for name, value in made.items()} == {n: t.shape for n, t in tensors.items()}
    assert torch.equal(made["layers.0.full"], tensors["layers.0.full"])
