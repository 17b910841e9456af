"""What is done to an exported folder, one fault each, cheap to make and all seen in the wild. Manifest and
checksums stay as the export wrote them, as they do when something happens to a folder later.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.clients.known import INDEX
from tests.fixtures.damage import flip, in_tensor

DOWN, NORM = "model.layers.1.mlp.down_proj.weight", "model.layers.1.input_layernorm.weight"
UP, HEAD = "model.layers.1.mlp.up_proj.weight", "lm_head.weight"
SINGLE = "model.safetensors"


@dataclass(frozen=True)
class Fault:
    """In `words` for the page; `make` changes a copy of the export; in a `tied` model where it says so."""

    words: str
    make: Callable[[Path], object]
    tied: bool = False


def weight_map(folder: Path) -> dict[str, str]:
    names: dict[str, str] = json.loads((folder / INDEX).read_text())["weight_map"]
    return names


def change_index(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index, indent=2))


def resave(folder: Path, file: str, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """A weight file written anew by the library."""
    tensors = {name: value.clone() for name, value in load_file(folder / file).items()}
    change(tensors)
    save_file(tensors, folder / file, metadata={"format": "pt"})


def change_header(file: Path, change: Callable[[bytes], bytes]) -> None:
    """The header replaced by one that is as long."""
    data = file.read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    header = change(data[8:end])
    assert len(header) == end - 8
    assert header != data[8:end]
    file.write_bytes(data[:8] + header + data[end:])


def _flipped(folder: Path) -> None:
    flip(weight_map(folder)[DOWN], in_tensor(DOWN), 6)(folder)


def _cut(folder: Path) -> None:
    file = folder / weight_map(folder)[DOWN]
    data = file.read_bytes()
    file.write_bytes(data[: len(data) * 3 // 4])


def _longer(folder: Path) -> None:
    with (folder / weight_map(folder)[DOWN]).open("ab") as file:
        file.write(bytes(64))


def _gone(folder: Path) -> None:
    (folder / weight_map(folder)[DOWN]).unlink()


def _gone_with_its_keys(folder: Path) -> None:
    lost = weight_map(folder)[DOWN]
    _gone(folder)
    names = weight_map(folder)
    change_index(folder, lambda index: index.update(weight_map={n: f for n, f in names.items() if f != lost}))


def _older_shard(folder: Path) -> None:
    """A shard of an older export of more files, with other values, that no index names."""
    tensors = load_file(folder / weight_map(folder)[DOWN])
    save_file(
        {name: value * 1.5 for name, value in tensors.items()},
        folder / "model-00009-of-00009.safetensors",
        metadata={"format": "pt"},
    )


def _older_single(folder: Path) -> None:
    """An older export in one file, with other values."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(set(weight_map(folder).values())):
        tensors |= load_file(folder / file)
    older = {name: value * 1.5 for name, value in tensors.items()}
    save_file(older, folder / SINGLE, metadata={"format": "pt"})


def _transposed(folder: Path) -> None:
    resave(
        folder,
        weight_map(folder)[DOWN],
        lambda tensors: tensors.update({DOWN: tensors[DOWN].t().contiguous()}),
    )


def _fewer_rows(folder: Path) -> None:
    resave(
        folder, weight_map(folder)[HEAD], lambda tensors: tensors.update({HEAD: tensors[HEAD][:-10].clone()})
    )


def _other_type(folder: Path) -> None:
    """The same bytes, said to be integers."""
    name = f'"{DOWN}":'.encode()

    def change(header: bytes) -> bytes:
        before, _, after = header.partition(name)
        return before + name + after.replace(b'"F32"', b'"I32"', 1)

    change_header(folder / weight_map(folder)[DOWN], change)


def _total(folder: Path) -> None:
    change_index(
        folder, lambda index: index["metadata"].update(total_size=index["metadata"]["total_size"] // 2)
    )


def _garbage(folder: Path) -> None:
    change_header(folder / weight_map(folder)[DOWN], lambda header: header.replace(b"{", b"\x00", 1))


def _renamed(folder: Path) -> None:
    renamed = DOWN.replace("down_proj", "down")
    file = weight_map(folder)[DOWN]
    resave(folder, file, lambda tensors: tensors.update({renamed: tensors.pop(DOWN)}))
    change_index(folder, lambda index: index["weight_map"].update({renamed: index["weight_map"].pop(DOWN)}))


def _in_another_file(folder: Path) -> None:
    """The index sends a key to a shard that doesn't have it."""
    names = weight_map(folder)
    change_index(folder, lambda index: index["weight_map"].update({DOWN: names[HEAD]}))


def _not_in_the_index(folder: Path) -> None:
    change_index(folder, lambda index: index["weight_map"].pop(NORM))


def _no_head(folder: Path) -> None:
    file = weight_map(folder)[HEAD]
    resave(folder, file, lambda tensors: tensors.pop(HEAD))
    change_index(folder, lambda index: index["weight_map"].pop(HEAD))


def _swapped(folder: Path) -> None:
    """Two matrices of one shape under each other's names."""
    gate = UP.replace("up_proj", "gate_proj")

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[UP], tensors[gate] = tensors[gate], tensors[UP]

    resave(folder, weight_map(folder)[UP], change)


def _another_head(folder: Path) -> None:
    """A head with other values in a model that ties it to the embeddings."""
    embedding = "model.embed_tokens.weight"
    file = weight_map(folder)[embedding]
    resave(folder, file, lambda tensors: tensors.update({HEAD: tensors[embedding] * 1.5}))
    change_index(folder, lambda index: index["weight_map"].update({HEAD: file}))


FAULTS: dict[str, Fault] = {
    "flip": Fault("one flipped bit of a weight", _flipped),
    "cut": Fault("a shard cut off at three quarters", _cut),
    "longer": Fault("64 bytes more at a shard's end", _longer),
    "gone": Fault("a shard gone", _gone),
    "gone_keys": Fault("a shard and its keys in the index gone", _gone_with_its_keys),
    "older_shard": Fault("a shard of an older, larger export beside them", _older_shard),
    "older_single": Fault("an older `model.safetensors` beside them", _older_single),
    "transposed": Fault("a matrix transposed", _transposed),
    "rows": Fault("a head of ten rows too few", _fewer_rows),
    "type": Fault("a tensor said to be I32 instead of F32", _other_type),
    "total": Fault("`total_size` of the index halved", _total),
    "garbage": Fault("a header that is no JSON", _garbage),
    "renamed": Fault("a tensor renamed, in file and index", _renamed),
    "elsewhere": Fault("a key that the index sends to another shard", _in_another_file),
    "unindexed": Fault("a key gone from the index alone", _not_in_the_index),
    "swapped": Fault("gate and up projection under each other's name", _swapped),
    "no_head": Fault("the head gone, which isn't tied", _no_head),
    "another_head": Fault("a head of other values, in a model that ties it", _another_head, tied=True),
}


def write_damaged(fault: str, export: Path, folder: Path) -> Path:
    """A copy of `export` with the fault in it."""
    shutil.copytree(export, folder)
    FAULTS[fault].make(folder)
    return folder
