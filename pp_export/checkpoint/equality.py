"""Whether two stored tensors have the same values, by reading both: needed where one of them is to be left
out as a copy of the other.
"""

from __future__ import annotations

from pp_export.checkpoint.catalog import Catalog

_STEP_BYTES = 8 << 20


def are_equal(catalog: Catalog, name: str, other: str) -> bool:
    """Bit by bit; also for one that is stored once under both names. Tensors that are cut differently count
    as different, since no framework cuts a tensor and its copy in two ways. Raises CheckpointError where they
    can't be read.
    """
    from pp_export.checkpoint.file_reader import FileReader  # who only describes needs none

    if catalog.specs[name] != catalog.specs[other]:
        return False
    pairs = [sorted(catalog.slices[each], key=lambda slice_: slice_.box) for each in (name, other)]
    if [slice_.box for slice_ in pairs[0]] != [slice_.box for slice_ in pairs[1]]:
        return False
    buffers = [memoryview(bytearray(_STEP_BYTES)) for _ in range(2)]
    with FileReader(catalog, check_source=False) as reader:
        for ours, theirs in zip(*pairs):
            if ours[2:] == theirs[2:]:
                continue
            for rows, others in zip(ours.rows(_STEP_BYTES), theirs.rows(_STEP_BYTES)):
                if rows.num_bytes > len(buffers[0]):  # one row of a tensor
                    buffers = [memoryview(bytearray(rows.num_bytes)) for _ in range(2)]
                one, two = (buffer[: rows.num_bytes] for buffer in buffers)
                reader.read(rows, one)
                reader.read(others, two)
                if one != two:
                    return False
    return True
