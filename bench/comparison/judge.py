"""What lies at a target after a tool has ended, read as transformers reads it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from bench.comparison.damage import INDEX
from bench.comparison.inputs import Tensors

NOTHING, RIGHT, AS_BEFORE = "nothing there", "right", "as before"
WEIGHTS = "weights right, no config.json"
CONFIG = "config.json"


@dataclass(frozen=True)
class Seen:
    """What is there, in words, and whether somebody who loads it gets a wrong model without a word."""

    text: str
    is_wrong: bool = False


def judge(folder: Path, truth: Tensors, old: Tensors | None = None) -> Seen:
    """Compare what is loaded from `folder` with `truth`, or with an `old` export that was there before."""
    if not folder.exists():
        return Seen(NOTHING)
    try:
        files = _files(folder)
        tensors: Tensors = {}
        for file in files:
            tensors |= load_file(file)
    except Exception as error:  # noqa: BLE001  whatever a reader says of it
        return Seen(f"can't be loaded ({type(error).__name__})")
    if old is not None and _differences(tensors, old) == 0:
        return Seen(AS_BEFORE)
    stale = len({file.name for file in folder.glob("*.safetensors")} - {file.name for file in files})
    return _told(tensors, truth, stale=stale, has_config=(folder / CONFIG).exists())


def _told(tensors: Tensors, truth: Tensors, *, stale: int, has_config: bool) -> Seen:
    if not tensors:
        return Seen("a folder without weights")
    missing = len(truth.keys() - tensors.keys())
    wrong = _differences(tensors, {name: truth[name] for name in truth.keys() & tensors.keys()})
    if missing or wrong:
        counts = {"missing": missing, "wrong": wrong}
        parts = [f"{number} of {len(truth)} tensors {what}" for what, number in counts.items() if number]
        return Seen(", ".join(parts), bool(wrong))
    if not has_config:
        return Seen(WEIGHTS)
    return Seen(f"right, beside {stale} files of the older one" if stale else RIGHT)


def _files(folder: Path) -> list[Path]:
    """Those that transformers loads: a single file, else the index's, else (tools without one) all."""
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    if (folder / INDEX).exists():
        index: Any = json.loads((folder / INDEX).read_text())
        return [folder / name for name in sorted(set(index["weight_map"].values()))]
    return sorted(folder.glob("*.safetensors"))


def _differences(tensors: Tensors, expected: Tensors) -> int:
    return sum(
        name not in tensors or tensors[name].dtype != value.dtype or not _equal(tensors[name], value)
        for name, value in expected.items()
    )


def _equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Bit for bit, whatever NaNs there are."""
    return first.shape == second.shape and torch.equal(
        first.contiguous().view(torch.uint8), second.contiguous().view(torch.uint8)
    )
