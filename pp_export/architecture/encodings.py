"""Encodings: what is computed of finished Hugging Face tensors before they are stored.

Transforms only move elements; what needs arithmetic is an encoding, a step of its own between mapping and
freezing. Its names, shapes and types, before and after, are known in the plan; `shards/encode.py` has the
arithmetic.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pp_export.core.dtypes import DType
from pp_export.core.tensors import TensorSpec

CAST, OVERFLOWING_CAST, PLUS_ONE = "cast", "overflowing_cast", "plus_one"
"""A cast of a number that the type has no finite value for fails, if it isn't an overflowing one."""
MERGE, OVERFLOWING_MERGE = "merge", "overflowing_merge"
"""The first of three inputs, and `scale` times the product of the two others, [..., rows, rank] and
[..., rank, columns]; with dims before these, or without, for all of the first.
"""


@dataclass(frozen=True)
class Types:
    """Which type floating-point tensors are stored in: that of the first pattern of Hugging Face names that
    fits, else the default; None leaves a tensor as it is.
    """

    default: DType | None = None
    patterns: tuple[tuple[str, DType | None], ...] = ()
    may_overflow: bool = False

    def fits(self, name: str) -> bool:
        """Whether a pattern does."""
        return any(fnmatchcase(name, pattern) for pattern, _ in self.patterns)

    def of(self, name: str) -> DType | None:
        for pattern, dtype in self.patterns:
            if fnmatchcase(name, pattern):
                return dtype
        return self.default


@dataclass(frozen=True)
class Encoding:
    """The tensors `inputs`, as the transforms make them, become `outputs`, as they are stored."""

    kind: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    scale: float = 1.0


AS_STORED = Types()


def casts(mapped: Mapping[str, TensorSpec], types: Types, kept: Container[str] = ()) -> tuple[Encoding, ...]:
    """One for every floating-point tensor that isn't of its type yet, nor `kept` as it is."""
    if types.default is None and not types.patterns:
        return ()
    kind = OVERFLOWING_CAST if types.may_overflow else CAST
    wanted = ((name, spec, types.of(name)) for name, spec in mapped.items() if spec.dtype.is_floating)
    return tuple(
        Encoding(kind, {name: spec}, {name: TensorSpec(spec.shape, dtype)})
        for name, spec, dtype in wanted
        if dtype is not None and spec.dtype != dtype and name not in kept
    )


def plus_one(mapped: Mapping[str, TensorSpec], names: Iterable[str], types: Types) -> tuple[Encoding, ...]:
    """One for each of `names`: 1 is added, and the sum is of its type, or of that which the weight has."""
    return tuple(
        Encoding(PLUS_ONE, {name: mapped[name]}, {name: TensorSpec(mapped[name].shape, dtype)})
        for name, dtype in ((name, types.of(name) or mapped[name].dtype) for name in names)
    )


def encoded(mapped: Mapping[str, TensorSpec], encodings: tuple[Encoding, ...]) -> dict[str, TensorSpec]:
    """The tensors as they are stored: those of the encodings, and the rest as mapped."""
    if not encodings:
        return dict(mapped)
    taken = {name for encoding in encodings for name in encoding.inputs}
    stored = {name: spec for name, spec in mapped.items() if name not in taken}
    return stored | {name: spec for encoding in encodings for name, spec in encoding.outputs.items()}
