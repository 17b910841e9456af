"""`shard-R-model-I-of-N.safetensors`: what rank R-1 of a run has saved by torch's HuggingFaceStorageWriter
(or NeMo Automodel's) of the tensors of file I.

Where a piece lies in its tensor is in the header, under `DCP_SHARDING_INFO`
(torch/distributed/checkpoint/filesystem.py, `_write_files_from_queue`). The tensor's shape is not: it is as
large as its pieces reach, so that the last ones can be missing without a trace.
"""

from __future__ import annotations

import math
import os
import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pp_export.checkpoint.catalog import NO_CRC, Catalog, Description, StoredBox, StoredItem
from pp_export.checkpoint.hf_shards.pieces import Pieces, put_together
from pp_export.checkpoint.hf_shards.saved_names import kind_of_other, saved_names
from pp_export.checkpoint.hf_shards.steps_of_runs import step_of
from pp_export.checkpoint.source import Reader
from pp_export.core import dtypes
from pp_export.core.dtypes import DType
from pp_export.core.errors import CheckpointError
from pp_export.core.strict_json import JsonError, is_count, parse_object
from pp_export.core.tensors import Box, Shape

_FILE = re.compile(r"shard-(\d{5,9})-model-(\d{5,9})-of-(\d{5,9})\.safetensors")
_INFO, _OFFSETS = "DCP_SHARDING_INFO", "saved_offsets"
_MAX_HEADER_BYTES = 100_000_000
_PREFIX_BYTES = 8
_NUM_THREADS = 8
_ADVICE = (
    "copy the missing files of this save, and move those of other saves out of the folder; else take"
    " another step"
)


class _Entry(NamedTuple):
    """A piece in a file: its box, and the bytes [begin, begin + length) of the file that it takes."""

    box: Box
    dtype: DType
    begin: int
    length: int


@dataclass(frozen=True)
class SafetensorsShards:
    """The format. With `num_ranks`, those and no others must have written the folder."""

    num_ranks: int | None = None

    name = "safetensors of ranks"

    def recognise(self, folder: Path) -> bool:
        return bool(_names(folder))

    def is_finished(self, folder: Path, latest: int | None) -> bool:
        """Nothing in the folder tells."""
        return bool(_names(folder))

    def describe(self, folder: Path) -> Catalog:
        names = _names(folder)
        ranks = _check_names(folder, names, self.num_ranks)
        with ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="header") as pool:
            headers = dict(zip(names, pool.map(lambda name: _entries(folder / name), names)))
        keys = {key for entries in headers.values() for key in entries}
        known = saved_names(key for key in keys if kind_of_other(key, True) is None)
        items: list[StoredItem] = []
        pieces: defaultdict[str, Pieces] = defaultdict(Pieces)
        left: defaultdict[str, list[int]] = defaultdict(list)
        reach = _reach(headers.values())
        for number, (file, entries) in enumerate(headers.items()):
            for key, entry in entries.items():
                if key not in known.name_of:
                    left[str(kind_of_other(key, True))].append(entry.length)
                    continue
                stored = StoredBox(entry.box, len(items))
                pieces[known.name_of[key]].add(file, entry.dtype, reach[key], stored)
                items.append(StoredItem(number, entry.begin, entry.length, NO_CRC))
        tensors = put_together(pieces, _ADVICE)
        description = Description(
            folder=str(folder),
            format="safetensors of ranks (torch's HuggingFaceStorageWriter)",
            writer=f"{len(ranks)} ranks",
            iteration=step_of(folder),
            args=None,
            layout={},
            other={kind: (len(sizes), sum(sizes)) for kind, sizes in sorted(left.items())},
            notes=known.notes(),
            reader=self.name,
        )
        return Catalog(
            description,
            tuple(headers),
            tuple(items),
            tensors,
            has_hf_names=True,
            infers_shapes=self.num_ranks is None,
        )

    def open(self, catalog: Catalog, *, check_source: bool) -> Reader:
        from pp_export.checkpoint.file_reader import FileReader  # who only describes needs none

        return FileReader(catalog, check_source=check_source)


def num_ranks(folder: Path) -> int:
    """How many ranks have written the files of this kind that are in `folder`; 0 where there are none."""
    return len({match[1] for name in _names(folder) if (match := _FILE.fullmatch(name))})


def _names(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if _FILE.fullmatch(name))
    except OSError:
        return []


