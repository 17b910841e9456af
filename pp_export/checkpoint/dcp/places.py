"""Where in the files the items of a folder lie: all that weights need is there, and no two share a byte.

Items of the optimizer are looked at too, though never read: a `.metadata` in which anything overlaps is not
that of these files. There can be millions of them, so they are kept as numbers.
"""

from __future__ import annotations

from array import array
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

from pp_export.checkpoint.dcp.metadata import file_name
from pp_export.core.errors import CheckpointError

_MAX_SHOWN = 100


class _Claims:
    """The bytes of one file that items claim, by their stored keys."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.begins, self.ends = array("q"), array("q")
        self.needed = self.needed_by_weights = 0

    def add(self, key: str, begin: int, length: int, is_weight: bool) -> None:
        if begin < 0 or length < 0:
            raise ValueError(f"{key} has {length} bytes from byte {begin} on")
        self.keys.append(key)
        self.begins.append(begin)
        self.ends.append(begin + length)
        self.needed = max(self.needed, begin + length)
        if is_weight:
            self.needed_by_weights = max(self.needed_by_weights, begin + length)

    def overlaps(self) -> Iterator[tuple[str, str]]:
        """The keys of items that begin before another one ends."""
        reached = by = -1
        for at in sorted(range(len(self.keys)), key=self.begins.__getitem__):
            begin, end = self.begins[at], self.ends[at]
            if begin < end and begin < reached:
                yield self.keys[by], self.keys[at]
            if end > reached:
                reached, by = end, at


def check_places(
    folder: Path, infos: Mapping[tuple[str, Any], Any], weights: Container[str]
) -> tuple[str, ...]:
    """Raise CheckpointError where a file that holds a weight is missing or too short, or two items share
    bytes. `infos` are what `.metadata` says by (key, offset). Returns what the user should know of the rest.
    """
    claims: dict[str, _Claims] = {}
    for (key, _), info in infos.items():
        of_file = claims.setdefault(info.relative_path, _Claims())
        of_file.add(key, int(info.offset), int(info.length), key in weights)
    short: list[str] = []
    shared: list[str] = []
    notes: list[str] = []
    for name, of_file in sorted((file_name(path), of_file) for path, of_file in claims.items()):
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        lack = f"{name} is missing" if size is None else f"{name} is truncated: {size} bytes"
        if of_file.needed_by_weights > (size or 0):
            need = "" if size is None else f", at least {of_file.needed_by_weights} needed"
            short.append(lack + need)
        elif of_file.needed > (size or 0):
            notes.append(f"{lack}; what it lacks is no weight, but the run can't be resumed from this copy")
        pairs = list(of_file.overlaps())
        shared += [f"{name}: {a} and {b} are stored in the same bytes" for a, b in pairs[:_MAX_SHOWN]]
        if len(pairs) > _MAX_SHOWN:
            shared.append(f"{name}: {len(pairs) - _MAX_SHOWN} more items share bytes")
    if short or shared:
        raise CheckpointError(
            "files of the checkpoint are missing, truncated or not what .metadata says",
            where={"folder": folder},
            expected="bytes of its own for each item" if shared else None,
            advice="copy the checkpoint again; "
            + (
                "if that does not help, .metadata is damaged or of another save: take another iteration"
                if shared
                else "a rank's node may not have written to the shared filesystem"
            ),
            findings=short + shared,
        )
    return tuple(notes)
