"""The `torch` format of Megatron, as a format that can be exported."""

from __future__ import annotations

from pathlib import Path

from pp_export.checkpoint.catalog import Catalog
from pp_export.checkpoint.legacy import catalog as legacy_catalog
from pp_export.checkpoint.locate import iteration_of
from pp_export.checkpoint.source import Reader


class LegacyFormat:
    """One file per model parallel rank, in folders that carry the ranks' names."""

    name = legacy_catalog.LEGACY

    def recognise(self, folder: Path) -> bool:
        return any(folder.glob("mp_rank_*"))

    def is_finished(self, folder: Path, latest: int | None) -> bool:
        """Nothing in the folder tells; the tracker file comes when all ranks have written theirs."""
        number = iteration_of(folder)
        return number is not None and latest is not None and number <= latest

    def describe(self, folder: Path) -> Catalog:
        return legacy_catalog.read_catalog(folder)

    def open(self, catalog: Catalog, *, check_source: bool) -> Reader:
        from pp_export.checkpoint.file_reader import FileReader  # who only describes needs none

        return FileReader(catalog, check_source=check_source)
