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

_STEP_ELEMENTS = 1 << 18
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


def _by_block(weight: torch.Tensor, values: torch.Tensor, scales: torch.Tensor) -> Found:
    width = _STEP_ELEMENTS // BLOCK
    for row in range(0, weight.shape[0], BLOCK):
        for column in range(0, weight.shape[1], width):
            part = weight[row : row + BLOCK, column : column + width].float()
            tiles = part.view(BLOCK, -1, BLOCK)
            most = tiles.abs().amax(dim=(0, 2))
            scale = _scale(most, _MOST_FLOAT8, torch.float32)
            across = scale.view(1, -1, 1)
            stored = _float8(tiles, across)
            values[row : row + BLOCK, column : column + width] = stored.view(part.shape)
            scales[row // BLOCK, column // BLOCK : column // BLOCK + len(scale)] = scale
            yield _largest((stored.float() * across - tiles).abs().amax(dim=(0, 2)), most)


def _by_row(weight: torch.Tensor, values: torch.Tensor, scales: torch.Tensor, *, is_float: bool) -> Found:
    height = max(1, _STEP_ELEMENTS // weight.shape[1])
    for row in range(0, weight.shape[0], height):
        part = weight[row : row + height].float()
        most = part.abs().amax(dim=1, keepdim=True)
        scale = _scale(most, _MOST_FLOAT8 if is_float else _MOST_INT8, scales.dtype)
        scales[row : row + height] = scale
        scale = scale.float()
        if is_float:
            stored = _float8(part, scale)
            values[row : row + height] = stored
        else:
            stored = (part / scale).round_().clamp_(-_MOST_INT8, _MOST_INT8)
            values[row : row + height] = (stored + _OFFSET).to(torch.uint8).view(torch.int32)
        yield _largest((stored.float() * scale - part).abs().amax(dim=1, keepdim=True), most)


def _scale(most: torch.Tensor, limit: float, dtype: torch.dtype) -> torch.Tensor:
    """The least scale of `dtype` by which `most` is at most `limit`; 1 where all values are zero."""
    scale = (most / limit).to(dtype)
    bits = scale.view(torch.int32 if dtype == torch.float32 else torch.int16)
    bits += (scale.float() * limit < most).to(bits.dtype)  # the next larger number
    return torch.where(most == 0, torch.ones_like(scale), scale)


def _float8(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Beyond its largest number a cast makes NaNs."""
    return (values / scale).clamp_(-_MOST_FLOAT8, _MOST_FLOAT8).to(_FLOAT8)


def _largest(errors: torch.Tensor, most: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    # NaN where a value is NaN or infinite: of both, the largest is NaN.
    return errors.amax(), torch.where(most == 0, torch.zeros_like(most), errors / most).amax()
