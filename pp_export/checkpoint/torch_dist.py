"""Reads torch_dist, the format of megatron-core's dist_checkpointing, without megatron and without torch's
loaders.

`.metadata` says which box of which tensor lies where in the `.distcp` files; `common.pt` holds the training
args. Both are pickles and are read as data. Content is never inferred from a file's name: any rank may have
written any box.
"""

from __future__ import annotations

import itertools
import os
import re
import threading
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from isal import isal_zlib

from pp_export import dtypes
from pp_export.checkpoint import locate, record, unpickle
from pp_export.checkpoint.canonical import canonical
from pp_export.checkpoint.catalog import Catalog, Description, StoredBox, StoredTensor
from pp_export.errors import CheckpointError
from pp_export.tensors import Box, Slice, TensorSpec, check_coverage

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.distcp")
_KEY = re.compile(r"[A-Za-z0-9_.\-]+")
_OPTIMIZER = re.compile(r"^(chained_\d+\.)?optimizer\.")


def read_catalog(checkpoint: Path, iteration: int | None) -> Catalog:
    """Everything that is stored, without values; called on rank 0 only.

    Every weight is proved to be covered exactly by its stored boxes, and every box to lie inside an existing
    file.
    """
    folder = locate.iteration_folder(checkpoint, iteration)
    locate.require_torch_dist(folder)
    metadata = unpickle.load(_read(folder / ".metadata"), str(folder / ".metadata"))
    try:
        return _catalog(folder, metadata)
    except CheckpointError:
        raise
    except Exception as error:  # whatever a pickle of something else leads to
        raise CheckpointError(
            f".metadata is not what torch writes: {error!r}", where={"file": folder / ".metadata"}
        ) from error


def _catalog(folder: Path, metadata: Any) -> Catalog:
    stored_at = {
        (index.fqn, None if index.get("offset") is None else tuple(index.offset)): info
        for index, info in metadata.storage_data.items()
    }
    files: dict[str, int] = {}
    tensors: list[StoredTensor] = []
    other: defaultdict[str, list[int]] = defaultdict(list)
    for key, meta in sorted(metadata.state_dict_metadata.items()):
        is_tensor = meta.kind.endswith(".TensorStorageMetadata")
        kind = _kind_of_other(key, is_tensor)
        if kind is not None:
            boxes = [tuple(box.offsets) for box in meta.chunks] if is_tensor else [None]
            other[kind] += [stored_at[key, box].length for box in boxes if (key, box) in stored_at]
            continue
        tensors.append(_stored_tensor(key, meta, stored_at, files))
    catalog = Catalog(
        Description(
            folder=str(folder),
            format="torch_dist",
            iteration=locate.iteration_of(folder),
            args=_read_args(folder),
            other={kind: (len(sizes), sum(sizes)) for kind, sizes in sorted(other.items())},
            stacked=any(".layers." in t.key and not re.search(r"\.layers\.\d", t.key) for t in tensors),
        ),
        tuple(files),
        tuple(tensors),
    )
    _check_names(catalog)
    _check_files(folder, catalog)
    return catalog


def _kind_of_other(key: str, is_tensor: bool) -> str | None:
    """What an item is when it is no model weight."""
    if _OPTIMIZER.match(key):
        return "optimizer"
    if is_tensor:
        return None
    return next(
        (kind for kind in ("_extra_state", "rng_state", "rerun_state") if kind in key), "other objects"
    )


def _stored_tensor(
    key: str, meta: Any, stored_at: Mapping[tuple[str, Any], Any], files: dict[str, int]
) -> StoredTensor:
    if not _KEY.fullmatch(key):
        raise CheckpointError("a stored key has characters that no parameter name has", got=repr(key[:200]))
    properties = meta.properties
    state = properties.__dict__.get("state")
    dtype = dtypes.from_torch(str(state[0] if isinstance(state, tuple) else properties.dtype))
    shape = tuple(meta.size)
    boxes = []
    for part in meta.chunks:
        box = Box(tuple(part.offsets), tuple(part.sizes))
        info = stored_at.get((key, box.offset))
        if info is None:
            raise CheckpointError(
                "a box of a tensor is stored nowhere", where={"tensor": key}, got=f"offset {box.offset}"
            )
        if info.get("transform_descriptors"):
            raise CheckpointError(
                "the tensor is stored through a transform (compression or encryption)",
                where={"tensor": key},
                got=info.transform_descriptors,
            )
        path = str(info.relative_path)
        if not _FILE_NAME.fullmatch(path):
            raise CheckpointError(
                "a stored file's name leaves the checkpoint or is unusual", got=repr(path[:200])
            )
        boxes.append(StoredBox(box, files.setdefault(path, len(files)), int(info.offset), int(info.length)))
    check_coverage(key, shape, [stored.box for stored in boxes])
    return StoredTensor(key, shape, dtype, tuple(boxes))


def _check_names(catalog: Catalog) -> None:
    """Stacked and single keys must not give one canonical name twice."""
    counts = Counter(name for t in catalog.tensors for name in canonical(t.key).names(t.shape))
    doubled = sorted(name for name, count in counts.items() if count > 1)
    if doubled:
        raise CheckpointError("tensors are stored twice, stacked and single", findings=doubled)


