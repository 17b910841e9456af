"""A file in the plan: what it is made of, in which portions, and who leads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from pp_export.architecture.accounting import Placement
from pp_export.architecture.encodings import Encoding
from pp_export.core.tensors import Shape, Slice
from pp_export.planning.file_layout import TensorPlace, arrange, header

ALIGNMENT = 64


@dataclass(frozen=True)
class Contribution:
    """What one rank contributes to a bucket: its slices in order, packed one after another."""

    rank: int
    slices: tuple[Slice, ...]

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each slice begins in the packed message, and, last, the message's length."""
        offsets = [0]
        for slice_ in self.slices:
            offsets.append(offsets[-1] + -(-slice_.num_bytes // ALIGNMENT) * ALIGNMENT)
        return tuple(offsets)

    @property
    def num_bytes(self) -> int:
        return self.offsets[-1]

    @property
    def value_bytes(self) -> int:
        """Bytes of the slices alone, as they go over the wire."""
        return sum(slice_.num_bytes for slice_ in self.slices)


@dataclass(frozen=True)
class Bucket:
    """A bounded part of a shard: what is read, sent and pasted at once. `number` is unique in the plan."""

    number: int
    parts: tuple[Contribution, ...]


@dataclass(frozen=True)
class ShardPlan:
    """One output file: its tensors in file order, who leads it, and the buckets that fill it.

    `placements` and `shapes` are those of the Megatron tensors that it is made of; what they make goes
    through the `encodings` where these take it.
    """

    file: str
    unit: str
    stage: int
    leader: int
    tensors: tuple[TensorPlace, ...]
    encodings: tuple[Encoding, ...]
    placements: Mapping[str, tuple[Placement, ...]]
    shapes: Mapping[str, Shape]
    buckets: tuple[Bucket, ...]

    @cached_property
    def header(self) -> bytes:
        return header(self.tensors)

    @cached_property
    def scratch(self) -> tuple[TensorPlace, ...]:
        """Where the tensors that are still to be encoded lie in memory of their own."""
        return arrange({name: spec for e in self.encodings for name, spec in e.inputs.items()})

    @property
    def scratch_bytes(self) -> int:
        return self.scratch[-1].end if self.scratch else 0

    @property
    def data_bytes(self) -> int:
        return self.tensors[-1].end

    @property
    def num_bytes(self) -> int:
        return len(self.header) + self.data_bytes
