"""A source whose tensors have Hugging Face names already: a folder that ranks have written, in any format."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pp_export.checkpoint import locate
from pp_export.checkpoint.catalog import Catalog
from pp_export.checkpoint.hf_shards import rank_files, safetensors_shards
from pp_export.checkpoint.hf_shards.named_dcp import NamedDcp
from pp_export.checkpoint.hf_shards.rank_files import FsdpRankFiles
from pp_export.checkpoint.hf_shards.safetensors_shards import SafetensorsShards
from pp_export.checkpoint.source import Format, Reader
from pp_export.core.errors import CheckpointError
from pp_export.core.file_names import CONFIG

_REFERENCES = ("huggingface", ".hf_metadata")
"""Folders that frameworks leave beside a save: verl's, NeMo Automodel's."""
_NO_MODEL = ("optim", "consolidated")
"""What the names of subfolders begin with that hold no input."""
_EXPECTED = (
    "shard-R-model-I-of-N.safetensors, .metadata with .distcp files, or model_world_size_N_rank_R.pt, here or"
    " in one subfolder"
)


@dataclass(frozen=True)
class RankSavedSource:
    """The folder `input`, or the one subfolder of it that is such a save. With `num_ranks`, those and no
    others have written it. With `check_source` values are compared with checksums, where any were stored.
    """

    input: Path
    check_source: bool
    num_ranks: int | None = None

    is_shared = True
    device = None

    @property
    def folders(self) -> Sequence[Path]:
        return (self.input,)

    def check(self) -> None:
        folder = saved_folder(self.input)
        file = next((folder / name for name in sorted(os.listdir(folder)) if (folder / name).is_file()), None)
        if file is not None:
            locate.read(file, length=1)

    def announce(self) -> bytes:
        return b""

    def describe(self, announced: Sequence[bytes]) -> Catalog:
        folder = saved_folder(self.input)
        try:
            return _format_of(folder, self.num_ranks).describe(folder)
        except OSError as error:
            raise CheckpointError(
                f"the input can't be read: {error.strerror}", where={"file": error.filename or folder}
            ) from error

    def open(self, catalog: Catalog) -> Reader:
        found = next(known for known in _formats(None) if known.name == catalog.description.reader)
        return found.open(catalog, check_source=self.check_source)


def saved_folder(folder: Path) -> Path:
    """The folder to read: `folder` itself, or the only one of its subfolders that ranks have written."""
    try:
        if not folder.is_dir():
            raise CheckpointError("the input folder does not exist", where={"folder": folder})
        if _is_save(folder):
            return folder
        below = [folder / name for name in sorted(os.listdir(folder)) if not name.startswith(_NO_MODEL)]
        found = [each for each in below if each.is_dir() and _is_save(each)]
    except OSError as error:
        raise CheckpointError(
            f"this rank can't read the input's folder: {error.strerror}", where={"folder": error.filename}
        ) from error
    if len(found) != 1:
        raise CheckpointError(
            "the folder holds several saves" if found else "the folder holds nothing that ranks have saved",
            where={"folder": folder},
            expected=_EXPECTED,
            got=", ".join(each.name for each in found) or None,
            advice="name the folder itself with --input",
        )
    return found[0]


def own_reference(folder: Path) -> Path | None:
    """The folder with config.json that the framework has left beside the save, if any."""
    try:
        saved = saved_folder(folder)
    except CheckpointError:
        return None
    places = [above / name for above in dict.fromkeys((saved, folder)) for name in _REFERENCES]
    return next((place for place in places if (place / CONFIG).is_file()), None)


def num_ranks(folder: Path) -> int | None:
    """How many ranks have written the save in `folder`, as far as its files' names tell."""
    return safetensors_shards.num_ranks(folder) or rank_files.num_ranks(folder) or None


def _formats(num_ranks: int | None) -> tuple[Format, ...]:
    return (FsdpRankFiles(num_ranks), SafetensorsShards(num_ranks), NamedDcp())


def _is_save(folder: Path) -> bool:
    return any(known.recognise(folder) for known in _formats(None))


def _format_of(folder: Path, num_ranks: int | None) -> Format:
    return next(known for known in _formats(num_ranks) if known.recognise(folder))
