"""The model that a folder of DCP holds, with every weight proved to be covered and every file to be there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pp_export.architecture.adapter_names import is_of_adapter
from pp_export.checkpoint import adapters, locate, training_args
from pp_export.checkpoint.canonical_names import (
    canonical,
    check_sections,
    framework_prefix,
    in_order,
    spelled,
)
from pp_export.checkpoint.catalog import Catalog, Description, Interleave, StoredBox, StoredTensor
from pp_export.checkpoint.dcp import metadata_json
from pp_export.checkpoint.dcp.metadata import OnFault, StoredEntries, telling
from pp_export.checkpoint.dcp.places import check_places
from pp_export.core.errors import CheckpointError
from pp_export.core.tensors import Box
from pp_export.torch_file import unpickler

READER = "DCP"


def read_catalog(folder: Path, *, masters: bool = False, on_fault: OnFault | None = None) -> Catalog:
    """Everything that is stored, without values; called on rank 0 only.

    With `masters`, the optimizer's float32 weights in place of the model's. Every weight is proved to be
    covered exactly by its stored boxes, and every box to lie inside an existing file; with `on_fault` that is
    told what lies nowhere, and the rest is described as it is.
    """
    data = locate.read_small(folder / ".metadata", unpickler.MAX_BYTES)
    metadata = unpickler.load(data, str(folder / ".metadata"))
    try:
        return _catalog(folder, metadata, masters, on_fault)
    except CheckpointError:
        raise
    except Exception as error:  # whatever a pickle of something else leads to
        raise CheckpointError(
            f".metadata is not what torch writes: {error!r}", where={"file": folder / ".metadata"}
        ) from error


def unfinished(folder: Path) -> CheckpointError:
    """For a save of megatron-core without metadata.json, which comes last of all and tells it from plain
    DCP.
    """
    return CheckpointError(
        "the checkpoint has no metadata.json: the save is unfinished",
        where={"folder": folder},
        advice="wait for an asynchronous save to end, or take an earlier iteration",
    )


def _format_name(folder: Path, args: Mapping[str, Any] | None) -> str:
    """`torch_dist`, or what the training args say of a plain folder."""
    if (folder / "metadata.json").is_file():
        return "torch_dist"
    return str((args or {}).get("ckpt_format") or "plain DCP")


def _catalog(folder: Path, metadata: Any, masters: bool, on_fault: OnFault | None) -> Catalog:
    stored = StoredEntries(metadata, masters=masters, on_fault=on_fault)
    is_by_megatron = any(key.startswith(training_args.COMMON_STATE) for key in stored.items)
    is_sharded_by_megatron = (folder / "metadata.json").is_file()  # torch_dist
    if is_by_megatron and not is_sharded_by_megatron:
        raise unfinished(folder)
    _check_common(folder, stored)
    notes: tuple[str, ...] = ()
    with telling(on_fault):
        notes = check_places(folder, stored.infos, stored.tensors)
    found = training_args.read(folder, stored.items)
    # Bridge undoes the interleaving when it saves.
    interleave = training_args.interleave_of(None if found.is_disentangled else found.args)
    prefix = framework_prefix(stored.stands_for.values())
    parts: defaultdict[str, dict[str | None, StoredTensor]] = defaultdict(dict)
    for key in sorted(stored.tensors):
        name, part = spelled(stored.stands_for[key].removeprefix(prefix))
        name = adapters.named(name, len(stored.tensors[key].size))
        if part in parts[name]:
            raise CheckpointError("several stored keys name one tensor", where={"tensor": name}, got=key)
        tensor = stored.tensor(key, name)
        parts[name][part] = adapters.in_row_order(tensor, key, canonical(name).num_stacked, found.args)
    adapters.check_shared(parts, found.args)
    if is_sharded_by_megatron or found.layout.get("tensor_model_parallel_size") != 1:
        check_sections(name for name, of_name in sorted(parts.items()) if None in of_name)
    tensors = tuple(_fused(name, of_name, interleave(name)) for name, of_name in sorted(parts.items()))
    description = Description(
        folder=str(folder),
        format=_format_name(folder, found.args),
        writer=", ".join((*found.writer, *_writer(metadata, stored))) or "unknown",
        iteration=found.iteration if found.iteration is not None else locate.iteration_of(folder),
        args=found.args,
        layout=found.layout,
        other=stored.other,
        notes=(*found.notes, *stored.notes, *notes, *locate.renamed(folder, found.iteration)),
        reader=READER,
        weights="master" if masters else "model",
        lora=adapters.settings(folder, found.args) if any(map(is_of_adapter, parts)) else None,
    )
    catalog = Catalog(description, tuple(stored.files), tuple(stored.stored_items), tensors)
    catalog.check_names()
    return catalog


def _fused(
    name: str, parts: Mapping[str | None, StoredTensor], interleave: Interleave | None
) -> StoredTensor:
    """The tensor `name` of its parts, one behind the other, or as it is."""
    if None in parts and len(parts) == 1:
        whole = parts[None]
        return whole if interleave is None else replace(whole, interleave=interleave)
    axis = canonical(name).num_stacked
    order = in_order(parts)
    kinds = {(p.dtype, *p.shape[:axis], *p.shape[axis + 1 :]) for p in parts.values()}
    rows = {part: tensor.shape[axis] for part, tensor in parts.items() if len(tensor.shape) > axis}
    are_halves_equal = order is None or len(order) > 2 or len(set(rows.values())) == 1
    if order is None or len(kinds) > 1 or len(rows) < len(order) or not are_halves_equal:
        raise CheckpointError(
            "the parts of a tensor that is stored in parts do not belong together",
            where={"tensor": name},
            expected="all of them, equal but for their rows; weight_w and weight_v also in these",
            got=", ".join(f"{part or 'whole'} {list(p.shape)}" for part, p in parts.items()),
        )
    boxes: list[StoredBox] = []
    begin = 0
    for part in order:
        boxes += [b._replace(box=_shifted(b.box, axis, begin)) for b in parts[part].boxes]
        begin += rows[part]
    first = parts[order[0]]
    shape = (*first.shape[:axis], begin, *first.shape[axis + 1 :])
    return StoredTensor(name, shape, first.dtype, tuple(boxes), interleave)


def _shifted(box: Box, axis: int, by: int) -> Box:
    return Box((*box.offset[:axis], box.offset[axis] + by, *box.offset[axis + 1 :]), box.shape)


def _writer(metadata: Any, stored: StoredEntries) -> list[str]:
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


def _check_common(folder: Path, stored: StoredEntries) -> None:
    """Raise CheckpointError where the state that metadata.json promises is gone, the training args in it."""
    promised = metadata_json.backends(folder)
    has_item = any(key.startswith(training_args.COMMON_STATE) for key in stored.items)
    if promised is None or promised.common is None or has_item:
        return
    if not (folder / training_args.COMMON).is_file():
        raise CheckpointError(
            "the checkpoint has lost its common.pt, which holds the training args: the save, or a copy of it,"
            " is not whole",
            where={"folder": folder},
            expected=f"common.pt, as metadata.json says (common_backend: {promised.common})",
            got="neither common.pt nor an item common_state",
            advice="copy the folder again, with all its files, or take another iteration",
        )
