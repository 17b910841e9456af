"""What tells one save's weights from another's without reading them: some of their CRC-32s."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from pp_export.checkpoint.catalog import Catalog
from pp_export.core.digest import json_digest
from pp_export.core.errors import CheckpointError

_NUM_SAMPLES = 64


def weights_digest(catalog: Catalog) -> str | None:
    """A digest of how many items are stored in which files, and of the places and CRC-32s of some; called on
    rank 0. None for a live model. Where the checkpoint lies, and since when, is not in it.
    """
    if catalog.holders is not None:
        return None
    numbers = range(len(catalog.stored_items))
    samples = numbers[:: max(1, len(numbers) // _NUM_SAMPLES)]
    places = [catalog.stored_items[number][:3] for number in samples]
    return json_digest([catalog.files, len(numbers), places, _crcs(catalog, samples)])


def _crcs(catalog: Catalog, numbers: range) -> list[int | None]:
    """The CRC-32s of items; None for one that can't be had, of which the reader will tell."""
    from pp_export.checkpoint.file_bytes import FileBytes
    from pp_export.torch_file import tensor_item

    found: list[int | None] = []
    for number in numbers:
        item, crc = catalog.stored_items[number], None
        if item.crc is not None:
            found.append(item.crc)
            continue
        with suppress(CheckpointError):
            file = FileBytes(Path(catalog.description.folder) / catalog.files[item.file])
            try:
                spec = catalog.spec_of_item[number]
                crc = tensor_item.locate(file.descriptor, item.offset, item.length, spec).crc
            finally:
                file.close()
        found.append(crc)
    return found
