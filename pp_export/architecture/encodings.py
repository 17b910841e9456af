"""Encodings: what is computed of finished Hugging Face tensors before they are stored.

Transforms only move elements; what needs arithmetic is an encoding, a step of its own between mapping and
freezing. Its names, shapes and types, before and after, are known in the plan; `shards/encode.py` has the
arithmetic.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass

from pp_export.core.dtypes import DType
from pp_export.core.tensors import TensorSpec

CAST, PLUS_ONE = "cast", "plus_one"


@dataclass(frozen=True)
class Encoding:
    """The tensors `inputs`, as the transforms make them, become `outputs`, as they are stored."""

    kind: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


def casts(
    mapped: Mapping[str, TensorSpec], dtype: DType | None, kept: Container[str] = ()
) -> tuple[Encoding, ...]:
    """One for every floating-point tensor that isn't of `dtype` yet, nor `kept` as it is; none where `dtype`
    is None.
    """
    return tuple(
        Encoding(CAST, {name: spec}, {name: TensorSpec(spec.shape, dtype)})
        for name, spec in mapped.items()
        if dtype is not None and spec.dtype.is_floating and spec.dtype != dtype and name not in kept
    )


def plus_one(
    mapped: Mapping[str, TensorSpec], names: Iterable[str], dtype: DType | None
) -> tuple[Encoding, ...]:
    """One for each of `names`: 1 is added, and the sum is of `dtype`, or of the type that the weight has."""
    return tuple(
        Encoding(PLUS_ONE, {name: mapped[name]}, {name: TensorSpec(mapped[name].shape, dtype)})
        for name, dtype in ((name, dtype or mapped[name].dtype) for name in names)
    )


def encoded(mapped: Mapping[str, TensorSpec], encodings: tuple[Encoding, ...]) -> dict[str, TensorSpec]:
    """The tensors as they are stored: those of the encodings, and the rest as mapped."""
    if not encodings:
        return dict(mapped)
    taken = {name for encoding in encodings for name in encoding.inputs}
    stored = {name: spec for name, spec in mapped.items() if name not in taken}
    return stored | {name: spec for encoding in encodings for name, spec in encoding.outputs.items()}
