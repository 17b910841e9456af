"""Claims of `pp_export.verification.structure`: all but tensor bytes is proved without reading them."""

from __future__ import annotations

import json
import os
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pp_export.verification import verify_folder, verify_structure
from tests.fixtures.damage import edit_json, rewrite_header, with_tensors_reversed
from tests.fixtures.defects import DEFECTS
from tests.fixtures.hf_folders import INDEX, LAST, MANIFEST, SHARDS, SUMS, as_stranger, make_index


@pytest.mark.parametrize("name", DEFECTS)
def test_structure_suffices(folder: Path, name: str) -> None:
    """Whatever is wrong outside the tensor bytes is found, and named, without reading them."""
    file, tensor, kind, damage = DEFECTS[name]
    damage(folder)
    assert (file, tensor, kind) in {
        (fault.file, fault.tensor, fault.kind) for fault in verify_structure(folder)
    }


@pytest.mark.parametrize("name", ["config.json", INDEX, MANIFEST, SUMS])
def test_huge_text_is_not_read(folder: Path, name: str) -> None:
    """A file of a size that no honest one has is a fault, not a gigabyte in memory."""
    os.truncate(folder / name, 1 << 40)
    started = time.process_time()
    faults = verify_structure(folder)
    assert time.process_time() - started < 1
    assert any(fault.file == name and "are not read" in fault.message for fault in faults)


def test_folder_with_other_habits(folder: Path) -> None:
    """What only our own folders promise is no fault elsewhere: metadata, alignment, total_parameters."""
    tensors = {"b": torch.ones(3), "a": torch.ones(3, dtype=torch.uint8)}
    save_file(tensors, folder / SHARDS[0], metadata={"a": "b"})
    rewrite_header(LAST, with_tensors_reversed)(folder)
    make_index(folder)
    rewrite_header(SHARDS[0], lambda header: header.rstrip() + b" ")(folder)
    edit_json(INDEX, lambda index: index["metadata"].pop("total_parameters"))(folder)
    edit_json(
        INDEX, lambda index: index["metadata"].update(total_size=float(index["metadata"]["total_size"]))
    )(folder)
    (folder / "config.json").write_text('{"time_step_limit": [0.0, Infinity]}')
    (folder / ".gitattributes").write_text("")
    (folder / "pytorch_model.bin.index.json").write_text("{}")
    result = verify_folder(as_stranger(folder))
    assert result.faults == ()
    assert any("second index" in note for note in result.notes)
    assert any(".gitattributes" in note for note in result.notes)


def test_many_tensors_take_linear_time(tmp_path: Path) -> None:
    """The structure of 20,000 tensors is checked in seconds."""
    entries: dict[str, Any] = {
        f"t{i}": {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]} for i in range(20_000)
    }
    header = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    name = "model-00001-of-00001.safetensors"
    (tmp_path / name).write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 20_000)
    (tmp_path / "config.json").write_text("{}")
    weight_map = dict.fromkeys(entries, name) | {"t0": "model-00001-of-00002.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {"total_size": 20_000}, "weight_map": weight_map}))
    started = time.process_time()
    assert verify_structure(tmp_path)
    assert time.process_time() - started < 4
