"""Claims of `pp_export.shards.quantize`: what is stored is what others' quantizers store under the same
scales, scales are the least that cover their values, and errors stay within the format and are told.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from pp_export.architecture.quantization import BLOCK, FP8_BLOCK, FP8_CHANNEL, INT8_CHANNEL, SCHEMES
from pp_export.core.errors import OptionError
from pp_export.shards import quantize as quantizing
from pp_export.shards.manifests import LargestError
from pp_export.shards.quantize import quantize

ROWS, COLUMNS = 3 * BLOCK, 2 * BLOCK
LIMITS = {FP8_BLOCK: 448, FP8_CHANNEL: 448, INT8_CHANNEL: 127}
ONE_BIT_MORE = {torch.float32: 2.0**-22, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-9}
"""By how much a scale of this type may be larger than the exact one, a part of it."""
BOUNDS = {FP8_BLOCK: 16 / 448, FP8_CHANNEL: 16 / 448, INT8_CHANNEL: 0.5 / 127}
"""Half of the largest step of the format, as a part of its largest number."""


def weight(dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> torch.Tensor:
    """Random, with rows of sizes that differ by a factor of thousands, zeros, and a block of zeros."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.logspace(-3, 0.5, ROWS)[:, None]
    values = torch.randn(ROWS, COLUMNS, generator=generator) * sizes
    values[:BLOCK, :BLOCK] = 0
    values[BLOCK + 5] = 0
    return values.to(dtype)


