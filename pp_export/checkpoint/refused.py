"""Kinds of folders that are no model's weights: known, so that they are refused by their name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from pp_export.checkpoint.catalog import Catalog
from pp_export.core.errors import CheckpointError


@dataclass(frozen=True)
class RefusedFormat:
    """A `Format` that one of the files or folders `marks` gives away; `what` and `advice` are the error's."""

    name: str
    marks: tuple[str, ...]
    what: str
    advice: str

    def recognise(self, folder: Path) -> bool:
        return any((folder / mark).exists() for mark in self.marks)

    def is_finished(self, folder: Path, latest: int | None) -> bool:
        return True

    def describe(self, folder: Path) -> NoReturn:
        raise CheckpointError(self.what, where={"folder": folder}, advice=self.advice)

    def open(self, catalog: Catalog, *, check_source: bool) -> NoReturn:
        raise AssertionError(f"nothing describes a folder of {self.name}")


MODELOPT = RefusedFormat(
    "ModelOpt",
    ("modelopt_state",),
    "the checkpoint was quantized or pruned with ModelOpt; its weights are not the model's own",
    "export it with ModelOpt's own exporter",
)
ADAPTER = RefusedFormat(
    "PEFT adapter",
    ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"),
    "the folder holds an adapter (LoRA) in the format of PEFT, not a model",
    "merge it into the base model's weights, and export those",
)
