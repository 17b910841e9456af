"""Claims of `bench.comparison`: it sees what is wrong with a folder, and does to an input what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bench.comparison.__main__ import Outcome, table
from bench.comparison.damage import BIT, FILE, INDEX, OLDER, copy_of, damage, older_export
from bench.comparison.inputs import VERL, Input, Tensors
from bench.comparison.judge import AS_BEFORE, NOTHING, RIGHT, WEIGHTS, judge


@pytest.fixture
def truth() -> Tensors:
    generator = torch.Generator().manual_seed(0)
    return {f"layers.{number}": torch.randn(8, 3, generator=generator) for number in range(12)}


def write(folder: Path, tensors: Tensors, *, config: bool = True) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model-00001-of-00001.safetensors")
    weight_map = dict.fromkeys(tensors, "model-00001-of-00001.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    if config:
        (folder / "config.json").write_text("{}")
    return folder


def test_it_tells_right_from_wrong(truth: Tensors, tmp_path: Path) -> None:
    """A folder is right only with every tensor bit for bit; one changed bit is a wrong tensor, and one name
    too few a missing one.
    """
    assert judge(tmp_path / "none", truth).text == NOTHING
    assert judge(write(tmp_path / "right", truth), truth).text == RIGHT
    assert judge(write(tmp_path / "bare", truth, config=False), truth).text == WEIGHTS
    changed = {name: value.clone() for name, value in truth.items()}
    changed["layers.3"].view(torch.int32)[2, 1] ^= 1
    seen = judge(write(tmp_path / "wrong", changed), truth)
    assert (seen.text, seen.is_wrong) == ("1 of 12 tensors wrong", True)
    del changed["layers.3"]
    seen = judge(write(tmp_path / "less", changed), truth)
    assert (seen.text, seen.is_wrong) == ("1 of 12 tensors missing", False)
    (tmp_path / "right" / "model-00001-of-00001.safetensors").write_bytes(b"")
    assert judge(tmp_path / "right", truth).text.startswith("can't be loaded")


def test_it_sees_what_an_older_export_leaves(truth: Tensors, tmp_path: Path) -> None:
    """The older export has other values and more files; what is left of it beside the new one is counted."""
    reference = write(tmp_path / "reference", truth)
    given = Input(VERL, tmp_path, reference, truth)
    older_export(given, tmp_path / "old")
    old = {name: value + 1 for name, value in truth.items()}
    assert judge(tmp_path / "old", truth, old).text == AS_BEFORE
    write(tmp_path / "old", truth)
    assert judge(tmp_path / "old", truth, old).text == "right, beside 9 files of the older one"


@pytest.mark.parametrize("fault", [BIT, FILE])
def test_damage_is_done_to_the_copy(fault: str, truth: Tensors, tmp_path: Path) -> None:
    """One bit of one file, or one file, differs between save and copy; the save is as it was."""
    source = tmp_path / "save"
    source.mkdir()
    for rank in range(2):
        torch.save(truth, source / f"model_world_size_2_rank_{rank}.pt")
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    given = Input(VERL, source, source, truth)
    copy = copy_of(given, tmp_path / "copy")
    damage(fault, given, copy)
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    after = {path.name: path.read_bytes() for path in copy.iterdir()}
    changed = [name for name in before if after.get(name) != before[name]]
    assert len(changed) == 1
    if fault == BIT:
        pairs = zip(before[changed[0]], after[changed[0]], strict=True)
        assert sum((one ^ other).bit_count() for one, other in pairs) == 1


def test_the_table_says_status_and_what_is_left() -> None:
    """A cell has the exit status, unless all is well."""
    told = table(
        [
            Outcome("a tool", VERL, OLDER, 1, NOTHING, False, 1.0, ""),
            Outcome("b", VERL, OLDER, 0, RIGHT, False, 1.0, ""),
        ]
    )
    assert "| exit 1: nothing there | right |" in told
