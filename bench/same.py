"""Whether two folders hold the same tensors, bit for bit: `python -m bench.same FOLDER FOLDER`.

A converter that is fast and wrong says nothing, so the two that are measured are compared once.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors import safe_open


def files_of(folder: Path) -> dict[str, Path]:
    """The file of every tensor in the folder, from the files' own headers."""
    files = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            files.update(dict.fromkeys(file.keys(), path))
    return files


def read(path: Path, name: str) -> torch.Tensor:
    """One tensor."""
    with safe_open(path, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor


def main() -> int:
    """Compare; the exit status is 1 where the folders differ."""
    first, second = (files_of(Path(folder)) for folder in sys.argv[1:])
    findings = [f"only in one folder: {name}" for name in sorted(first.keys() ^ second.keys())]
    for name in sorted(first.keys() & second.keys()):
        one, other = read(first[name], name), read(second[name], name)
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            findings.append(f"{name}: {one.dtype} {tuple(one.shape)}, {other.dtype} {tuple(other.shape)}")
        elif not torch.equal(one.view(torch.uint8), other.view(torch.uint8)):
            findings.append(f"{name}: the bytes differ")
    print("\n".join(findings) if findings else f"{len(first)} tensors, bit for bit equal")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
