"""Claims of `pp_export.checkpoint.file_reader`: of a storage that tensors share, every byte is read once."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from pp_export.checkpoint.catalog import Catalog, Description, StoredItem
from pp_export.checkpoint.file_reader import FileReader
from pp_export.checkpoint.legacy import catalog as legacy
from pp_export.core.dtypes import from_torch
from pp_export.core.tensors import Box, Shape, Slice
from pp_export.torch_file import archive
from tests.cpu.checkpoint.test_legacy import DENSE, MOE, written
from tests.fixtures.element_types import bytes_of
from tests.fixtures.legacy import Run

NUM_ROWS, NUM_COLUMNS = 600, 50
SAMPLED = 64
"""So many bytes may be read of a file to learn whether it is in the page cache."""
AGAIN = "bytes of views that overlap another, or lie transposed, are read once more for the CRC-32"


class Counter:
    """Counts the bytes of files that this process reads, or maps, which reads them unseen."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.num_bytes = 0
        preadv, pread, map_file = os.preadv, os.pread, mmap.mmap

        def counting_preadv(descriptor: int, buffers: Sequence[memoryview], at: int, flags: int = 0) -> int:
            count = preadv(descriptor, buffers, at, flags)
            self.num_bytes += count
            return count

        def counting_pread(descriptor: int, length: int, at: int) -> bytes:
            data = pread(descriptor, length, at)
            self.num_bytes += len(data)
            return data

        def counting_map(descriptor: int, length: int, **settings: int) -> mmap.mmap:
            self.num_bytes += 0 if descriptor < 0 else os.fstat(descriptor).st_size
            return map_file(descriptor, length, **settings)

        patch.setattr(os, "preadv", counting_preadv)
        patch.setattr(os, "pread", counting_pread)
        patch.setattr(mmap, "mmap", counting_map)


def read_all(catalog: Catalog, *, backwards: bool = False) -> None:
    """Read every slice, and what is left for the CRCs."""
    slices = [slice_ for of_name in catalog.slices.values() for slice_ in of_name]
    with FileReader(catalog, check_source=True) as reader:
        for slice_ in reversed(slices) if backwards else slices:
            reader.read(slice_, memoryview(bytearray(slice_.num_bytes)))
        reader.finish()


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize(
    "case", [DENSE["vpp2_in_one_buffer"], DENSE["tied_in_one_buffer"], MOE["in_one_buffer"], DENSE["tp2pp2"]]
)
def test_a_buffer_of_all_parameters_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: tuple[Run, dict[str, Any]], backwards: bool
) -> None:
    """The views of a flat buffer together, or the gaps between them, are one reading of it, in any order."""
    catalog = legacy.read_catalog(written(tmp_path, *case).folder)
    counter = Counter(monkeypatch)
    read_all(catalog, backwards=backwards)
    num_bytes = sum(item.length for item in catalog.stored_items)
    assert num_bytes <= counter.num_bytes <= num_bytes + SAMPLED * len(catalog.files)


Views = list[tuple[int, int, Shape | None]]
"""Parts of a storage of `NUM_ROWS` x `NUM_COLUMNS` floats: first row, how many, strides if transposed."""

OVERLAPPING: Views = [(0, 400, None), (200, 400, None), (100, 50, None)]
CONTAINED: Views = [(100, 50, None), (0, NUM_ROWS, None)]
TRANSPOSED: Views = [(0, 300, (1, NUM_COLUMNS)), (300, 300, (1, NUM_COLUMNS))]


@pytest.mark.parametrize(
    ("views", "most"),
    [
        ([(0, 200, None), (400, 200, None)], NUM_ROWS),
        ([(0, 1, None)], NUM_ROWS),
        pytest.param(OVERLAPPING, 400 + 400 + 50, marks=pytest.mark.xfail(strict=True, reason=AGAIN)),
        pytest.param(CONTAINED, NUM_ROWS + 50, marks=pytest.mark.xfail(strict=True, reason=AGAIN)),
        pytest.param(TRANSPOSED, NUM_ROWS, marks=pytest.mark.xfail(strict=True, reason=AGAIN)),
    ],
    ids=["with a gap", "one row", "overlapping", "one in the other", "transposed"],
)
def test_no_view_makes_others_be_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, views: Views, most: int
) -> None:
    """No more is read than the views have, and what none of them has, once, for the CRC-32; whether views
    overlap or lie transposed. Their values come out right.
    """
    values = torch.randn(NUM_ROWS, NUM_COLUMNS, generator=torch.Generator().manual_seed(0))
    torch.save({"buffer": values}, tmp_path / "file.pt")
    stored = archive.read(tmp_path / "file.pt")
    ((key, member),) = stored.storages.items()
    item = StoredItem(0, stored.begins([key])[key], member.length, member.crc)
    description = Description(str(tmp_path), "torch", "the test", None, None, {}, {})
    counter = Counter(monkeypatch)
    with FileReader(Catalog(description, ("file.pt",), (item,), ()), check_source=True) as reader:
        for row, num_rows, strides in views:
            expected = values[row : row + num_rows] if strides is None else values[row : row + num_rows].t()
            box = Box((0, 0), tuple(expected.shape))
            slice_ = Slice("t", box, from_torch("float32"), 0, row * NUM_COLUMNS * 4, strides)
            into = bytearray(slice_.num_bytes)
            reader.read(slice_, memoryview(into))
            assert bytes(into) == bytes_of(expected.contiguous())
        reader.finish()
    assert counter.num_bytes <= most * NUM_COLUMNS * 4 + SAMPLED