def run(kind: str, values: torch.Tensor, scale: torch.dtype) -> tuple[dict[str, torch.Tensor], LargestError]:
    rows, columns = values.shape
    outputs = {
        FP8_BLOCK: {
            "w": torch.empty(rows, columns, dtype=torch.float8_e4m3fn),
            "w_scale_inv": torch.empty(rows // BLOCK, columns // BLOCK),
        },
        FP8_CHANNEL: {
            "w": torch.empty(rows, columns, dtype=torch.float8_e4m3fn),
            "w_scale": torch.empty(rows, 1, dtype=scale),
        },
        INT8_CHANNEL: {
            "w_packed": torch.empty(rows, columns // 4, dtype=torch.int32),
            "w_scale": torch.empty(rows, 1, dtype=scale),
            "w_shape": torch.empty(2, dtype=torch.int64),
        },
    }[kind]
    return outputs, quantize(kind, {"w": values}, outputs)["w"]


def spread(kind: str, scales: torch.Tensor) -> torch.Tensor:
    """The scale of each value."""
    if kind == FP8_BLOCK:
        return scales.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    return scales.double().expand(-1, COLUMNS)


def values_of(kind: str, outputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The numbers as they are stored, without scales; packed ones are unpacked byte by byte."""
    if kind != INT8_CHANNEL:
        return outputs["w"].double()
    words = outputs["w_packed"].to(torch.int64) & 0xFFFF_FFFF
    return torch.stack([(words >> (8 * place)) & 255 for place in range(4)], -1).flatten(1).double() - 128


SCALES = [(FP8_BLOCK, torch.float32)] + [
    (kind, scale) for kind in (FP8_CHANNEL, INT8_CHANNEL) for scale in ONE_BIT_MORE
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("kind", "scale"), SCALES)
def test_every_value_is_the_nearest_of_the_format(kind: str, scale: torch.dtype, dtype: torch.dtype) -> None:
    """Divided by its scale, each is rounded to the nearest number of the format; a scale is the least of its
    type that covers the largest value, 1 where all are zero; the errors told are those of the largest.
    """
    values = weight(dtype)
    outputs, error = run(kind, values, scale)
    *_, scales = (each for name, each in outputs.items() if "scale" in name)
    assert bool((scales > 0).all() and scales.isfinite().all())
    each = spread(kind, scales).double()
    stored, exact = values_of(kind, outputs), (values.float() / each.float())
    nearest = exact.clamp(-448, 448).to(torch.float8_e4m3fn) if kind != INT8_CHANNEL else exact.round()
    assert torch.equal(stored, nearest.double())
    tiles = values.double().abs().view(-1, BLOCK, COLUMNS // BLOCK, BLOCK).amax((1, 3))
    most = tiles if kind == FP8_BLOCK else values.double().abs().amax(1, keepdim=True)
    assert torch.equal(scales.double()[most == 0], torch.ones_like(scales.double()[most == 0]))
    exact_scales = most[most > 0] / LIMITS[kind]
    grown = scales.double()[most > 0] / exact_scales
    assert float(grown.min()) >= 1 - 2.0**-24
    is_normal = exact_scales > torch.finfo(scale).tiny
    assert float(grown[is_normal].max()) <= 1 + ONE_BIT_MORE[scale]
    errors = (stored * each - values.double()).abs()
    per_scale = errors.view(-1, BLOCK, COLUMNS // BLOCK, BLOCK).amax((1, 3))
    largest = per_scale if kind == FP8_BLOCK else errors.amax(1, keepdim=True)
    assert error.absolute == pytest.approx(float(errors.max()), rel=1e-5)
    assert error.relative == pytest.approx(float((largest / most.clamp_min(1e-30)).max()), rel=1e-4)


@pytest.mark.parametrize("kind", SCHEMES)
def test_errors_stay_within_the_format(kind: str) -> None:
    """At most half of the format's largest step; and nearly that is met, so the bound is no empty one."""
    for seed in range(3):
        _, error = run(kind, weight(torch.float32, seed), torch.bfloat16)
        assert 0.9 * BOUNDS[kind] < error.relative <= BOUNDS[kind] * (1 + ONE_BIT_MORE[torch.bfloat16])


@pytest.mark.parametrize("kind", SCHEMES)
def test_steps_don_t_show(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits and errors however many values are taken at once."""
    whole, error = run(kind, weight(), torch.bfloat16)
    for elements in (BLOCK * BLOCK, 5 * COLUMNS + BLOCK * BLOCK):
        monkeypatch.setattr(quantizing, "_STEP_ELEMENTS", elements // BLOCK**2 * BLOCK**2)
        stepwise, again = run(kind, weight(), torch.bfloat16)
        assert all(torch.equal(whole[n].view(torch.uint8), stepwise[n].view(torch.uint8)) for n in whole)
        assert again == error


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", SCHEMES)
def test_what_is_no_number_is_refused(kind: str, value: float) -> None:
    """A NaN or an infinity would take its whole block or row along: the tensor is named, and how many."""
    values = weight()
    values[3, 200] = values[300, 7] = value
    with pytest.raises(OptionError, match="can't be quantized") as caught:
        run(kind, values, torch.bfloat16)
    assert caught.value.where["tensor"] == "w"
    assert str(caught.value.got).startswith("2 of ")


@pytest.mark.parametrize("largest", [1e-45, 1e-38, 1e-30, 3e38])
@pytest.mark.parametrize("kind", SCHEMES)
def test_the_smallest_and_largest_numbers_are_covered(kind: str, largest: float) -> None:
    """Scales neither vanish nor overflow: what is stored stands for finite numbers near the values."""
    values = torch.full((BLOCK, BLOCK), largest)
    outputs, error = run(kind, values, torch.float32)
    *_, scales = (each for name, each in outputs.items() if "scale" in name)
    assert bool((scales > 0).all() and scales.isfinite().all())
    assert error.absolute <= max(largest * BOUNDS[kind], 1e-42)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [FP8_CHANNEL, INT8_CHANNEL])
def test_compressed_tensors_stores_the_same(kind: str, dtype: torch.dtype) -> None:
    """Under these scales the library's own compressor makes the same tensors, and decompresses them to the
    values that were measured.
    """
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    made: Any = QuantizationArgs
    args = made(
        num_bits=8, type="float" if kind == FP8_CHANNEL else "int", strategy="channel", symmetric=True
    )
    scheme: Any = QuantizationScheme(targets=["Linear"], weights=args)
    compressor: Any = BaseCompressor.get_value_from_registry(
        "float-quantized" if kind == FP8_CHANNEL else "pack-quantized"
    )
    values = weight(dtype)
    outputs, error = run(kind, values, torch.bfloat16)
    state = {"weight": values.float(), "weight_scale": outputs["w_scale"].float()}
    theirs = compressor.compress(state, scheme)
    own = {f"weight{name[1:]}": each for name, each in outputs.items()}
    assert theirs.keys() == own.keys()
    for name in own.keys() - {"weight_scale"}:
        assert torch.equal(theirs[name].contiguous().view(torch.uint8), own[name].view(torch.uint8)), name
    back = compressor.decompress({**own, "weight_scale": own["weight_scale"].float()}, scheme)["weight"]
    assert float((back - values.float()).abs().max()) == pytest.approx(error.absolute, rel=1e-5)
    # Under a scale of its own the library makes no smaller errors than these bounds.
    assert error.relative <= BOUNDS[kind] * (1 + ONE_BIT_MORE[torch.bfloat16])


def test_transformers_stores_the_same_blocks() -> None:
    """Its quantizer of blocks of 128 x 128 has the same scales and values, but for its other order of
    dividing: scales differ by one bit at most, values by one step.
    """
    pytest.importorskip("transformers.core_model_loading")
    from types import SimpleNamespace

    from transformers.integrations import finegrained_fp8

    config = SimpleNamespace(weight_block_size=(BLOCK, BLOCK), scale_fmt="float")
    library: Any = finegrained_fp8
    quantizer = library.Fp8Quantize(SimpleNamespace(quantization_config=config))
    values = weight(torch.float32)
    theirs = quantizer.convert({"x.weight": values})
    outputs, _ = run(FP8_BLOCK, values, torch.float32)
    assert torch.allclose(theirs["x.weight_scale_inv"], outputs["w_scale_inv"], rtol=2.0**-22, atol=0)
    stored, other = (each.view(torch.uint8).int() for each in (outputs["w"], theirs["x.weight"]))
    assert int((stored - other).abs().max()) <= 1
    assert float((stored == other).float().mean()) > 0.999
    back = library.Fp8Dequantize(None)._dequantize_one(
        outputs["w"], outputs["w_scale_inv"], output_dtype=torch.float32
    )
    assert torch.equal(back, outputs["w"].float() * spread(FP8_BLOCK, outputs["w_scale_inv"]))
