"""Readers of checkpoints and live models. A reader says which slices there are, of which model, and gives
their values.

Geometry ends here. Stacked layers, stacked experts, stage-local numbers, tensor parallel parts and
interleaved rows are resolved by the readers, which speak canonical names only.
"""

from __future__ import annotations

from pathlib import Path

from pp_export.checkpoint import dcp, locate
from pp_export.checkpoint.catalog import LEGACY, Catalog
from pp_export.checkpoint.legacy import catalog as legacy


def read_catalog(checkpoint: Path, iteration: int | None) -> Catalog:
    """What a checkpoint of any format holds, without values; called on rank 0 only.

    Raises CheckpointError where it is missing, unfinished, damaged or of a kind that can't be exported.
    """
    folder = locate.iteration_folder(checkpoint, iteration)
    if locate.format_of(folder) == LEGACY:
        return legacy.read_catalog(folder)
    return dcp.read_catalog(folder)
