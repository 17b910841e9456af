"""Reads the parameters of a running Megatron job, which stay where they are.

The geometry comes from `sharded_state_dict()`, which every Megatron module has for saving: keys, global
shapes and offsets are those of the checkpoint that the same job would save
(megatron/core/dist_checkpointing/mapping.py). Megatron is not imported; its objects are known by their
attributes.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from pp_export.checkpoint.canonical_names import (
    canonical,
    check_sections,
    framework_prefix,
    in_order,
    spelled,
)
from pp_export.checkpoint.catalog import Catalog, Description, StoredBox, StoredItem, StoredTensor
from pp_export.checkpoint.live_args import args_of
from pp_export.checkpoint.training_args import interleave_of, layout_of
from pp_export.core import dtypes
from pp_export.core.errors import CheckpointError
from pp_export.core.tensors import Box, Shape, Slice, check_coverage
from pp_export.megatron import settings

_LIVE = "live model"
_STATE = "megatron.core.parallel_state"


@dataclass(frozen=True)
class LocalBox:
    """A box of a stored tensor that this rank holds; `values` gives them, without the stacking axes."""

    key: str
    shape: Shape
    box: Box
    dtype: str
    device: torch.device
    values: Callable[[], torch.Tensor]


class _Built:
    """What megatron-core's factories cut a parameter into: mostly views, for grouped experts copies.

    Only those of one factory are kept at a time.
    """

    def __init__(self) -> None:
        self._factory: Any = None
        self._entries: list[Any] = []

    def entries(self, factory: Any) -> list[Any]:
        if self._factory is not factory:
            self._entries = []  # before the next are made
            self._factory, self._entries = factory, [entry for entry, _ in _entries(factory.build(), self)]
        return self._entries

    def values(self, factory: Any, index: int) -> torch.Tensor:
        values: torch.Tensor = self.entries(factory)[index].data
        return values

    def forget(self) -> None:
        self._factory, self._entries = None, []


@dataclass(frozen=True)
class LocalModel:
    """Everything that this rank holds, and the config of the model in the words of training args."""

    args: Mapping[str, Any]
    boxes: tuple[LocalBox, ...]

    def to_bytes(self) -> bytes:
        """All but the values."""
        boxes = [[b.key, b.shape, b.dtype, b.box.offset, b.box.shape] for b in self.boxes]
        return zlib.compress(json.dumps({"args": self.args, "boxes": boxes}).encode(), 1)


def check(model: Sequence[Any]) -> None:
    """Raise CheckpointError unless every part of the model is a Megatron module, wrapped or not."""
    for number, part in enumerate(model):
        inner = list(_unwrapped(part))[-1]
        if not callable(getattr(inner, "sharded_state_dict", None)):
            raise CheckpointError(
                "a part of the model has no sharded_state_dict()",
                where={"part": number},
                expected="megatron-core modules, one per virtual stage, wrapped or not",
                got=type(inner).__name__,
            )


def settle(model: Sequence[Any]) -> None:
    """Where parameters are gathered during the next forward pass (--overlap-param-gather), gather them now,
    as Megatron-LM does before it saves: until then a rank has new values of its own share only. Called by
    all.
    """
    for wrapper in (wrapper for part in model for wrapper in _unwrapped(part)):
        if getattr(wrapper, "remove_forward_pre_hook_handles", None):
            wrapper.start_param_sync(force_sync=True)


def look_at(model: Sequence[Any]) -> LocalModel:
    """What this rank holds of the model, given as the list of its parts (one per virtual stage), wrapped or
    not.

    Changes nothing. Raises CheckpointError where parameters have a form in which no rank holds whole slices
    (FSDP).
    """
    parts = [list(_unwrapped(part))[-1] for part in model]
    boxes: list[LocalBox] = []
    built = _Built()
    for number, part in enumerate(parts):
        with _virtual_rank(number, len(parts)):
            state = part.sharded_state_dict()
        boxes += [_local_box(entry, values) for entry, values in _entries(state, built) if _is_held(entry)]
    built.forget()
    prefix = framework_prefix(box.key for box in boxes)
    named = (replace(box, key=box.key.removeprefix(prefix)) for box in boxes)
    return LocalModel(args_of(parts[0]) if parts else {}, tuple(_fused(named)))


def gpus(local: LocalModel) -> list[torch.device]:
    """The GPUs that the parameters lie on; nearly always one."""
    return sorted({box.device for box in local.boxes if box.device.type == "cuda"}, key=str)


def wait_for(local: LocalModel) -> None:
    """Whatever the job has sent to these GPUs, on whichever stream, is waited for, once, when no transfer is
    on its way: slices are copied and sent on streams of their own.
    """
    for device in gpus(local):
        torch.cuda.synchronize(device)


def merge(gathered: Sequence[bytes]) -> Catalog:
    """The catalog of the whole model from what every rank (in order) said of its own part.

    Boxes that several ranks hold are replicas: each is one item, with all of them as its holders.
    """
    found: defaultdict[tuple[str, Shape, str], dict[Box, list[int]]] = defaultdict(lambda: defaultdict(list))
    parts = [json.loads(zlib.decompress(image)) for image in gathered]
    for rank, part in enumerate(parts):
        for key, shape, dtype, offset, size in part["boxes"]:
            found[key, tuple(shape), dtype][Box(tuple(offset), tuple(size))].append(rank)
    args = max((part["args"] for part in parts), key=len)
    _check_same(parts, args, {key for key, _, _ in found}, len(found))
    interleave = interleave_of(args)
    holders: dict[tuple[int, ...], int] = {}
    items: list[StoredItem] = []
    tensors = []
    for (key, shape, dtype), boxes in sorted(found.items()):
        check_coverage(key, shape, list(boxes))
        stored = []
        for box, ranks in sorted(boxes.items(), key=lambda pair: pair[0].offset):
            size = box.volume * dtypes.from_torch(dtype).itemsize
            stored.append(StoredBox(box, len(items)))
            items.append(StoredItem(holders.setdefault(tuple(sorted(set(ranks))), len(holders)), 0, size))
        tensors.append(StoredTensor(key, shape, dtypes.from_torch(dtype), tuple(stored), interleave(key)))
    description = Description(_LIVE, _LIVE, "the running job", None, args, layout_of(args), {})
    catalog = Catalog(description, (), tuple(items), tuple(tensors), tuple(holders))
    catalog.check_names()
    return catalog


class LiveReader:
    """Gives slices of this rank's parameters: on a GPU where they lie, or copied to host memory.

    Copies from a GPU go over a stream of their own, and only that is waited for. What the job had sent to its
    GPU was finished before (`wait_for`).
    """

    def __init__(self, local: LocalModel, catalog: Catalog) -> None:
        held = {(box.key, box.box): box for box in local.boxes}
        self._held = {
            stored.item: held[tensor.key, stored.box]
            for tensor in catalog.tensors
            for stored in tensor.boxes
            if (tensor.key, stored.box) in held
        }
        self._streams: dict[torch.device, Any] = {}

    allows_threads = False

    def read(self, slice_: Slice, *into: memoryview) -> None:
        """Fill `into`, one after another (together exactly the slice's bytes), with the slice in C order;
        from a GPU until `settle`.
        """
        with self._on_stream(slice_):
            part, at = self._part(slice_), 0
            values = part if len(into) == 1 else part.reshape(-1)
            for piece in into:
                target = torch.frombuffer(piece, dtype=part.dtype)
                source = values if len(into) == 1 else values[at : at + target.numel()]
                target.view(source.shape).copy_(source, non_blocking=part.is_cuda)
                at += target.numel()

    def settle(self) -> None:
        """Return when all copies from GPUs are done."""
        for stream in self._streams.values():
            stream.synchronize()

    def on_device(self, slice_: Slice) -> torch.Tensor | None:
        """A view of the parameter where it lies on a GPU."""
        if self._held[slice_.item].device.type != "cuda":
            return None
        with self._on_stream(slice_):
            return self._part(slice_)

    def finish(self) -> None:
        """Parameters have no checksum of their own."""

    def __enter__(self) -> LiveReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self._held.clear()

    def _part(self, slice_: Slice) -> torch.Tensor:
        return _part(self._held[slice_.item].values(), slice_)

    def _on_stream(self, slice_: Slice) -> AbstractContextManager[object]:
        """The stream for what is copied, or built by a factory, of a slice on a GPU."""
        device = self._held[slice_.item].device
        if device.type != "cuda":
            return nullcontext()
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        return torch.cuda.stream(self._streams[device])


def _part(values: torch.Tensor, slice_: Slice) -> torch.Tensor:
    """A view of the slice: `slice_.begin` bytes into `values` in C order, of the slice's shape."""
    at = slice_.begin // slice_.dtype.itemsize
    position: list[int] = []
    for size in reversed(values.shape):
        at, index = divmod(at, size)
        position.insert(0, index)
    shape = (1,) * (values.dim() - len(slice_.box.shape)) + slice_.box.shape
    part = values.detach()[tuple(slice(i, i + n) for i, n in zip(position, shape))]
    return part[(0,) * (values.dim() - len(slice_.box.shape))]


def _unwrapped(part: Any) -> Iterator[Any]:
    """The wrappers (DDP, Float16Module and the like, which keep what they wrap as `module`), and at last the
    Megatron module.
    """
    yield part
    while isinstance(inner := getattr(part, "module", None), torch.nn.Module):
        part = inner
        yield part


@contextmanager
def _virtual_rank(number: int, count: int) -> Iterator[None]:
    """Releases before 0.13 took a part's layer numbers from this global, not from the part."""
    state = sys.modules.get(_STATE)
    if count == 1 or state is None or not hasattr(state, "set_virtual_pipeline_model_parallel_rank"):
        yield
        return
    before = state.get_virtual_pipeline_model_parallel_rank()
    state.set_virtual_pipeline_model_parallel_rank(number)
    try:
        yield
    finally:
        state.set_virtual_pipeline_model_parallel_rank(before)


def _entries(value: Any, built: _Built) -> Iterator[tuple[Any, Callable[[], torch.Tensor]]]:
    """Every sharded tensor in a nested state, those that a factory would cut included, and what gives its
    values.
    """
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _entries(item, built)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _entries(item, built)
    elif hasattr(value, "build_fn"):
        for index, entry in enumerate(built.entries(value)):
            yield entry, partial(built.values, value, index)
    elif hasattr(value, "global_offset") and isinstance(getattr(value, "data", None), torch.Tensor):
        yield value, partial(getattr, value, "data")


def _is_held(entry: Any) -> bool:
    """Not the copy of a tied embedding on another stage: the first number of a replica tells the stage's."""
    replica = entry.replica_id
    return not (isinstance(replica, tuple) and len(replica) > 1 and replica[0] != 0)


def _local_box(entry: Any, give: Callable[[], torch.Tensor]) -> LocalBox:
    values, stacked = entry.data, int(entry.prepend_axis_num)
    if type(values) not in (torch.Tensor, torch.nn.Parameter):
        raise CheckpointError(
            "a parameter is not a plain tensor: no rank holds a slice of its values",
            where={"tensor": entry.key},
            expected="torch.Tensor",
            got=type(values).__name__,
            advice="save a checkpoint, and export that (as with FSDP or quantized training)",
        )
    if getattr(entry, "flattened_range", None) is not None:
        raise CheckpointError("a parameter is flattened", where={"tensor": entry.key})
    box = Box(tuple(entry.global_offset), (1,) * stacked + tuple(values.shape))
    dtype = str(values.dtype).removeprefix("torch.")
    shape = tuple(map(int, entry.global_shape))
    return LocalBox(entry.key, shape, box, dtype, values.device, give)


def _fused(boxes: Iterable[LocalBox]) -> Iterator[LocalBox]:
    """The boxes as those of whole tensors, of which a factory makes parts: a rank has some of each part."""
    parts: defaultdict[tuple[str, Shape], dict[str, LocalBox]] = defaultdict(dict)
    for box in boxes:
        name, part = spelled(box.key)
        if part is None:
            check_sections([name])
            yield box
        else:
            parts[name, box.box.offset[: canonical(name).num_stacked]][part] = box
    for (name, stacked), found in parts.items():
        order, axis, begin = in_order(found), len(stacked), 0
        if order is None:
            yield from found.values()
            continue
        rows = sum(box.shape[axis] for box in found.values())
        for part in order:
            box = found[part]
            offset = (*stacked, box.box.offset[axis] + begin, *box.box.offset[axis + 1 :])
            begin += box.shape[axis]
            shape = (*box.shape[:axis], rows, *box.shape[axis + 1 :])
            yield replace(box, key=name, shape=shape, box=Box(offset, box.box.shape))


def _check_same(parts: Sequence[Any], args: Mapping[str, Any], keys: set[str], num_found: int) -> None:
    """All ranks must be of one model: the same config, one shape and type for each key."""
    if not keys:
        raise CheckpointError("the model has no parameters on any rank", expected="the list of model parts")
    of_model = {name for names in settings.read_by().values() for name in names}
    findings = [
        f"rank {rank}: {name} is {part['args'][name]!r}, elsewhere {args.get(name)!r}"
        for rank, part in enumerate(parts)
        for name in sorted(of_model & part["args"].keys())
        if part["args"][name] != args.get(name)
    ]
    if num_found != len(keys):
        findings.append("a tensor has another shape or type on another rank")
    if findings:
        raise CheckpointError("the ranks hold parts of different models", findings=findings)
