"""A source of files: a checkpoint's folder, which every rank can read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pp_export.checkpoint.catalog import Catalog
from pp_export.checkpoint.formats import describe_checkpoint, open_checkpoint
from pp_export.checkpoint.source import Reader


@dataclass(frozen=True)
class CheckpointSource:
    """The iteration of `checkpoint` that `iteration` or its tracker file names, in any of the formats.

    With `check_source` the readers compare what they read with the checksums that were stored.
    """

    checkpoint: Path
    iteration: int | None
    check_source: bool

    is_shared = True
    device = None

    @property
    def folders(self) -> Sequence[Path]:
        return (self.checkpoint,)

    def check(self) -> None:
        """A rank that does not see the files fails when it opens them, by their names."""

    def announce(self) -> bytes:
        return b""

    def describe(self, announced: Sequence[bytes]) -> Catalog:
        return describe_checkpoint(self.checkpoint, self.iteration)

    def open(self, catalog: Catalog) -> Reader:
        return open_checkpoint(catalog, check_source=self.check_source)
