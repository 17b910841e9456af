"""A tree of two levels: ranks in blocks, and the first ranks of all blocks. Each level is a circle."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pp_export.distributed.circle import Circle

_MIN_BLOCK = 128


def block_size(num_ranks: int) -> int:
    """How many consecutive ranks share a store: all, or as many as there are blocks, but not few."""
    return max(_MIN_BLOCK, math.isqrt(max(num_ranks - 1, 0)) + 1)


@dataclass(frozen=True)
class Seat:
    """Where one of `size` ranks is, in blocks of `block_size` consecutive ranks (the last may be smaller)."""

    rank: int
    size: int
    block_size: int

    @property
    def block(self) -> int:
        """The number of this rank's block."""
        return self.rank // self.block_size

    @property
    def num_blocks(self) -> int:
        return -(-self.size // self.block_size)

    @property
    def members(self) -> range:
        """The ranks of this rank's block."""
        return self.ranks_of(self.block)

    @property
    def is_first(self) -> bool:
        """Whether this rank is the first of its block."""
        return self.rank == self.members[0]

    def first_of(self, rank: int) -> int:
        """The first rank of another rank's block."""
        return rank - rank % self.block_size

    def ranks_of(self, block: int) -> range:
        """The ranks of a block."""
        return range(block * self.block_size, min((block + 1) * self.block_size, self.size))


class Tree:
    """The circle of this rank's block, and that of the first ranks of all blocks on those (None elsewhere,
    and where there is one block). Methods are those of a `Circle`, over all ranks.
    """

    def __init__(self, seat: Seat, block: Circle, firsts: Circle | None) -> None:
        self._seat, self._block, self._firsts = seat, block, firsts

    def gather(self, step: str, value: bytes) -> list[bytes]:
        values = self._block.gather(step, value)
        if self._firsts is None:
            return values
        return [value for image in self._firsts.gather(step, pack(values)) for value in unpack(image)]

    def share(self, step: str, value: bytes | None) -> bytes:
        if self._firsts is not None:
            value = self._firsts.share(step, value)
        return self._block.share(step, value)

    def scatter(self, step: str, values: Sequence[bytes] | None) -> bytes:
        if self._firsts is not None:
            blocks = map(self._seat.ranks_of, range(self._seat.num_blocks))
            packed = None if values is None else [pack(values[ranks[0] : ranks[-1] + 1]) for ranks in blocks]
            values = unpack(self._firsts.scatter(step, packed))
        return self._block.scatter(step, values)

    def leave(self, keys: list[str], seconds: float, absent: Collection[int] = ()) -> list[str] | None:
        """Ranks are `absent` only where all ranks are one block. Keys are those of the store that the
        first ranks share; those of a block's own store end with it. On the first rank of another block,
        what that block leaves behind.
        """
        left = self._block.leave(keys, seconds, absent)
        if left is not None and self._seat.block == 0:
            left += self._block.left_keys()
        if self._firsts is None:
            return left
        all_left = self._firsts.leave(left, seconds)
        if self._seat.rank != 0:
            return left
        return None if all_left is None else all_left + self._firsts.left_keys()


def pack(values: Sequence[bytes]) -> bytes:
    """Values as one; those that are the same are in it once."""
    numbers: dict[bytes, int] = {}
    order = [numbers.setdefault(value, len(numbers)) for value in values]
    return b"\n".join((json.dumps([[*map(len, numbers)], order]).encode(), b"".join(numbers)))


def unpack(image: bytes) -> list[bytes]:
    """The values that were packed."""
    header, _, body = image.partition(b"\n")
    lengths, order = json.loads(header)
    ends = [0]
    for length in lengths:
        ends.append(ends[-1] + length)
    distinct = [body[begin:end] for begin, end in pairwise(ends)]
    return [distinct[number] for number in order]
