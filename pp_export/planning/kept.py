"""What of a plan is there already: an earlier run committed it, and this one has found it intact."""

from __future__ import annotations

from dataclasses import dataclass

from pp_export.planning.file_layout import FileRange


@dataclass(frozen=True)
class Kept:
    """Whole `files`, and `ranges` (file and number) of others, which are still to be joined."""

    files: frozenset[str] = frozenset()
    ranges: frozenset[tuple[str, int]] = frozenset()

    def has(self, range_: FileRange) -> bool:
        """Whether nobody has to make this range."""
        return range_.file in self.files or (range_.file, range_.number) in self.ranges
