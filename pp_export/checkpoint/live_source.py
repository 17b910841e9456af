"""A source of live values: the parameters of a training job, of which each rank knows its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pp_export.checkpoint import live
from pp_export.checkpoint.catalog import Catalog
from pp_export.checkpoint.file_reader import FileReader
from pp_export.checkpoint.source import Reader
from pp_export.core.tensors import Slice


class ModelSource:
    """The parts (one per virtual stage) of this rank's model; nothing of them is copied here."""

    is_shared = False

    def __init__(self, model: Sequence[Any]) -> None:
        self._model = model
        self._local: live.LocalModel | None = None

    @property
    def folders(self) -> Sequence[Path]:
        return ()

    @property
    def device(self) -> torch.device | None:
        return next(iter(live.gpus(self._local)), None) if self._local is not None else None

    def check(self) -> None:
        live.check(self._model)

    def announce(self) -> bytes:
        """Parameters that are still to be gathered for the next forward pass are gathered first."""
        live.settle(self._model)
        self._local = live.look_at(self._model)
        live.wait_for(self._local)
        return self._local.to_bytes()

    def describe(self, announced: Sequence[bytes]) -> Catalog:
        return live.merge(announced)

    def open(self, catalog: Catalog) -> Reader:
        assert self._local is not None, "announce comes first"
        reader = live.LiveReader(self._local, catalog)
        return WithFiles(reader, catalog) if catalog.files else reader


class WithFiles:
    """The values of a live model, and those of its catalog that lie in files."""

    allows_threads = False

    def __init__(self, reader: live.LiveReader, catalog: Catalog) -> None:
        self._live, self._files = reader, FileReader(catalog, check_source=False)
        self._catalog = catalog

    def read(self, slice_: Slice, *into: memoryview) -> None:
        (self._files if self._is_filed(slice_) else self._live).read(slice_, *into)

    def settle(self) -> None:
        self._live.settle()

    def on_device(self, slice_: Slice) -> torch.Tensor | None:
        return None if self._is_filed(slice_) else self._live.on_device(slice_)

    def finish(self) -> None:
        self._live.finish()

    def __enter__(self) -> WithFiles:
        return self

    def __exit__(self, *exception: object) -> None:
        self._files.__exit__(*exception)
        self._live.__exit__(*exception)

    def _is_filed(self, slice_: Slice) -> bool:
        return self._catalog.files[self._catalog.stored_items[slice_.item].file] != ""
