"""Claims of `pp_export.planning.proof`: its own bytes and a few digests prove a part, or nothing does."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from pp_export.planning.proof import ProvedPart, Tree, fingerprint, leaf

SIZES = [*range(1, 18), 64, 100]


def bodies(size: int) -> list[bytes]:
    return [f"the part of rank {rank}".encode() for rank in range(size)]


def proved(size: int) -> tuple[str, list[ProvedPart]]:
    """The fingerprint of a plan with so many parts, and each part with its proof."""
    tree = Tree([leaf(body) for body in bodies(size)])
    parts = [ProvedPart("basis", tree.path(rank), body) for rank, body in enumerate(bodies(size))]
    return fingerprint("basis", size, tree.root), parts


@pytest.mark.parametrize("size", SIZES)
def test_every_part_leads_to_one_fingerprint(size: int) -> None:
    """Of any number of ranks, each comes to the fingerprint of the whole from what travels to it, with at
    most one digest for each doubling of the ranks.
    """
    whole, parts = proved(size)
    for rank, part in enumerate(parts):
        received = ProvedPart.from_bytes(part.to_bytes())
        assert received == part
        assert received.fingerprint(rank, size) == whole
        assert len(part.path) <= (size - 1).bit_length()


@pytest.mark.parametrize("size", SIZES)
def test_what_is_not_of_the_plan_leads_elsewhere(size: int) -> None:
    """A part with a changed byte, another basis, a changed or missing digest, or of another rank, and a world
    of another size, give another fingerprint.
    """
    whole, parts = proved(size)
    for rank, part in enumerate(parts):
        wrong = [replace(part, body=part.body + b"."), replace(part, basis="another")]
        wrong += [replace(part, path=part.path[:-1])] if part.path else []
        for at, digest in enumerate(part.path):
            changed = bytes([digest[0] ^ 1, *digest[1:]])
            wrong.append(replace(part, path=(*part.path[:at], changed, *part.path[at + 1 :])))
        assert all(each.fingerprint(rank, size) != whole for each in wrong)
        others = {part.fingerprint(other, size) for other in range(size) if other != rank}
        assert whole not in others
        assert part.fingerprint(rank, size + 1) != whole


def test_the_fingerprint_is_the_root_of_a_tree_of_digests() -> None:
    """Written down independently for three parts: leaves and inner nodes are told apart, and the last part of
    an odd level goes up as it is.
    """

    def digest(*parts: bytes) -> bytes:
        return hashlib.sha256(b"".join(parts)).digest()

    first, second, third = (digest(b"\0", body) for body in bodies(3))
    assert Tree([first, second, third]).root == digest(b"\1", digest(b"\1", first, second), third)
