"""Adapters in a checkpoint: where a run says their alpha, and the order in which rows of theirs are stored.

Megatron-Bridge keeps its settings in `run_config.yaml` (section `peft`), ms-swift among its training args or
in `args.json`, verl in `lora_train_meta.json` above the folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pp_export.architecture import adapter_names
from pp_export.architecture.lora import LoraSettings
from pp_export.checkpoint import locate
from pp_export.checkpoint.catalog import Interleave, StoredBox, StoredTensor
from pp_export.core import plain_yaml, strict_json
from pp_export.core.errors import CheckpointError
from pp_export.core.tensors import Box

_BRIDGE, _SWIFT, _VERL = "run_config.yaml", "args.json", "lora_train_meta.json"
_HALF_OF_FC1 = re.compile(r"\.linear_fc1\.adapter\.adapter_(?:gate|up)\.linear_out\.weight$")
_FC1 = re.compile(r"\.linear_fc1\.adapter\.linear_out\.weight$")
_ANY_FC1 = re.compile(r"\.linear_fc1\.adapter\.(?:.*\.)?linear_out\.weight$")
_TAKE_TURNS = ("moe_mlp_glu_interleave_size", "moe_shared_expert_glu_interleave_size")
_SIZES = ("ffn_hidden_size", "moe_shared_expert_intermediate_size")
_STACKED_EXPERTS, _OF_EXPERTS = ".mlp.experts.experts.", ".mlp.experts."
_MAX_FOLDERS_ABOVE = 3


def settings(folder: Path, args: Mapping[str, Any] | None) -> LoraSettings:
    """What the run that wrote `folder` says of its adapters, as far as it is found."""
    if (folder / _BRIDGE).is_file():
        return _of_bridge(folder / _BRIDGE, args or {})
    if (args or {}).get("lora_alpha") is not None:
        return _of_swift(args or {}, "the training args")
    above = (folder, *list(folder.parents)[:_MAX_FOLDERS_ABOVE])
    if file := next((each / _VERL for each in above if (each / _VERL).is_file()), None):
        value = _json(file)
        return LoraSettings(_number(value.get("lora_alpha")), _count(value.get("r")), said_by=_VERL)
    if file := next((each / _SWIFT for each in above[:2] if (each / _SWIFT).is_file()), None):
        return _of_swift(_json(file), _SWIFT)
    return LoraSettings()


def named(key: str, num_dims: int) -> str:
    """A stored key, with one matrix for all experts under a name without a number: where it has no dim for
    them, as Megatron-Bridge stored it up to release 0.3.1.
    """
    if adapter_names.half_of(key) is None or _STACKED_EXPERTS not in key:
        return key
    is_stacked = ".layers." in key and not re.search(r"\.layers\.\d", key)
    return key.replace(_STACKED_EXPERTS, _OF_EXPERTS) if num_dims - is_stacked == 2 else key


def check_shared(names: Iterable[str], args: Mapping[str, Any] | None) -> None:
    """Raise CheckpointError where each expert parallel rank had an adapter of its own for all of its experts,
    and only one is stored.
    """
    size = (args or {}).get("expert_model_parallel_size") or 1
    found = [name for name in names if f"{_OF_EXPERTS}linear_fc" in name and adapter_names.half_of(name)]
    if found and size > 1:
        raise CheckpointError(
            "the adapters of routed experts are stored for one expert parallel rank only",
            where={"tensor": found[0]},
            expected="a dim for the experts, as Megatron-Bridge stores it after release 0.3.1",
            got=f"one adapter for the experts of {size} ranks, each of which trained its own",
            advice="save again with a newer Megatron-Bridge while the run still has the others in memory",
        )


def in_row_order(
    tensor: StoredTensor, key: str, num_stacked: int, args: Mapping[str, Any] | None
) -> StoredTensor:
    """The tensor with its rows where they belong, where tensor parallel ranks have stored them in another
    order: `key` is the one in the checkpoint.

    megatron-core cuts what belongs to `linear_fc1` in two on every rank, as if it were gate and up
    (`apply_swiglu_sharded_factory`); Megatron-Bridge does that to an adapter of one of them too
    (`ParallelLinearAdapter.sharded_state_dict`). ms-swift does not where it should, for gate and up together.
    """
    known = args or {}
    size = known.get("tensor_model_parallel_size")
    if _OF_EXPERTS in tensor.key:
        size = known.get("expert_tensor_parallel_size") or size
    if _ANY_FC1.search(tensor.key) and any(known.get(each) for each in _TAKE_TURNS):
        raise _unordered(tensor, "gate and up apart: whether they take turns in an adapter isn't known", 1)
    if _HALF_OF_FC1.search(tensor.key):
        return _from_halves(tensor, num_stacked, size)
    if _FC1.search(tensor.key) and adapter_names.is_of_peft(key):
        return _from_parts(tensor, num_stacked, size, _is_gated(tensor.shape[num_stacked], known))
    return tensor


def _is_gated(rows: int, args: Mapping[str, Any]) -> bool | None:
    """Whether so many rows are of a gate and an up projection; None where the args don't tell."""
    said = args.get("swiglu", args.get("gated_linear_unit"))
    if isinstance(said, bool):
        return said
    sizes = [args[name] for name in _SIZES if args.get(name)]
    return None if rows not in sizes and rows / 2 not in sizes else rows / 2 in sizes


