"""A source of files: a checkpoint's folder, which every rank can read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pp_export.checkpoint import locate
from pp_export.checkpoint.catalog import Catalog
from pp_export.checkpoint.formats import describe_checkpoint, is_checkpoint, open_checkpoint
from pp_export.checkpoint.source import Reader
from pp_export.core.errors import CheckpointError


@dataclass(frozen=True)
class CheckpointSource:
    """The iteration of `checkpoint` that `iteration` or its tracker file names, in any of the formats.

    With `check_source` the readers compare what they read with the checksums that were stored. With
    `masters` the optimizer's float32 weights stand for the model's.
    """

    checkpoint: Path
    iteration: int | None
    check_source: bool
    masters: bool = False

    is_shared = True
    device = None

    @property
    def folders(self) -> Sequence[Path]:
        return (self.checkpoint,)

    def check(self) -> None:
        try:
            folder = locate.iteration_folder(self.checkpoint, self.iteration, is_checkpoint)
            names = sorted(os.listdir(folder))
        except OSError as error:
            raise CheckpointError(
                f"this rank can't read the checkpoint's folder: {error.strerror}",
                where={"folder": error.filename},
            ) from error
        file = next((folder / name for name in names if (folder / name).is_file()), None)
        if file is not None:
            locate.read(file, length=1)

    def announce(self) -> bytes:
        return b""

    def describe(self, announced: Sequence[bytes]) -> Catalog:
        return describe_checkpoint(self.checkpoint, self.iteration, masters=self.masters)

    def open(self, catalog: Catalog) -> Reader:
        return open_checkpoint(catalog, check_source=self.check_source)
