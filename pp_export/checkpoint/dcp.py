"""What a folder in the format of torch.distributed.checkpoint (DCP) holds, read without torch's loaders.

`.metadata` says which box of which tensor lies where in the `.distcp` files. It is a pickle and is read as
data. Content is never inferred from a file's name: any rank may have written any box. megatron-core's
torch_dist, Megatron-Bridge, NeMo 2, fsdp_dtensor and torch_dcp all store this way; they differ in keys and in
where the training args are.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pp_export.checkpoint import locate, training_args
from pp_export.checkpoint.canonical_names import canonical, framework_prefix, spelled
from pp_export.checkpoint.catalog import Catalog, Description, Interleave, StoredBox, StoredItem, StoredTensor
from pp_export.core import dtypes
from pp_export.core.errors import CheckpointError
from pp_export.core.tensors import Box, check_coverage
from pp_export.torch_file import unpickler

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.distcp")
_KEY = re.compile(r"[A-Za-z0-9_.\-]+")
_OPTIMIZER = re.compile(r"^(chained_\d+\.)?optimizer\.")
_ADAPTER = re.compile(r"\.adapters?\.|lora_")


def read_catalog(folder: Path) -> Catalog:
    """Everything that is stored, without values; called on rank 0 only.

    Every weight is proved to be covered exactly by its stored boxes, and every box to lie inside an existing
    file.
    """
    metadata = unpickler.load(locate.read(folder / ".metadata"), str(folder / ".metadata"))
    try:
        return _catalog(folder, metadata)
    except CheckpointError:
        raise
    except Exception as error:  # whatever a pickle of something else leads to
        raise CheckpointError(
            f".metadata is not what torch writes: {error!r}", where={"file": folder / ".metadata"}
        ) from error


def _catalog(folder: Path, metadata: Any) -> Catalog:
    stored = _Stored(metadata)
    is_by_megatron = any(key.startswith(training_args.COMMON_STATE) for key in stored.items)
    if is_by_megatron and not (folder / "metadata.json").is_file():
        raise locate.unfinished(folder)
    if stored.tensors and all(_ADAPTER.search(key) for key in stored.tensors):
        raise CheckpointError(
            "the checkpoint holds an adapter (LoRA) only, as a run of Megatron-Bridge's PEFT saves it",
            where={"folder": folder},
            got=f"{len(stored.tensors)} tensors, all of adapters",
            advice="merge it into the base model's weights, save those, and export them",
        )
    found = training_args.read(folder, stored.items)
    # Bridge undoes the interleaving when it saves.
    interleave = training_args.interleave_of(None if found.is_bridge else found.args)
    prefix = framework_prefix(stored.tensors)
    halves: defaultdict[str, dict[int | None, StoredTensor]] = defaultdict(dict)
    for key in sorted(stored.tensors):
        name, half = spelled(key.removeprefix(prefix))
        if half in halves[name]:
            raise CheckpointError("two stored keys name one tensor", where={"tensor": name}, got=key)
        halves[name][half] = stored.tensor(key, name)
    tensors = tuple(_fused(name, parts, interleave(name)) for name, parts in sorted(halves.items()))
    description = Description(
        folder=str(folder),
        format=locate.dcp_format(folder, found.args),
        writer=", ".join((*found.writer, *_writer(metadata, stored))) or "unknown",
        iteration=found.iteration if found.iteration is not None else locate.iteration_of(folder),
        args=found.args,
        layout=found.layout,
        other=stored.other,
    )
    catalog = Catalog(description, tuple(stored.files), tuple(stored.stored_items), tensors)
    catalog.check_names()
    _check_files(folder, catalog)
    return catalog


class _Stored:
    """The entries of `.metadata`, sorted into tensors of the model (by key), items that are no tensors, and
    the rest. `files` and `records` are those of the tensors that were asked for.
    """

    def __init__(self, metadata: Any) -> None:
        self._infos = {
            (index.fqn, None if index.get("offset") is None else tuple(index.offset)): info
            for index, info in metadata.storage_data.items()
        }
        self._shapes = _shapes_before_flattening(metadata)
        self.files: dict[str, int] = {}
        self.stored_items: list[StoredItem] = []
        self.tensors: dict[str, Any] = {}
        self.items: dict[str, tuple[str, int, int]] = {}
        counted: defaultdict[str, list[int]] = defaultdict(list)
        for key, meta in metadata.state_dict_metadata.items():
            is_tensor = meta.kind.endswith(".TensorStorageMetadata")
            kind = _kind_of_other(key, is_tensor)
            if kind is None:
                self.tensors[key] = meta
                continue
            boxes = [tuple(box.offsets) for box in meta.chunks] if is_tensor else [None]
            counted[kind] += [self._infos[key, box].length for box in boxes if (key, box) in self._infos]
            if not is_tensor and (info := self._infos.get((key, None))) is not None:
                self.items[key] = (_file_name(info), int(info.offset), int(info.length))
        self.other = {kind: (len(sizes), sum(sizes)) for kind, sizes in sorted(counted.items())}

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
        boxes = tuple(self._box(key, Box(tuple(part.offsets), tuple(part.sizes))) for part in meta.chunks)
        check_coverage(key, shape, [stored.box for stored in boxes])
        return StoredTensor(name, shape, dtype, boxes)

    def _box(self, key: str, box: Box) -> StoredBox:
        info = self._infos.get((key, box.offset))
        if info is None:
            raise CheckpointError(
                "a box of a tensor is stored nowhere", where={"tensor": key}, got=f"offset {box.offset}"
            )
        if info.get("transform_descriptors"):
            raise CheckpointError(
                "the tensor is stored through a transform (compression or encryption)",
                where={"tensor": key},
                got=info.transform_descriptors,
                advice="save the checkpoint without the storage writer's extensions",
            )
        file = self.files.setdefault(_file_name(info), len(self.files))
        self.stored_items.append(StoredItem(file, int(info.offset), int(info.length)))
        return StoredBox(box, len(self.stored_items) - 1)


def _file_name(info: Any) -> str:
    path = str(info.relative_path)
    if not _FILE_NAME.fullmatch(path):
        raise CheckpointError(
            "a stored file's name leaves the checkpoint or is unusual", got=repr(path[:200])
        )
    return path


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


def _fused(
    name: str, parts: Mapping[int | None, StoredTensor], interleave: Interleave | None
) -> StoredTensor:
    """The tensor `name` of its stored halves, gate rows first, or as it is."""
    if None in parts and len(parts) == 1:
        return replace(parts[None], interleave=interleave)
    if set(parts) != {0, 1} or parts[0].shape != parts[1].shape or parts[0].dtype != parts[1].dtype:
        raise CheckpointError(
            "the halves of a fused gate and up projection do not belong together",
            where={"tensor": name},
            expected="weight_w and weight_v, of one shape and type",
            got=", ".join(f"{'whole' if h is None else 'wv'[h]} {list(p.shape)}" for h, p in parts.items()),
        )
    gate, up = parts[0], parts[1]
    axis = canonical(name).num_stacked
    rows = gate.shape[axis]
    moved = [StoredBox(_shifted(b.box, axis, rows), b.item, b.begin, b.strides) for b in up.boxes]
    shape = (*gate.shape[:axis], 2 * rows, *gate.shape[axis + 1 :])
    return StoredTensor(name, shape, gate.dtype, (*gate.boxes, *moved), interleave)


def _shifted(box: Box, axis: int, by: int) -> Box:
    return Box((*box.offset[:axis], box.offset[axis] + by, *box.offset[axis + 1 :]), box.shape)


def _writer(metadata: Any, stored: _Stored) -> list[str]:
    """What `.metadata` gives away of the releases that wrote it."""
    signs = []
    if any(key.startswith(training_args.COMMON_STATE) for key in stored.items):
        signs.append("megatron-core 0.19 or newer")
    elif metadata.kind.startswith("megatron.") or metadata.get("mcore_data") is not None:
        signs.append("megatron-core 0.8 to 0.15")
    elif metadata.get("all_local_plans") is not None:
        signs.append("megatron-core 0.16 to 0.18")
    states = (meta.properties.__dict__.get("state") for meta in stored.tensors.values())
    if any(isinstance(state, tuple) and len(state) > 5 for state in states):
        signs.append("torch 2.15 or newer")
    return signs


def _check_files(folder: Path, catalog: Catalog) -> None:
    """Every file that holds a weight is there and long enough, and no two weights share a byte of it."""
    stored_in: defaultdict[int, list[tuple[int, int, str]]] = defaultdict(list)
    for number, record in enumerate(catalog.stored_items):
        item = (record.offset, record.offset + record.length, catalog.key_of_item[number])
        stored_in[record.file].append(item)
    findings: list[str] = []
    for number, items in sorted(stored_in.items()):
        findings += _file_faults(folder / catalog.files[number], sorted(items))
    if findings:
        raise CheckpointError(
            "files of the checkpoint are missing, truncated or not what .metadata says",
            where={"folder": folder},
            advice="copy the checkpoint again; a rank's node may not have written to the shared filesystem",
            findings=findings,
        )


def _file_faults(path: Path, items: list[tuple[int, int, str]]) -> Iterable[str]:
    needed = max(end for _, end, _ in items)
    size = path.stat().st_size if path.is_file() else None
    if size is None:
        yield f"{path.name} is missing"
    elif size < needed:
        yield f"{path.name} is truncated: {size} bytes, at least {needed} needed"
    for (_, end, key), (begin, _, other) in itertools.pairwise(items):
        if begin < end:
            yield f"{path.name}: {key} and {other} are stored in the same bytes"
