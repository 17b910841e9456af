"""Claims of `pp_export.shards.encode` and `pp_export.architecture.encodings`: what is computed of finished
tensors is planned, and is what torch computes of the whole tensor.
"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load

from pp_export.architecture.encodings import CAST, PLUS_ONE, Encoding, Types, casts, encoded, plus_one
from pp_export.core.dtypes import from_torch
from pp_export.core.tensors import TensorSpec
from pp_export.shards import encode
from tests.fixtures.element_types import bytes_of, random_bits
from tests.fixtures.frozen import freeze_tensors, shard_of

FLOATS = ["float32", "bfloat16", "float16", "float8_e4m3fn"]
SPECS = {
    "weight": TensorSpec((4, 6), from_torch("float32")),
    "already": TensorSpec((5,), from_torch("bfloat16")),
    "whole numbers": TensorSpec((3,), from_torch("int64")),
}


def expected(tensor: torch.Tensor, name: str) -> torch.Tensor:
    dtype: torch.dtype = getattr(torch, name)
    values = tensor.to(dtype)
    return torch.where(values.isnan(), torch.tensor(torch.nan, dtype=dtype), values)


def test_only_what_changes_is_encoded() -> None:
    """A cast takes the floating-point tensors of another type; whole numbers, and what has the type, stay."""
    (cast,) = casts(SPECS, Types(from_torch("bfloat16")))
    assert (cast.kind, set(cast.inputs), set(cast.outputs)) == (CAST, {"weight"}, {"weight"})
    stored = encoded(SPECS, (cast,))
    assert {name: spec.dtype.torch_name for name, spec in stored.items()} == {
        "weight": "bfloat16",
        "already": "bfloat16",
        "whole numbers": "int64",
    }
    assert {name: spec.shape for name, spec in stored.items()} == {n: s.shape for n, s in SPECS.items()}
    assert casts(SPECS, Types()) == ()


def test_memory_for_what_is_encoded_is_planned() -> None:
    """A shard's scratch memory is that of the tensors before their cast, and none where nothing is cast."""
    assert shard_of("f", SPECS, from_torch("bfloat16")).scratch_bytes == 4 * 6 * 4
    assert shard_of("f", SPECS).scratch_bytes == 0


@pytest.mark.parametrize("to", FLOATS[:3])
@pytest.mark.parametrize("of", FLOATS)
def test_a_cast_is_torch_s_own_with_one_kind_of_nan(
    monkeypatch: pytest.MonkeyPatch, of: str, to: str
) -> None:
    """Every bit pattern is cast as torch casts the whole tensor, in steps of any size; NaNs become one."""
    monkeypatch.setattr(encode, "_STEP_ELEMENTS", 7)
    tensor = random_bits((9, 13), of)
    stored = load(bytes(freeze_tensors("f", {"t": tensor}, from_torch(to)).image))["t"]
    assert bytes_of(stored) == bytes_of(tensor if of == to else expected(tensor, to))


@pytest.mark.parametrize("to", [None, *FLOATS[:3]])
@pytest.mark.parametrize("of", FLOATS[:3])
def test_one_is_added_in_float32(of: str, to: str | None) -> None:
    """Every bit pattern and 1, as torch adds them in float32, in the type that is asked for, else its own."""
    tensor = random_bits((9, 13), of)
    spec = TensorSpec((9, 13), from_torch(of))
    (encoding,) = plus_one({"norm": spec, "other": spec}, ["norm"], Types(from_torch(to) if to else None))
    stored = TensorSpec((9, 13), from_torch(to or of))
    assert encoding == Encoding(PLUS_ONE, {"norm": spec}, {"norm": stored})
    output = bytearray(stored.num_bytes)
    encode.encode(encoding, {"norm": memoryview(bytearray(bytes_of(tensor)))}, {"norm": memoryview(output)})
    assert bytes(output) == bytes_of(expected(tensor.float() + 1, to or of))
