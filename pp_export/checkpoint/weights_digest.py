"""What tells one save's weights from another's without reading them: some of their CRC-32s, or some of their
bytes where none are stored.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

from pp_export.checkpoint.catalog import NO_CRC, Catalog
from pp_export.core.digest import json_digest
from pp_export.core.errors import CheckpointError

_NUM_SAMPLES, _SAMPLE_BYTES = 64, 64 << 10


def weights_digest(catalog: Catalog) -> str | None:
    """A digest of how many items are stored in which files, and of the places and CRC-32s of some; called on
    rank 0. None for a live model. Where the checkpoint lies, and since when, is not in it.
    """
    if catalog.holders is not None:
        return None
    numbers = range(len(catalog.stored_items))
    samples = numbers[:: max(1, len(numbers) // _NUM_SAMPLES)]
    places = [catalog.stored_items[number][:3] for number in samples]
    files = [os.path.basename(file) if os.path.isabs(file) else file for file in catalog.files]
    return json_digest([files, len(numbers), places, [_crc(catalog, number) for number in samples]])


def _crc(catalog: Catalog, number: int) -> int | None:
    """The CRC-32 of an item, or of the begin of one that was stored without; None for one that can't be had,
    of which the reader will tell.
    """
    from pp_export.checkpoint.file_bytes import FileBytes
    from pp_export.torch_file import tensor_item

    item = catalog.stored_items[number]
    if item.crc is not None and item.crc != NO_CRC:
        return item.crc
    try:
        file = FileBytes(Path(catalog.description.folder) / catalog.files[item.file])
        try:
            if item.crc is None:
                spec = catalog.spec_of_item[number]
                return tensor_item.locate(file.descriptor, item.offset, item.length, spec).crc
            begin = memoryview(bytearray(min(item.length, _SAMPLE_BYTES)))
            file.read(item.offset, [begin])
            return zlib.crc32(begin)
        finally:
            file.close()
    except CheckpointError:
        return None
