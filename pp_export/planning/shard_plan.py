"""A file, or a range of one, in the plan: what it is made of, in which portions, and who leads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from pp_export.architecture.encodings import Encoding
from pp_export.architecture.made import Placement
from pp_export.core.tensors import Shape, Slice
from pp_export.planning.file_layout import FileRange, TensorPlace, arrange

ALIGNMENT = 64
PAGE_BYTES = 4096


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


class ShardLabel(NamedTuple):
    """Which shard it is, for those who only give to it."""

    leader: int
    file: str
    stage: int
    unit: str


@dataclass(frozen=True)
class ShardPlan:
    """What one leader makes: an output file, or a range of a large one; and the buckets that fill it.

    `placements` and `shapes` are those of the Megatron tensors that it is made of; what they make goes
    through the `encodings` where these take it.
    """

    range: FileRange
    unit: str
    stage: int
    leader: int
    encodings: tuple[Encoding, ...]
    placements: Mapping[str, tuple[Placement, ...]]
    shapes: Mapping[str, Shape]
    buckets: tuple[Bucket, ...]

    @cached_property
    def label(self) -> ShardLabel:
        return ShardLabel(self.leader, self.file, self.stage, self.unit)

    @property
    def file(self) -> str:
        return self.range.file

    @property
    def tensors(self) -> tuple[TensorPlace, ...]:
        """In file order."""
        return self.range.tensors

    @cached_property
    def scratch(self) -> tuple[TensorPlace, ...]:
        """Where the tensors that are still to be encoded lie in memory of their own."""
        return arrange({name: spec for e in self.encodings for name, spec in e.inputs.items()})

    @property
    def scratch_bytes(self) -> int:
        return self.scratch[-1].end if self.scratch else 0

    @property
    def data_bytes(self) -> int:
        return self.range.data_bytes

    @property
    def num_bytes(self) -> int:
        return self.range.num_bytes

    @property
    def image_begin(self) -> int:
        """Where its image begins in its memory: file and memory are aligned alike, for direct I/O."""
        return self.range.begin % PAGE_BYTES

    @property
    def image_bytes(self) -> int:
        """The memory that its image takes."""
        return self.image_begin + self.num_bytes
