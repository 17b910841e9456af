"""A source of live values: the parameters of a training job, of which each rank knows its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pp_export.checkpoint import live
from pp_export.checkpoint.catalog import Catalog
from pp_export.checkpoint.source import Reader


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
        return live.LiveReader(self._local, catalog)
