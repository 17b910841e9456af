"""Tensors that the reference has and the checkpoint lacks, such as a tower for images: taken as they lie
there, when that is asked for.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import groupby
from pathlib import Path

from pp_export.architecture.accounting import Account
from pp_export.checkpoint.catalog import NO_CRC, Catalog, StoredBox, StoredItem, StoredTensor
from pp_export.core import dtypes
from pp_export.core.dtypes import DType
from pp_export.core.errors import OptionError, ReferenceFolderError
from pp_export.core.tensors import REFERENCE, Box
from pp_export.reference.reference_folder import Reference
from pp_export.reference.safe_files import real_file
from pp_export.verification.header import TensorEntry, read_header

_MAX_SHOWN = 8


def with_reference(catalog: Catalog, reference: Reference, patterns: str | None) -> Catalog:
    """The catalog, and in it the tensors of the reference's own weights that fit one of the `patterns`, which
    commas part; their names begin with `core.tensors.REFERENCE`. Called on rank 0.

    Whether the checkpoint makes some of them is not asked here. In a live model rank 0 reads them, since
    others may not see the reference. Raises OptionError for a pattern that fits none.
    """
    if patterns is None:
        return catalog
    weights = reference.weights
    if weights is None:
        raise ReferenceFolderError(
            "the reference has no weights, so nothing can be taken from it",
            where={"reference": reference.folder, "asked for": patterns},
            advice="give a reference folder with its safetensors files",
        )
    assert reference.folder is not None, "weights lie somewhere"
    chosen = _fitting(weights, [pattern.strip() for pattern in patterns.split(",")])
    items, tensors = list(catalog.stored_items), list(catalog.tensors)
    holders = catalog.holders
    names = [""] * len(holders) if holders is not None else list(catalog.files)
    by_file = groupby(sorted(chosen, key=lambda name: (chosen[name], name)), key=chosen.__getitem__)
    for file, of_file in by_file:
        path = real_file(reference.folder, file)
        entries, data_begin = _entries(path)
        for name in of_file:
            entry, dtype = _found(entries, name, path)
            box = StoredBox(Box((0,) * len(entry.shape), entry.shape), len(items))
            items.append(StoredItem(len(names), data_begin + entry.begin, entry.end - entry.begin, NO_CRC))
            tensors.append(StoredTensor(REFERENCE + name, entry.shape, dtype, (box,)))
        names.append(str(path.absolute()))
    return replace(
        catalog,
        files=tuple(names),
        stored_items=tuple(items),
        tensors=tuple(tensors),
        holders=None if holders is None else (*holders, *((0,),) * (len(names) - len(holders))),
    )


def taken_notes(account: Account) -> list[str]:
    """That tensors are the reference's own, if some are."""
    if not account.taken:
        return []
    num_bytes = sum(account.outputs[name].num_bytes for name in account.taken)
    return [
        f"{len(account.taken)} tensors ({num_bytes:,} bytes) are the reference's own, byte for byte,"
        f" since the checkpoint has none of them: {account.taken[0]}, ..."
    ]


def _fitting(weights: Mapping[str, str], patterns: Iterable[str]) -> dict[str, str]:
    """The tensors that fit a pattern; each pattern must fit one."""
    chosen: dict[str, str] = {}
    idle = []
    for pattern in patterns:
        fitting = {name: file for name, file in weights.items() if fnmatchcase(name, pattern)}
        chosen |= fitting
        idle += [] if fitting else [pattern]
    if idle:
        begins = sorted({".".join(name.split(".")[:2]) for name in weights})
        raise OptionError(
            "--take-missing-from-reference matches no tensor of the reference",
            expected=f"a pattern such as {begins[0]}.*",
            got=", ".join(idle),
            findings=[f"there are {begin}.*" for begin in begins[:_MAX_SHOWN]],
        )
    return chosen


def _entries(path: Path) -> tuple[dict[str, TensorEntry], int]:
    """The tensors of a file, and where its data begin."""
    try:
        with io.FileIO(path) as file:
            header, faults = read_header(file, path.name, path.stat().st_size, ours=False)
    except OSError as error:
        raise ReferenceFolderError(
            f"a file of the reference's weights can't be read: {error.strerror}", where={"file": path}
        ) from error
    if header is None or faults:
        raise ReferenceFolderError(
            "a file of the reference's weights is not a complete safetensors file",
            where={"file": path},
            findings=[fault.message for fault in faults],
        )
    return {entry.name: entry for entry in header.tensors}, header.data_begin


def _found(entries: Mapping[str, TensorEntry], name: str, path: Path) -> tuple[TensorEntry, DType]:
    entry = entries.get(name)
    dtype = None if entry is None else dtypes.from_safetensors(entry.dtype)
    if entry is None or dtype is None:
        raise ReferenceFolderError(
            "a tensor of the reference can't be taken",
            where={"file": path, "tensor": name},
            expected="a tensor of that file, of a type of torch",
            got="no such tensor" if entry is None else entry.dtype,
        )
    return entry, dtype
