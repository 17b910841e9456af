"""What is done to an input, or to the folder that the output is to replace, before a tool runs."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from bench.comparison.inputs import MEGATRON, SAFETENSORS, Input, Tensors

INDEX = "model.safetensors.index.json"
CLEAN, KEY, PIECE, FILE, BIT, OLDER, KILL = "clean", "key", "piece", "file", "bit", "older", "kill"
WORDS = {
    CLEAN: "nothing wrong",
    KEY: "a key missing, from `.metadata` or every rank's file",
    PIECE: "a piece of a tensor missing, from `.metadata` or one rank's file",
    FILE: "a file missing",
    BIT: "one flipped bit",
    OLDER: "an older, larger export in the target",
    KILL: "killed as each new file appears, in runs of their own",
}
_OLD_FILES = 9
_TENSOR = {True: "decoder.layers.mlp.linear_fc2.weight", False: "model.layers.1.mlp.down_proj.weight"}


def copy_of(given: Input, folder: Path) -> Path:
    """The save again, as links to the same bytes: a damaged file is replaced, never written into."""
    return Path(shutil.copytree(given.source, folder, copy_function=os.link))


def damage(fault: str, given: Input, source: Path) -> None:
    """Do to the save at `source`, a copy of `given`'s, what `fault` says."""
    files = _weight_files(given, source)
    if fault == FILE:
        files[-1].unlink()
    elif fault == BIT:
        _flip(max(files, key=lambda path: path.stat().st_size))
    elif fault in (KEY, PIECE) and given.kind == MEGATRON:
        _forget(next(source.rglob(".metadata")), whole=fault == KEY)
    elif fault in (KEY, PIECE):
        for file in files if fault == KEY else files[-1:]:
            _leave_out(file, is_safetensors=given.kind == SAFETENSORS)


def _weight_files(given: Input, source: Path) -> list[Path]:
    """The files that hold weights; of a rank's several, those with the tensor that is left out come last."""
    pattern = {MEGATRON: "*.distcp", SAFETENSORS: "*.safetensors"}.get(given.kind, "model_*.pt")
    files = sorted(source.rglob(pattern))
    if given.kind == SAFETENSORS:
        files = [file for file in files if _TENSOR[False] in load_file(file)]
    return files


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    _replace(file, bytes(data))


def _replace(file: Path, data: bytes) -> None:
    file.unlink()
    file.write_bytes(data)


def _forget(file: Path, *, whole: bool) -> None:
    """Take a tensor, or its last chunk, out of `.metadata`."""
    metadata: Any = pickle.loads(file.read_bytes())
    name = _TENSOR[True]
    chunks = metadata.state_dict_metadata[name].chunks
    gone = list(chunks) if whole else chunks[-1:]
    for index in list(metadata.storage_data):
        if index.fqn == name and (whole or tuple(index.offset) == tuple(gone[0].offsets)):
            del metadata.storage_data[index]
    if whole:
        del metadata.state_dict_metadata[name]
    else:
        chunks.pop()
    _replace(file, pickle.dumps(metadata))


def _leave_out(file: Path, *, is_safetensors: bool) -> None:
    """Write a rank's file again without a tensor."""
    if is_safetensors:
        header, body = _split(file.read_bytes())
        del header[_TENSOR[False]]
        _replace(file, _joined(header, body))
        return
    state: Any = torch.load(file, weights_only=False)
    del state[_TENSOR[False]]
    file.unlink()
    torch.save(state, file)


def _split(data: bytes) -> tuple[dict[str, Any], bytes]:
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def _joined(header: dict[str, Any], body: bytes) -> bytes:
    """A safetensors file of what the header still names, without the bytes of what it doesn't."""
    parts, begin = [], 0
    for name, value in sorted(header.items(), key=lambda item: item[1].get("data_offsets", [0])[0]):
        if name != "__metadata__":
            first, last = value["data_offsets"]
            parts.append(body[first:last])
            value["data_offsets"] = [begin, begin := begin + last - first]
    saved: dict[str, Any] | None = header.get("__metadata__", {}).get("DCP_SHARDING_INFO")
    if saved is not None:
        told = json.loads(str(saved))
        told.pop(_TENSOR[False], None)
        header["__metadata__"]["DCP_SHARDING_INFO"] = json.dumps(told)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(parts)


def older_export(given: Input, folder: Path) -> None:
    """A model folder with more files than the new one will have: the same names, other values."""
    shutil.copytree(given.reference, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    names = sorted(given.truth)
    weight_map: dict[str, str] = {}
    for number in range(_OLD_FILES):
        part: Tensors = {name: given.truth[name] + 1 for name in names[number::_OLD_FILES]}
        file = f"model-{number + 1:05d}-of-{_OLD_FILES:05d}.safetensors"
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
