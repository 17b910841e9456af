"""Proves that a rank's part belongs to the whole plan: the plan's fingerprint is the root of a tree of
digests, whose leaves are those of the parts. A rank climbs from its own leaf to the root with one digest for
each level, so it needs no other part.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from pp_export.core.digest import json_digest

_DIGEST_BYTES = 32
_LEAF, _INNER = b"\0", b"\1"


@dataclass(frozen=True)
class ProvedPart:
    """The bytes (`body`) of a rank's part, and what leads from them to the fingerprint of the whole: the
    digests beside the way up (`path`), and the `basis` of the plan.
    """

    basis: str
    path: tuple[bytes, ...]
    body: bytes

    def fingerprint(self, rank: int, world_size: int) -> str:
        """That of the plan which this is the part of `rank` in; of another one if a byte of it has changed,
        or if it is another rank's.
        """
        found, width, path = leaf(self.body), world_size, iter(self.path)
        while width > 1:
            beside = rank ^ 1
            if beside < width:
                other = next(path, b"")
                found = _above(other, found) if rank & 1 else _above(found, other)
            rank, width = rank >> 1, (width + 1) >> 1
        return fingerprint(self.basis, world_size, found)

    def to_bytes(self) -> bytes:
        basis = self.basis.encode()
        head = (len(basis).to_bytes(4, "little"), len(self.path).to_bytes(4, "little"))
        return b"".join((*head, basis, *self.path, zlib.compress(self.body, 1)))

    @classmethod
    def from_bytes(cls, image: bytes) -> ProvedPart:
        """The part that `to_bytes` wrote."""
        begin = 8 + int.from_bytes(image[:4], "little")
        end = begin + _DIGEST_BYTES * int.from_bytes(image[4:8], "little")
        path = tuple(image[at : at + _DIGEST_BYTES] for at in range(begin, end, _DIGEST_BYTES))
        return cls(image[8:begin].decode(), path, zlib.decompress(image[end:]))


class Tree:
    """The digests of all parts and what is above them; `leaves` are in rank order."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self._levels = [list(leaves)]
        while len(below := self._levels[-1]) > 1:
            above = [_above(*pair) for pair in zip(below[::2], below[1::2])]
            self._levels.append(above + below[len(above) * 2 :])

    @property
    def root(self) -> bytes:
        return self._levels[-1][0]

    def path(self, rank: int) -> tuple[bytes, ...]:
        """The digests beside the way from a leaf to the root."""
        found = []
        for level in self._levels[:-1]:
            if rank ^ 1 < len(level):
                found.append(level[rank ^ 1])
            rank >>= 1
        return tuple(found)


def leaf(body: bytes) -> bytes:
    """The digest of a part."""
    return sha256(_LEAF + body).digest()


def fingerprint(basis: str, world_size: int, root: bytes) -> str:
    """The fingerprint of a plan; `basis` is what decides the bytes beside it."""
    return json_digest([basis, world_size, root.hex()])


def _above(left: bytes, right: bytes) -> bytes:
    return sha256(_INNER + left + right).digest()
