"""The arithmetic of encodings: pure functions of whole Hugging Face tensors, the same bits on every machine.

What they are, and which tensors they take and give, is in the plan (`architecture/encodings.py`). Only this
needs torch, so only an export that encodes imports it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from pp_export.architecture.encodings import CAST, OVERFLOWING_CAST, PLUS_ONE, Encoding
from pp_export.architecture.quantization import SCHEMES
from pp_export.core.dtypes import DType
from pp_export.core.errors import OptionError
from pp_export.core.tensors import TensorSpec
from pp_export.shards.manifests import Errors
from pp_export.shards.quantize import Tensors, quantize

Memory = Mapping[str, memoryview]
"""The bytes of dense tensors, by name."""

_STEP_ELEMENTS = 1 << 18


def encode(encoding: Encoding, inputs: Memory, outputs: Memory) -> Errors:
    """Fill the memory of the `outputs` from the finished `inputs`; names may stand for others too. The
    largest errors, if it quantizes.
    """
    given, made = _tensors(encoding.inputs, inputs), _tensors(encoding.outputs, outputs)
    if encoding.kind in SCHEMES:
        return quantize(encoding.kind, given, made)
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
            raise OptionError(
                f"numbers become infinite in {_name_of(outputs[name])}",
                where={"tensor": name},
                expected=f"at most {torch.finfo(outputs[name].dtype).max:g}",
                got=f"{num_lost:,} of {values.numel():,} are more; the largest is {_largest(values):g}",
                advice="leave this tensor another type (--dtype-of 'NAME=keep'), choose bfloat16, or store"
                " infinities (--allow-overflow)",
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


_ENCODERS: dict[str, Callable[[Tensors, Tensors], None]] = {
    CAST: _cast,
    OVERFLOWING_CAST: _cast_overflowing,
    PLUS_ONE: _plus_one,
}


def torch_dtype(dtype: DType) -> torch.dtype:
    """torch's object for an element type."""
    found: torch.dtype = getattr(torch, dtype.torch_name)
    return found