def _from_halves(tensor: StoredTensor, axis: int, size: int | None) -> StoredTensor:
    """Of rows that were cut in two on each of `size` ranks: all first halves come before the second ones."""
    rows, count = _cut(tensor, axis)
    if count <= 2 or count == size:
        return tensor
    if size is None or count != 2 * size:
        raise _unordered(tensor, f"{2 * (size or 1)} pieces, half a part of each rank", count)
    half = rows // count

    def moved(stored: StoredBox) -> StoredBox:
        second, rank = divmod(stored.box.offset[axis] // half, size)
        return stored._replace(box=_at(stored.box, axis, (2 * rank + second) * half, half))

    return replace(tensor, boxes=tuple(map(moved, tensor.boxes)))


def _from_parts(tensor: StoredTensor, axis: int, size: int | None, is_gated: Any) -> StoredTensor:
    """Of parts of `size` ranks one after the other, each of gate and up: all of the gate comes first."""
    rows, count = _cut(tensor, axis)
    if count == 1 or is_gated is False:
        return tensor
    if is_gated is None or count != size or rows % (2 * count):
        expected = "a part of each tensor parallel rank, and args that say whether it has gate and up"
        raise _unordered(tensor, expected, count)
    return replace(tensor, interleave=Interleave(rows // (2 * count), count, is_cut=False))


def _cut(tensor: StoredTensor, axis: int) -> tuple[int, int]:
    """How many rows there are, and in how many equal pieces they are stored."""
    rows = tensor.shape[axis]
    counts = {stored.box.shape[axis] for stored in tensor.boxes}
    if len(counts) != 1 or rows % min(counts):
        raise _unordered(tensor, "equal pieces", len(tensor.boxes))
    return rows, rows // counts.pop()


def _at(box: Box, axis: int, offset: int, count: int) -> Box:
    return Box(
        (*box.offset[:axis], offset, *box.offset[axis + 1 :]),
        (*box.shape[:axis], count, *box.shape[axis + 1 :]),
    )


def _unordered(tensor: StoredTensor, expected: str, count: int) -> CheckpointError:
    return CheckpointError(
        "the order of an adapter's rows is not known: it is not stored in that of the weight's rows",
        where={"tensor": tensor.key},
        expected=expected,
        got=f"{count} pieces",
        advice="save the adapters with tensor parallel size 1",
    )


def _of_bridge(path: Path, args: Mapping[str, Any]) -> LoraSettings:
    try:
        value = plain_yaml.parse(locate.read_small(path, plain_yaml.MAX_BYTES))
    except plain_yaml.YamlError as error:
        raise CheckpointError(f"{path.name} is no plain YAML: {error}", where={"file": path}) from error
    peft = value.get("peft") if isinstance(value, dict) else None
    if not isinstance(peft, dict):
        return LoraSettings()
    top = _count(args.get("moe_router_topk")) or 1
    return LoraSettings(
        _number(peft.get("alpha")),
        _count(peft.get("dim")),
        dropout=_number(peft.get("dropout")) or 0.0,
        divides_experts_by=top if peft.get("normalize_moe_lora") else 1,
        said_by=path.name,
    )


def _of_swift(args: Mapping[str, Any], said_by: str) -> LoraSettings:
    return LoraSettings(
        _number(args.get("lora_alpha")),
        _count(args.get("lora_rank")),
        is_stabilized=args.get("use_rslora") is True,
        dropout=_number(args.get("lora_dropout")) or 0.0,
        said_by=said_by,
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        return strict_json.parse_object(
            locate.read_small(path, strict_json.MAX_CONFIG_BYTES), allow_infinity=True
        )
    except strict_json.JsonError as error:
        raise CheckpointError(f"{path.name} can't be understood: {error}", where={"file": path}) from error


def _number(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value < float("inf") else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
