"""Where values come from: a checkpoint's files, or the parameters of a running job. An export asks either the
same three things: what it has, who may read it, and the values of a slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from pp_export.checkpoint import live, read_catalog
from pp_export.checkpoint.catalog import Catalog
from pp_export.checkpoint.file_reader import FileReader
from pp_export.checkpoint.live import LiveReader
from pp_export.core.options import ExportOptions
from pp_export.distributed.world import World
from pp_export.steps.transfer import Reader


class OpenReader(Reader, AbstractContextManager["OpenReader"], Protocol):
    """A reader that is closed at the end."""


class Source(Protocol):
    """What an export asks."""

    @property
    def sources(self) -> Sequence[Path]:
        """The folders that are read, and so must not be replaced."""

    def prepare(self, world: World) -> None:
        """What every rank has to say before rank 0 can describe it; called by all."""

    def describe(self) -> Catalog:
        """What there is, without values; called on rank 0."""

    def open(self, catalog: Catalog) -> OpenReader:
        """The reader of this rank."""


class CheckpointSource:
    """Files that every rank can read."""

    def __init__(self, options: ExportOptions) -> None:
        self._options = options

    @property
    def sources(self) -> Sequence[Path]:
        return (self._options.checkpoint,)

    def prepare(self, world: World) -> None:
        """Rank 0 reads the metadata alone."""

    def describe(self) -> Catalog:
        return read_catalog(self._options.checkpoint, self._options.iteration)

    def open(self, catalog: Catalog) -> FileReader:
        return FileReader(catalog, check_source=self._options.check_source)


class ModelSource:
    """The model parts (one per virtual stage) of this rank of a training job; nothing of them is copied
    here.
    """

    def __init__(self, model: Sequence[Any]) -> None:
        self._model = model
        self._local: live.LocalModel | None = None
        self._gathered: list[bytes] = []

    @property
    def sources(self) -> Sequence[Path]:
        return ()

    def prepare(self, world: World) -> None:
        """Every rank tells rank 0 what it holds; nobody gathers before all are known to be able to."""
        world.together(lambda: live.check(self._model))
        live.settle(self._model)
        self._local = live.look_at(self._model)
        self._gathered = world.gather(self._local.to_bytes())

    def describe(self) -> Catalog:
        return live.merge(self._gathered)

    def open(self, catalog: Catalog) -> LiveReader:
        assert self._local is not None
        return LiveReader(self._local, catalog)


def holders_of(catalog: Catalog, world_size: int) -> list[Sequence[int]] | None:
    """The ranks that can read each record, or None where all can.

    In the legacy format each file is one rank's part of the model. Files go to ranks in order: as many ranks
    as files get one each, fewer take several. With more ranks than files, all read all, as the export's own
    grid deals.
    """
    if catalog.holders is not None:
        return [catalog.holders[record.file] for record in catalog.stored_items]
    num_files = len(catalog.files)
    if not catalog.is_one_file_per_rank or world_size > num_files:
        return None
    return [(record.file * world_size // num_files,) for record in catalog.stored_items]