def _check_names(folder: Path, names: Collection[str], expected: int | None) -> set[int]:
    """The ranks, from 1, that the names tell of. Raises CheckpointError where they are of several saves, or
    not those of the `expected` number of ranks.
    """
    found = [match for name in names if (match := _FILE.fullmatch(name))]
    ranks, totals = {int(match[1]) for match in found}, {int(match[3]) for match in found}
    findings = []
    if len(totals) > 1:
        findings.append(f"files of saves in {' and in '.join(map(str, sorted(totals)))} parts lie together")
    for rank in sorted(set(range(1, (expected or 0) + 1)) - ranks):
        findings.append(f"shard-{rank:05d}-*: rank {rank - 1} of {expected} has no file here")
    for rank in sorted(ranks - set(range(1, expected + 1))) if expected is not None else ():
        findings.append(f"shard-{rank:05d}-*: {expected} ranks have no rank {rank - 1}")
    if findings:
        raise CheckpointError(
            "the files are not those of one save",
            where={"folder": folder},
            expected=None if expected is None else f"files of {expected} ranks (--input-ranks)",
            got=f"files of {len(ranks)} ranks",
            advice=_ADVICE,
            findings=findings,
        )
    return ranks


def _reach(headers: Collection[Mapping[str, _Entry]]) -> dict[str, Shape]:
    """How far the pieces of each tensor reach."""
    found: dict[str, Shape] = {}
    for entries in headers:
        for key, (box, *_) in entries.items():
            ends = tuple(begin + size for begin, size in zip(box.offset, box.shape))
            before = found.get(key, ends)
            # Pieces of other rank are a fault that is found when all are put together.
            found[key] = tuple(map(max, before, ends)) if len(before) == len(ends) else before
    return found


def _entries(path: Path) -> dict[str, _Entry]:
    """The pieces in a file, by key; CheckpointError where it is damaged, truncated or of another kind."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_PREFIX_BYTES), "little")
            if size < _PREFIX_BYTES + length or length > _MAX_HEADER_BYTES:
                raise CheckpointError(
                    "the file is truncated, or not a safetensors file",
                    expected=f"a header of {length:,} bytes",
                    got=f"{size:,} bytes",
                    advice=_ADVICE,
                )
            header = parse_object(file.read(length))
        return _parsed(header, _PREFIX_BYTES + length, size)
    except CheckpointError as error:
        raise error.at(file=path) from None
    except OSError as error:
        raise CheckpointError(f"can't read: {error.strerror}", where={"file": path}) from error
    except (JsonError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"the file's header is damaged: {error}", where={"file": path}, advice=_ADVICE
        ) from error


def _parsed(header: dict[str, Any], data_begin: int, size: int) -> dict[str, _Entry]:
    metadata = header.pop("__metadata__", None) or {}
    if _INFO not in metadata:
        raise CheckpointError(
            "the file doesn't say which part of its tensors it holds",
            expected=f"{_INFO} in its header, as torch's HuggingFaceStorageWriter writes",
            advice="save with save_distributed=True; a folder of whole tensors needs no consolidation",
        )
    info = parse_object(metadata[_INFO].encode())
    entries = {key: _entry(value, info[key][_OFFSETS], data_begin) for key, value in header.items()}
    end = max((entry.begin + entry.length for entry in entries.values()), default=data_begin)
    if end != size:
        raise CheckpointError(
            "the file is truncated" if end > size else "the file goes on behind its last tensor",
            expected=f"{end:,} bytes",
            got=f"{size:,} bytes",
            advice=_ADVICE,
        )
    if sum(entry.length for entry in entries.values()) != size - data_begin:
        raise ValueError("its tensors overlap, or leave gaps")
    return entries


def _entry(value: Any, offset: Any, data_begin: int) -> _Entry:
    dtype, (begin, end), shape = (
        dtypes.from_safetensors(value["dtype"]),
        value["data_offsets"],
        value["shape"],
    )
    if dtype is None:
        raise ValueError(f"element type {value['dtype']!r} is not supported")
    numbers = (*shape, *offset, begin, end)
    if not all(map(is_count, numbers)) or len(shape) != len(offset):
        raise ValueError(f"shape {shape} at {offset}, bytes {begin} to {end}: no piece of a tensor")
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{end - begin} bytes for {dtype.torch_name}{list(shape)}")
    return _Entry(Box(tuple(offset), tuple(shape)), dtype, data_begin + begin, end - begin)
