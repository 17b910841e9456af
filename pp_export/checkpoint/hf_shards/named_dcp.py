"""A save of torch's DCP (`.metadata` and `.distcp` files) whose keys are names of Hugging Face: NeMo
Automodel, torchtitan, accelerate, or anybody's `dcp.save`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pp_export.checkpoint import locate
from pp_export.checkpoint.catalog import Catalog, Description
from pp_export.checkpoint.dcp.metadata import StoredEntries
from pp_export.checkpoint.dcp.places import check_places
from pp_export.checkpoint.hf_shards.saved_names import kind_of_other, saved_names
from pp_export.checkpoint.hf_shards.steps_of_runs import step_of
from pp_export.checkpoint.source import Reader
from pp_export.core.errors import CheckpointError
from pp_export.torch_file import unpickler

_METADATA = ".metadata"


class NamedDcp:
    """The format."""

    name = "DCP with Hugging Face names"

    def recognise(self, folder: Path) -> bool:
        return (folder / _METADATA).is_file() or any(folder.glob("*.distcp"))

    def is_finished(self, folder: Path, latest: int | None) -> bool:
        """`.metadata` is written last."""
        return (folder / _METADATA).is_file()

    def describe(self, folder: Path) -> Catalog:
        _check_kind(folder)
        metadata = unpickler.load(
            locate.read_small(folder / _METADATA, unpickler.MAX_BYTES), str(folder / _METADATA)
        )
        try:
            return _catalog(folder, metadata)
        except CheckpointError as error:
            raise error.at(folder=folder) from None
        except Exception as error:  # whatever a pickle of something else leads to
            raise CheckpointError(
                f".metadata is not what torch writes: {error!r}", where={"file": folder / _METADATA}
            ) from error

    def open(self, catalog: Catalog, *, check_source: bool) -> Reader:
        from pp_export.checkpoint.file_reader import FileReader  # who only describes needs none

        return FileReader(catalog, check_source=check_source)


def _check_kind(folder: Path) -> None:
    if not (folder / _METADATA).is_file():
        raise CheckpointError(
            "the save is unfinished: there are .distcp files but no .metadata, which is written last",
            where={"folder": folder},
            advice="wait for an asynchronous save to end, or take an earlier step",
        )
    if (folder / "metadata.json").exists() or (folder / "common.pt").exists():
        raise CheckpointError(
            "the folder is a Megatron checkpoint",
            where={"folder": folder},
            expected="tensors with Hugging Face names",
            advice="use `export`, which knows Megatron's names",
        )


def _catalog(folder: Path, metadata: Any) -> Catalog:
    stored = StoredEntries(metadata, kind_of_other)
    if not stored.tensors:
        raise CheckpointError("the save holds no weights", got=_listed(stored.other) or "nothing")
    places = check_places(folder, stored.infos, stored.tensors)
    known = saved_names(stored.tensors)
    tensors = tuple(stored.tensor(key, known.name_of[key]) for key in sorted(stored.tensors))
    description = Description(
        folder=str(folder),
        format="plain DCP",
        writer="torch.distributed.checkpoint",
        iteration=step_of(folder),
        args=None,
        layout={},
        other=stored.other,
        notes=(*known.notes(), *places),
        reader=NamedDcp.name,
    )
    return Catalog(description, tuple(stored.files), tuple(stored.stored_items), tensors, has_hf_names=True)


def _listed(other: Mapping[str, tuple[int, int]]) -> str:
    return ", ".join(f"{count} items of {kind}" for kind, (count, _) in other.items())
