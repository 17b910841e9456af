"""Claims: of a Mamba's, or a gated delta net's, projection each tensor parallel rank has its part of every
section, and a checkpoint with one file per rank gives the whole model.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from pp_export.checkpoint.formats import describe_checkpoint
from pp_export.core.errors import CheckpointError
from tests.fixtures import family_proofs
from tests.fixtures.families import FAMILIES
from tests.fixtures.family_parts import Family
from tests.fixtures.stored import on_disk

COLUMNS = ("linear_proj.weight", "linear_fc2.weight", "out_proj.weight")
COPIES = ("norm_weight", "layernorm.weight", "final_norm.weight", "out_norm.weight")


def part_of_rank(key: str, value: torch.Tensor, rank: int, is_gated: bool) -> torch.Tensor:
    """What tensor parallel rank `rank` of two has of a tensor, or of a section of one."""
    if key.endswith(COPIES):
        return value
    if is_gated and key.endswith("linear_fc1.weight"):
        return torch.cat([half.chunk(2)[rank] for half in value.chunk(2)])
    return value.chunk(2, dim=int(key.endswith(COLUMNS)))[rank]


def write_legacy(family: Family, folder: Path, said: dict[str, Any]) -> Path:
    """The checkpoint of a run with two tensor parallel ranks, of the model in `folder`, whose args also say
    what was `said`.
    """
    args = family.whole_args() | {"tensor_model_parallel_size": 2, "ckpt_format": "torch"}
    family_proofs.random_model(family).save_pretrained(folder / "model")
    stored = family.stored(on_disk(folder / "model"), family.whole_config())
    checkpoint = folder / "checkpoint"
    for rank in range(2):
        own = {key: part_of_rank(key, value, rank, args["swiglu"]) for key, value in stored.items()}
        model = {name: value.contiguous() for name, value in family_proofs.fused(own).items()}
        path = checkpoint / "iter_0000010" / f"mp_rank_{rank:02d}" / "model_optim_rng.pt"
        path.parent.mkdir(parents=True)
        state = {"args": Namespace(**args | said), "model": model, "checkpoint_version": 3.0, "iteration": 10}
        torch.save(state, path)
    (checkpoint / "latest_checkpointed_iteration.txt").write_text("10")
    return checkpoint


@pytest.mark.parametrize("name", ["nemotron_h", "qwen3_5"])
def test_tensor_parallel_ranks_have_a_part_of_each_section(name: str, tmp_path: Path) -> None:
    """The format with a file per rank, at tensor parallel size 2, gives the model that it was made of."""
    write_legacy(FAMILIES[name], tmp_path, {})
    (tmp_path / "reference").mkdir()
    config = (tmp_path / "model" / "config.json").read_text()
    (tmp_path / "reference" / "config.json").write_text(config)
    family_proofs.prove_exported(FAMILIES[name], tmp_path, tmp_path / "export")


@pytest.mark.parametrize("said", [{"mamba_state_dim": 6}, {"mamba_state_dim": None}])
def test_sections_of_another_size_are_refused(said: dict[str, Any], tmp_path: Path) -> None:
    """Args that tell other sections, or none, stop the reading of a file per rank."""
    checkpoint = write_legacy(FAMILIES["nemotron_h"], tmp_path, said)
    with pytest.raises(CheckpointError, match="a tensor in sections has another size"):
        describe_checkpoint(checkpoint, None)
