"""The entries of a `.metadata` file: which box of which tensor lies where in the `.distcp` files.

It is a pickle and is read as data. Content is never inferred from a file's name: any rank may have written
any box.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from pp_export.checkpoint.catalog import StoredBox, StoredItem, StoredTensor
from pp_export.core import dtypes
from pp_export.core.errors import CheckpointError
from pp_export.core.tensors import Box, check_coverage

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.distcp")
_KEY = re.compile(r"[A-Za-z0-9_.\-]+")
_OPTIMIZER = re.compile(r"^(chained_\d+\.)?optimizer\.")
_MASTER = re.compile(_OPTIMIZER.pattern + r"state\.(?:fp32_param|param)\.(?P<key>.+)")
"""As megatron/core/optimizer stores the float32 weights that it updates, in their own shapes."""
_ADVICE = "save with --dist-ckpt-optim-fully-reshardable, or leave --weights master out"
_MAX_SHOWN = 5
OnFault = Callable[[CheckpointError], None]


@contextmanager
def telling(on_fault: OnFault | None) -> Iterator[None]:
    """Tell a CheckpointError to `on_fault`, and go on behind what raised it; without, it is raised."""
    try:
        yield
    except CheckpointError as error:
        if on_fault is None:
            raise
        on_fault(error)


class StoredInfo(NamedTuple):
    """Where in which file an entry lies, and what it went through on the way there."""

    relative_path: Any
    offset: Any
    length: Any
    transform_descriptors: Any


class StoredEntries:
    """The entries of `.metadata`, sorted into tensors of the model (by key), items that are no tensors, and
    the rest, as `kind_of_other` says of a key and of whether it is a tensor's: None for the model's. `infos`
    says by (key, offset) where each of them lies; `files` and `stored_items` are those of the tensors that
    were asked for. With `masters`, the optimizer's float32 weights stand for those of the model that it has;
    `stands_for` says by key which one a tensor is, and `notes` what the optimizer lacks. With `on_fault`,
    tensors need not be filled by their boxes, and it is told of those that are stored nowhere.
    """

    def __init__(
        self,
        metadata: Any,
        kind_of_other: Callable[[str, bool], str | None] | None = None,
        *,
        masters: bool = False,
        on_fault: OnFault | None = None,
    ) -> None:
        self._on_fault = on_fault
        self.infos = dict(map(_info, metadata.storage_data.items()))
        self._shapes = _shapes_before_flattening(metadata)
        self._boxes: dict[Box, Box] = {}  # of a million, most are equal to another
        self.files: dict[str, int] = {}
        self.stored_items: list[StoredItem] = []
        self.tensors: dict[str, Any] = {}
        self.items: dict[str, tuple[str, int, int]] = {}
        counted: defaultdict[str, list[int]] = defaultdict(list)
        for key, meta in metadata.state_dict_metadata.items():
            is_tensor = meta.kind.endswith(".TensorStorageMetadata")
            kind = (kind_of_other or _kind_of_other)(key, is_tensor)
            if kind is None:
                self.tensors[key] = meta
                continue
            boxes = [tuple(box.offsets) for box in meta.chunks] if is_tensor else [None]
            counted[kind] += [self.infos[key, box].length for box in boxes if (key, box) in self.infos]
            if not is_tensor and (info := self.infos.get((key, None))) is not None:
                self.items[key] = (file_name(info.relative_path), int(info.offset), int(info.length))
        self.other = {kind: (len(sizes), sum(sizes)) for kind, sizes in sorted(counted.items())}
        self.stands_for = {key: key for key in self.tensors}
        self.notes: tuple[str, ...] = ()
        if masters:
            self._take_masters(metadata)

    def _take_masters(self, metadata: Any) -> None:
        """Put the optimizer's weights in the place of the model's."""
        held = {}
        for key, meta in metadata.state_dict_metadata.items():
            match = _MASTER.match(key)
            if match is not None and match["key"] in self.tensors and hasattr(meta, "chunks"):
                held[match["key"]] = key, meta
        if not held:
            raise CheckpointError(
                "the checkpoint holds no float32 weights of an optimizer under the parameters' names",
                expected="optimizer.state.fp32_param.NAME or optimizer.state.param.NAME",
                got=f"{self.other.get('optimizer', (0, 0))[0]} entries of an optimizer",
                advice=_ADVICE,
            )
        findings = [
            f"{name}: {list(self.tensors[name].size)} in the model, {list(meta.size)} in the optimizer"
            for name, (_, meta) in held.items()
            if tuple(meta.size) != tuple(self.tensors[name].size)
        ]
        if findings:
            raise CheckpointError(
                "the optimizer's weights have other shapes than the model's, because they are stored flat",
                advice=_ADVICE,
                findings=findings,
            )
        others = sorted(self.tensors.keys() - held.keys())
        for name, (key, meta) in held.items():
            del self.tensors[name], self.stands_for[name]
            self.tensors[key], self.stands_for[key] = meta, name
        told = ", ".join(others[:_MAX_SHOWN]) + (", ..." if len(others) > _MAX_SHOWN else "")
        left = f"; {len(others)} that it doesn't train are the model's: {told}" if others else ""
        self.notes = (f"{len(held)} tensors are the optimizer's own weights (--weights master){left}.",)

    def tensor(self, key: str, name: str) -> StoredTensor:
        """The tensor stored under `key`, called `name`, with its boxes proved to fill it."""
        if not _KEY.fullmatch(key):
            raise CheckpointError(
                "a stored key has characters that no parameter name has", got=repr(key[:200])
            )
        meta = self.tensors[key]
        properties = meta.properties
        state = properties.__dict__.get("state")  # a tuple of five fields, of six since torch 2.15
        dtype = dtypes.from_torch(str(state[0] if isinstance(state, tuple) else properties.dtype))
        shape = tuple(meta.size)
        if self._shapes.get(key, shape) != shape:
            raise CheckpointError(
                "the tensor is stored flattened, as megatron-core's early FSDP did",
                where={"tensor": key},
                expected=f"shape {list(self._shapes[key])}",
                got=f"shape {list(shape)}",
                advice="load and save it once with the release that wrote it and without FSDP",
            )
        parts = [part for part in map(_fields, meta.chunks) if 0 not in part["sizes"]]  # FSDP has empty ones
        boxes = []
        for part in parts:
            with telling(self._on_fault):
                boxes.append(self._box(key, part, dtype.itemsize))
        if self._on_fault is None:
            check_coverage(key, shape, [stored.box for stored in boxes])
        return StoredTensor(name, shape, dtype, tuple(boxes))

    def _box(self, key: str, part: Mapping[str, Any], itemsize: int) -> StoredBox:
        box = Box(tuple(part["offsets"]), tuple(part["sizes"]))
        box = self._boxes.setdefault(box, box)
        info = self.infos.get((key, box.offset))
        if info is None:
            raise CheckpointError(
                "a slice of the tensor is stored nowhere", where={"tensor": key}, got=f"offset {box.offset}"
            )
        if info.transform_descriptors:
            raise CheckpointError(
                "the tensor is stored through a transform (compression or encryption)",
                where={"tensor": key},
                got=info.transform_descriptors,
                advice="save the checkpoint without the storage writer's extensions",
            )
        if info.length < box.volume * itemsize:  # before anybody plans memory for it
            raise CheckpointError(
                "a slice of the tensor needs more bytes than are stored for it",
                where={"tensor": key, "file": file_name(info.relative_path)},
                expected=f"at least {box.volume * itemsize} bytes",
                got=f"{info.length}, for the box at {list(box.offset)}",
                advice=".metadata is damaged or of another save: copy it again, or take another iteration",
            )
        file = self.files.get(info.relative_path)
        if file is None:
            file = self.files[file_name(info.relative_path)] = len(self.files)
        self.stored_items.append(StoredItem(file, int(info.offset), int(info.length)))
        return StoredBox(box, len(self.stored_items) - 1)


def _info(entry: tuple[Any, Any]) -> tuple[tuple[Any, Any], StoredInfo]:
    """An entry of `storage_data`: its key and offset, and where it lies."""
    index, where = _fields(entry[0]), _fields(entry[1])
    offset = index.get("offset")
    return (index["fqn"], None if offset is None else tuple(offset)), StoredInfo(
        where["relative_path"], where["offset"], where["length"], where.get("transform_descriptors")
    )


def _fields(record: Any) -> Mapping[str, Any]:
    """All fields of an object that torch pickled, taken at once: there are millions of them."""
    found: Mapping[str, Any] | None = record.attributes()
    if found is None:
        raise ValueError(f"{record!r} has no fields")
    return found


def file_name(path: Any) -> str:
    """The name of a stored file, proved to be one in the folder; CheckpointError where it is none."""
    name = str(path)
    if not _FILE_NAME.fullmatch(name):
        raise CheckpointError(
            ".metadata names a file outside the checkpoint, or with unusual characters", got=repr(name[:200])
        )
    return name


def _shapes_before_flattening(metadata: Any) -> dict[str, tuple[int, ...]]:
    """What `mcore_data` (megatron-core 0.8 to 0.15) says of tensors that it stored in another shape."""
    data = metadata.get("mcore_data") or {}
    shapes = ((key, entry.get("nd_reformulated_orig_global_shape")) for key, entry in data.items())
    return {key: tuple(shape) for key, shape in shapes if shape is not None}


def _kind_of_other(key: str, is_tensor: bool) -> str | None:
    """What an item is when it is no model weight."""
    if _OPTIMIZER.match(key):
        return "optimizer"
    kinds = ("_extra_state", "rng_state", "rerun_state")
    kind = next((kind for kind in kinds if kind in key), None)
    return kind or (None if is_tensor else "other objects")
