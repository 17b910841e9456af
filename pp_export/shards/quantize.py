"""The arithmetic of quantization: pure functions of whole weights, the same bits on every machine.

Scales are computed in float32 of the values as they were trained, and values are divided by the scale as it
is stored. All is done on the CPU of the rank that leads the shard, also for a live model on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from pp_export.architecture.quantization import BLOCK, FP8_BLOCK, FP8_CHANNEL
from pp_export.core.errors import OptionError
from pp_export.shards.manifests import LargestError

Tensors = Mapping[str, torch.Tensor]

_STEP_ELEMENTS = 1 << 20
"""Large enough that threads don't wait for Python's interpreter between operations."""
_FLOAT8 = torch.float8_e4m3fn
_MOST_FLOAT8, _MOST_INT8 = 448.0, 127.0
_OFFSET = 128
"""Of an int8 as it is packed: the least one is 0."""


def quantize(kind: str, inputs: Tensors, outputs: Tensors) -> dict[str, LargestError]:
    """Fill the `outputs` (values, scales, and what else there is) from the one weight in `inputs`; the
    largest errors that were made.

    Raises OptionError where the weight has a NaN or an infinity, which no scale covers.
    """
    ((name, weight),) = inputs.items()
    values, scales, *more = outputs.values()
    for shape in more:
        shape.copy_(torch.tensor(weight.shape))
    if kind == FP8_BLOCK:
        found = list(_by_block(weight, values, scales))
    else:
        found = list(_by_row(weight, values, scales, is_float=kind == FP8_CHANNEL))
    absolute, relative = (torch.stack(each).amax() for each in zip(*found))
    if not absolute.isfinite():
        raise OptionError(
            "a weight with NaN or infinity can't be quantized",
            where={"tensor": name},
            got=f"{int((~weight.isfinite()).sum()):,} of {weight.numel():,} values are no finite numbers",
            advice="export an earlier iteration, or leave this tensor as it is (--dtype-of 'NAME=keep')",
        )
    return {name: LargestError(float(absolute), float(relative))}


Found = Iterator[tuple[torch.Tensor, torch.Tensor]]
"""The largest error of each step, and the largest one as a part of the largest value under its scale."""


class _Step:
    """Memory for the values of one step, used again for each: threads that all ask the system for more of it,
    and give it back, wait for each other.
    """

    def __init__(self, stored: torch.dtype, count: int) -> None:
        self._parts = torch.empty((2, count))
        self._stored = torch.empty(count, dtype=stored)

    def take(self, part: torch.Tensor, *shape: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The values in float32, as much memory for what is made of them, and for what is stored."""
        count = part.numel()
        values, work = (each[:count].view(shape) for each in self._parts)
        values.view(part.shape).copy_(part)
        return values, work, self._stored[:count].view(shape)


def _by_block(weight: torch.Tensor, values: torch.Tensor, scales: torch.Tensor) -> Found:
    width, step = _STEP_ELEMENTS // BLOCK, _Step(_FLOAT8, _STEP_ELEMENTS)
    for row in range(0, weight.shape[0], BLOCK):
        for column in range(0, weight.shape[1], width):
            part = weight[row : row + BLOCK, column : column + width]
            tiles, work, stored = step.take(part, BLOCK, part.shape[1] // BLOCK, BLOCK)
            most = torch.abs(tiles, out=work).amax(dim=(0, 2))
            scale = _scale(most, _MOST_FLOAT8, torch.float32)
            across = scale.view(1, -1, 1)
            stored.copy_(_within(torch.div(tiles, across, out=work), _MOST_FLOAT8))
            values[row : row + BLOCK, column : column + width] = stored.view(part.shape)
            scales[row // BLOCK, column // BLOCK : column // BLOCK + len(scale)] = scale
            errors = work.copy_(stored).mul_(across).sub_(tiles).abs_()
            yield _largest(errors.amax(dim=(0, 2)), most)


def _by_row(weight: torch.Tensor, values: torch.Tensor, scales: torch.Tensor, *, is_float: bool) -> Found:
    width, limit = weight.shape[1], _MOST_FLOAT8 if is_float else _MOST_INT8
    height = max(1, _STEP_ELEMENTS // width)
    step = _Step(_FLOAT8 if is_float else torch.uint8, height * width)
    for row in range(0, weight.shape[0], height):
        source = weight[row : row + height]
        part, work, stored = step.take(source, *source.shape)
        most = torch.abs(part, out=work).amax(dim=1, keepdim=True)
        scale = _scale(most, limit, scales.dtype)
        scales[row : row + height] = scale
        scale = scale.float()
        torch.div(part, scale, out=work)
        if is_float:
            values[row : row + height] = stored.copy_(_within(work, limit))
            work.copy_(stored)
        else:
            _within(work.round_(), limit)
            values[row : row + height] = stored.copy_(work.add_(_OFFSET)).view(torch.int32)
            work.sub_(_OFFSET)
        yield _largest(work.mul_(scale).sub_(part).abs_().amax(dim=1, keepdim=True), most)


def _scale(most: torch.Tensor, limit: float, dtype: torch.dtype) -> torch.Tensor:
    """The least scale of `dtype` by which `most` is at most `limit`; 1 where all values are zero."""
    scale = (most / limit).to(dtype)
    bits = scale.view(torch.int32 if dtype == torch.float32 else torch.int16)
    bits += (scale.float() * limit < most).to(bits.dtype)  # the next larger number
    return torch.where(most == 0, torch.ones_like(scale), scale)


def _within(values: torch.Tensor, limit: float) -> torch.Tensor:
    """Beyond its largest number a cast to float8 makes NaNs."""
    return values.clamp_(-limit, limit)


def _largest(errors: torch.Tensor, most: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    # NaN where a value is NaN or infinite: of both, the largest is NaN.
    return errors.amax(), torch.where(most == 0, torch.zeros_like(most), errors / most).amax()
