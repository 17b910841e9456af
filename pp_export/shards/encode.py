"""The arithmetic of encodings: pure functions of whole Hugging Face tensors, the same bits on every machine.

What they are, and which tensors they take and give, is in the plan (`architecture/encodings.py`). Only this
needs torch, so only an export that encodes imports it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from pp_export.architecture.encodings import (
    CAST,
    MERGE,
    OVERFLOWING_CAST,
    OVERFLOWING_MERGE,
    PLUS_ONE,
    Encoding,
)
from pp_export.architecture.quantization import SCHEMES
from pp_export.core.dtypes import DType
from pp_export.core.errors import OptionError
from pp_export.core.tensors import TensorSpec
from pp_export.shards.manifests import Errors
from pp_export.shards.quantize import Tensors, quantize

Memory = Mapping[str, memoryview]
"""The bytes of dense tensors, by name."""

_STEP_ELEMENTS = 1 << 18
_TILE_ROWS, _TILE_COLUMNS = 64, 1 << 10
"""What is merged at once stays in a core's cache."""


def encode(encoding: Encoding, inputs: Memory, outputs: Memory) -> Errors:
    """Fill the memory of the `outputs` from the finished `inputs`; names may stand for others too. The
    largest errors, if it quantizes.
    """
    given, made = _tensors(encoding.inputs, inputs), _tensors(encoding.outputs, outputs)
    if encoding.kind in SCHEMES:
        return quantize(encoding.kind, given, made)
    if encoding.kind in (MERGE, OVERFLOWING_MERGE):
        _merge(encoding, given, made)
    else:
        _ENCODERS[encoding.kind](given, made)
    return {}


def _tensors(specs: Mapping[str, TensorSpec], memory: Memory) -> Tensors:
    return {name: _tensor(memory[name], spec) for name, spec in specs.items()}


def _tensor(memory: memoryview, spec: TensorSpec) -> torch.Tensor:
    if not spec.num_bytes:
        return torch.empty(spec.shape, dtype=torch_dtype(spec.dtype))
    return torch.frombuffer(memory, dtype=torch_dtype(spec.dtype)).view(spec.shape)


def _cast(inputs: Tensors, outputs: Tensors) -> None:
    """Round to nearest, as torch does. All NaNs become torch's own: which bits one would get depends on
    whether the processor casts it alone or among others.

    Raises OptionError where a number becomes infinite.
    """
    for name, values in inputs.items():
        num_lost = _cast_one(values.reshape(-1), outputs[name].view(-1))
        if num_lost:
            raise _overflow(name, outputs[name], num_lost, _largest(values))


def _overflow(name: str, stored: torch.Tensor, num_lost: int, largest: float) -> OptionError:
    return OptionError(
        f"numbers become infinite in {_name_of(stored)}",
        where={"tensor": name},
        expected=f"at most {torch.finfo(stored.dtype).max:g}",
        got=f"{num_lost:,} of {stored.numel():,} are more; the largest is {largest:g}",
        advice="leave this tensor another type (--dtype-of 'NAME=keep'), choose bfloat16, or store infinities"
        " (--allow-overflow)",
    )


def _cast_overflowing(inputs: Tensors, outputs: Tensors) -> None:
    """The same, and numbers may become infinite."""
    for name, values in inputs.items():
        _cast_one(values.reshape(-1), outputs[name].view(-1))


def _cast_one(source: torch.Tensor, target: torch.Tensor) -> int:
    """Cast; how many finite values became infinite.

    The extremes of a step are NaN where one of its values is; to look for each costs four times as much.
    """
    num_lost = 0
    for begin in range(0, source.numel(), _STEP_ELEMENTS):
        step, before = target[begin : begin + _STEP_ELEMENTS], source[begin : begin + _STEP_ELEMENTS]
        step.copy_(before)
        least, most = step.aminmax()
        if not (least.isfinite() and most.isfinite()):
            num_lost += int((step.isinf() & before.double().isfinite()).sum())
            step.masked_fill_(step.isnan(), torch.nan)
    return num_lost


def _largest(values: torch.Tensor) -> float:
    return float(values.nan_to_num(0, 0, 0).abs().max())


def _name_of(values: torch.Tensor) -> str:
    return str(values.dtype).removeprefix("torch.")


def _plus_one(inputs: Tensors, outputs: Tensors) -> None:
    """1 + weight, in float32 as the kernels of such norms compute it; these tensors are small."""
    for name, values in inputs.items():
        outputs[name].copy_(values.float() + 1)
        outputs[name].masked_fill_(outputs[name].isnan(), torch.nan)


def _merge(encoding: Encoding, inputs: Tensors, outputs: Tensors) -> None:
    """base + scale * (left @ right) in float32, then rounded. Products are added one by one: libraries for
    matrices add in orders of their own, others on other processors.

    Raises OptionError where a number becomes infinite.
    """
    base, left, right = inputs.values()
    (name, merged), stack = next(iter(outputs.items())), base.shape[:-2]
    left, right = (
        each.expand(*stack, *each.shape[-2:]).reshape(-1, *each.shape[-2:]) for each in (left, right)
    )
    num_lost, largest = 0, 0.0
    for number, (before, after) in enumerate(
        zip(base.reshape(-1, *base.shape[-2:]), merged.view(-1, *merged.shape[-2:]))
    ):
        for row in range(0, before.shape[0], _TILE_ROWS):
            rows = slice(row, row + _TILE_ROWS)
            outer = left[number, rows].float()
            for column in range(0, before.shape[1], _TILE_COLUMNS):
                columns = slice(column, column + _TILE_COLUMNS)
                tile = _product(outer, right[number, :, columns].float()).mul_(encoding.scale)
                tile.add_(before[rows, columns].float())
                stored = tile.to(merged.dtype)
                least, most = stored.aminmax()
                if not (least.isfinite() and most.isfinite()):
                    num_lost += int((stored.isinf() & tile.isfinite()).sum())
                    largest = max(largest, _largest(tile))
                    stored.masked_fill_(stored.isnan(), torch.nan)
                after[rows, columns] = stored
    if num_lost and encoding.kind == MERGE:
        raise _overflow(name, merged, num_lost, largest)


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left @ right, in one order of additions on every machine."""
    sums = torch.zeros(left.shape[0], right.shape[1])
    products = torch.empty_like(sums)
    for rank in range(left.shape[1]):
        torch.mul(left[:, rank, None], right[rank], out=products)
        sums.add_(products)
    return sums


_ENCODERS: dict[str, Callable[[Tensors, Tensors], None]] = {
    CAST: _cast,
    OVERFLOWING_CAST: _cast_overflowing,
    PLUS_ONE: _plus_one,
}


def torch_dtype(dtype: DType) -> torch.dtype:
    """torch's object for an element type."""
    found: torch.dtype = getattr(torch, dtype.torch_name)
    return found