def _check_files(folder: Path, catalog: Catalog) -> None:
    """Every file that holds a weight is there and long enough, and no two weights share a byte of it."""
    stored_in: defaultdict[int, list[tuple[int, int, str]]] = defaultdict(list)
    for tensor, stored in catalog.records:
        stored_in[stored.file].append((stored.offset, stored.offset + stored.length, tensor.key))
    findings = []
    for number, items in sorted(stored_in.items()):
        path = folder / catalog.files[number]
        needed = max(end for _, end, _ in items)
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            findings.append(f"{path.name} is missing")
        elif size < needed:
            findings.append(f"{path.name} is truncated: {size} bytes, at least {needed} needed")
        items.sort()
        findings += [
            f"{path.name}: {key} and {other} are stored in the same bytes"
            for (_, end, key), (begin, _, other) in itertools.pairwise(items)
            if begin < end
        ]
    if findings:
        raise CheckpointError(
            "files of the checkpoint are missing, truncated or not what .metadata says",
            where={"folder": folder},
            advice="copy the checkpoint again; a rank's node may not have written to the shared filesystem",
            findings=findings,
        )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"can't read: {error.strerror}", where={"file": path}) from error


def _read_args(folder: Path) -> dict[str, Any] | None:
    """The training args of `common.pt` as JSON values; None where it holds none."""
    path = folder / "common.pt"
    if not path.exists():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            common = unpickle.load(archive.read(name), str(path))
        args = common.get("args") if isinstance(common, dict) else None
        state = args.__dict__.get("state") if isinstance(args, unpickle.Record) else None
        return {k: unpickle.plain(v) for k, v in state.items()} if isinstance(state, dict) else None
    except CheckpointError:
        raise
    except Exception as error:  # a damaged archive can raise nearly anything
        raise CheckpointError(f"common.pt can't be read: {error!r}", where={"file": path}) from error


class TorchDistReader:
    """Open `.distcp` files of one rank. Slices of one record must be read in the order of their bytes.

    The CRC-32 that torch stored with a record runs along with the reads and is compared when the last byte is
    in.
    """

    def __init__(self, catalog: Catalog, *, check_source: bool) -> None:
        self._catalog, self._check_source = catalog, check_source
        self._folder = Path(catalog.description.folder)
        self._descriptors: dict[int, int] = {}
        self._open: dict[int, tuple[record.StoredBytes, int, int]] = {}
        self._lock = threading.Lock()

    def read(self, piece: Slice, into: memoryview) -> None:
        """Fill `into` (exactly the slice's bytes) from the file."""
        tensor, stored = self._catalog.records[piece.record]
        try:
            self._read(piece, tensor, stored, into)
        except CheckpointError as error:
            raise error.at(tensor=piece.name, file=self._folder / self._catalog.files[stored.file]) from error

    def _read(self, piece: Slice, tensor: StoredTensor, stored: StoredBox, into: memoryview) -> None:
        descriptor = self._descriptor(stored.file)
        with self._lock:
            located, expected_begin, crc = self._open.pop(piece.record, (None, 0, 0))
        if located is None:
            spec = TensorSpec(stored.box.shape, tensor.dtype)
            located = record.locate(descriptor, stored.offset, stored.length, spec)
        _read_fully(descriptor, located.offset + piece.begin, into)
        if not self._check_source:
            return
        if piece.begin != expected_begin:
            raise AssertionError(f"{piece.name}: slices of record {piece.record} are read out of order")
        crc, end = isal_zlib.crc32(into, crc), piece.begin + piece.num_bytes
        if end < located.num_bytes:
            with self._lock:
                self._open[piece.record] = (located, end, crc)
        elif crc != located.crc:
            raise CheckpointError(
                "the stored bytes are damaged: their CRC-32 is not the one that torch stored with them",
                expected=f"{located.crc:08x}",
                got=f"{crc:08x}",
                advice="restore the file from another copy of the checkpoint, or take another iteration",
            )

    def check_finished(self) -> None:
        """Raise if some record was read in part only: then its CRC was never compared."""
        if self._open and self._check_source:
            parts = sorted({self._catalog.records[number][0].key for number in self._open})
            raise CheckpointError("records were read in part, so their CRC-32 is unknown", findings=parts)

    def __enter__(self) -> TorchDistReader:
        return self

    def __exit__(self, *exception: object) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def _descriptor(self, file: int) -> int:
        with self._lock:
            if file not in self._descriptors:
                path = self._folder / self._catalog.files[file]
                try:
                    self._descriptors[file] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except OSError as error:
                    raise CheckpointError(f"can't open: {error.strerror}") from error
            return self._descriptors[file]


def _read_fully(descriptor: int, offset: int, into: memoryview) -> None:
    done = 0
    read: Callable[[int, list[memoryview], int], int] = os.preadv
    while done < len(into):
        try:
            count = read(descriptor, [into[done:]], offset + done)
        except OSError as error:
            raise CheckpointError(f"reading failed: {error.strerror}") from error
        if count == 0:
            raise CheckpointError("the file ends inside a tensor", expected=len(into), got=done)
        done += count
