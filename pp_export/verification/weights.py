"""Where the tensors of a folder lie, by the headers of the files that a loader would read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pp_export.core import weight_index
from pp_export.core.errors import VerificationError
from pp_export.core.file_names import INDEX, MANIFEST, SINGLE_WEIGHTS
from pp_export.verification.agreement import MAX_MANIFEST_BYTES
from pp_export.verification.claims import Manifest, parse_manifest
from pp_export.verification.folder import open_regular, read_upto
from pp_export.verification.header import TensorEntry, read_header

_ADVICE = "run verify on this folder"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor, whose bytes begin at byte `begin` of the file `path`, which has `file_bytes` bytes."""

    path: Path
    file_bytes: int
    begin: int
    entry: TensorEntry

    @property
    def spec(self) -> str:
        """Dtype and shape."""
        return f"{self.entry.dtype}{list(self.entry.shape)}"

    @property
    def num_bytes(self) -> int:
        return self.entry.end - self.entry.begin


def tensors_of(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor by its name. Raises VerificationError where the folder can't be read."""
    found: dict[str, StoredTensor] = {}
    for path in _weight_files(folder):
        for tensor in _read(path):
            name = tensor.entry.name
            if name in found:
                raise VerificationError(
                    "two files have the same tensor", where={"tensor": name, "file": path}
                )
            found[name] = tensor
    return found


def recorded_digests(folder: Path, tensors: dict[str, StoredTensor]) -> dict[str, str]:
    """The XXH3-128 that the folder's manifest records of those tensors which are stored as it says; of none
    if the manifest is missing or has a fault.
    """
    manifest = _read_manifest(folder)
    if manifest is None or manifest.faults:
        return {}
    return {
        entry.name: digest
        for claim in manifest.shards.values()
        for entry, digest in claim.tensors
        if (tensor := tensors.get(entry.name)) is not None
        and tensor.path.name == claim.file
        and (tensor.file_bytes, tensor.entry) == (claim.whole.num_bytes, entry)
    }


def unreadable(path: Path, why: str | None) -> VerificationError:
    """The error of a weight file that can't be compared."""
    return VerificationError(f"a weight file can't be read: {why}", where={"file": path}, advice=_ADVICE)


def _read(path: Path) -> list[StoredTensor]:
    try:
        with open_regular(path) as file:
            num_bytes = os.fstat(file.fileno()).st_size
            header, faults = read_header(file, path.name, num_bytes, ours=False)
    except OSError as error:
        raise unreadable(path, error.strerror) from None
    broken = [fault for fault in faults if fault.kind != "empty-shard"]
    if header is None or broken:
        raise unreadable(path, (broken or faults)[0].message)
    return [StoredTensor(path, num_bytes, header.data_begin + entry.begin, entry) for entry in header.tensors]


def _read_manifest(folder: Path) -> Manifest | None:
    try:
        with open_regular(folder / MANIFEST) as file:
            return parse_manifest(read_upto(file, MAX_MANIFEST_BYTES))
    except OSError:
        return None


def _weight_files(folder: Path) -> list[Path]:
    """The files that the index names, or the only one, or where there is no index all of them."""
    path = folder / INDEX
    if not path.exists():
        single = folder / SINGLE_WEIGHTS
        found = [single] if single.exists() else sorted(folder.glob("*.safetensors"))
        if not found:
            is_there = folder.is_dir()
            what = "the folder has no *.safetensors" if is_there else "the folder does not exist"
            raise VerificationError(what, where={"folder": folder}, advice="check the path")
        return found
    try:
        with path.open("rb") as file:
            index = weight_index.parse(file.read(weight_index.MAX_BYTES + 1))
        if index.weight_map is None:
            raise ValueError("it has no weight_map")
        if index.unsafe:
            raise ValueError("it names a file that may lie outside the folder")
    except (OSError, ValueError) as error:
        text = f"the index can't be used: {error}"
        raise VerificationError(text, where={"file": path}, advice=_ADVICE) from None
    return [folder / name for name in sorted(set(index.weight_map.values()))]
