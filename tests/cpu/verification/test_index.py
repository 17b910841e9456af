"""Claims of `pp_export.verification.index`: index and headers agree, and no name leads out of the folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pp_export.verification import verify_folder
from tests.fixtures.damage import add_weights, edit_json, set_key
from tests.fixtures.hf_folders import DOWN, INDEX, as_stranger, found
from tests.fixtures.opened_paths import opened


def test_single_file_needs_no_index(tmp_path: Path) -> None:
    """One model.safetensors without an index is whole."""
    save_file({"a": torch.ones(3)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert verify_folder(tmp_path).ok


def test_folder_without_weights(tmp_path: Path) -> None:
    """A folder without weights is never whole, and neither is an empty one."""
    assert {(fault.kind, fault.file) for fault in verify_folder(tmp_path).faults} == {
        ("missing-file", "model.safetensors"),
        ("missing-file", "config.json"),
    }


def test_what_loaders_would_not_find_is_noted(tmp_path: Path) -> None:
    """A single file of another name and an index too large for the Hub's loader are notes."""
    (tmp_path / "config.json").write_text("{}")
    save_file({"a": torch.ones(3)}, tmp_path / "adapter.safetensors")
    result = verify_folder(tmp_path)
    assert result.ok
    assert any("adapter.safetensors" in note for note in result.notes)
    index = {
        "metadata": {"total_size": 12, "x": "x" * (11 << 20)},
        "weight_map": {"a": "adapter.safetensors"},
    }
    (tmp_path / INDEX).write_text(json.dumps(index))
    result = verify_folder(tmp_path)
    assert result.ok
    assert any("10 MiB" in note for note in result.notes)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.safetensors", "instead of the index"),
        ("consolidated.1.safetensors", "vLLM"),
        ("x.safetensors", ""),
    ],
)
def test_why_an_unindexed_file_matters(folder: Path, name: str, words: str) -> None:
    """The fault of an unindexed weight file says what a loader would make of it."""
    add_weights(name)(as_stranger(folder))
    (fault,) = verify_folder(folder).faults
    assert fault.message == "the index does not name it" if not words else words in fault.message


def test_two_files_need_an_index(tmp_path: Path) -> None:
    """Two weight files without an index are a fault: no loader would read both."""
    for name in ("a", "b"):
        save_file({name: torch.ones(3)}, tmp_path / f"{name}.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert found(verify_folder(tmp_path)) == {(INDEX, None, "missing-file")}


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "/etc/outside.safetensors",
        "sub/outside.safetensors",
        ".outside.safetensors",
        "outside.safetensors\n",
        "out\\side.safetensors",
        "outside\x00.safetensors",
        "outside.bin",
        "x" * 300 + "outside.safetensors",
        7,
        None,
        ["x"],
    ],
)
def test_unsafe_name_is_never_opened(folder: Path, name: object) -> None:
    """An index entry that is no plain weight file name is a fault, and what it names is not opened."""
    save_file({DOWN: torch.ones(2)}, folder.parent / "outside.safetensors")
    edit_json(INDEX, set_key("weight_map", DOWN, value=name), resealed=True)(folder)
    opened.clear()
    result = verify_folder(folder)
    assert (INDEX, DOWN, "unsafe-name") in found(result)
    assert opened
    assert not any("outside" in path or "side." in path for path in opened)
