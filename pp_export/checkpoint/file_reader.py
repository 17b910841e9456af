"""Gives the values of slices from the files of a checkpoint, checking the CRC-32 that torch stored with
them.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from isal import isal_zlib

from pp_export.checkpoint.catalog import Catalog
from pp_export.core.errors import CheckpointError
from pp_export.core.tensors import Slice
from pp_export.torch_file import tensor_item
from pp_export.torch_file.tensor_item import StoredBytes

_STEP_BYTES = 4 << 20
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class _Open:
    """An item of which the bytes before `end` were read; `crc` is theirs."""

    stored: StoredBytes
    end: int = 0
    crc: int = 0

    @property
    def is_finished(self) -> bool:
        return self.end == self.stored.num_bytes


class FileReader:
    """Open files of one rank, used by one thread.

    The CRC of an item runs along while its slices come in the order of their bytes. Where they don't (a
    storage that parameters share, a transposed tensor), the rest of the item is read once more for it.
    """

    def __init__(self, catalog: Catalog, *, check_source: bool) -> None:
        self._catalog, self._check_source = catalog, check_source
        self._folder = Path(catalog.description.folder)
        self._descriptors: dict[int, int] = {}
        self._open: dict[int, _Open] = {}

    def read(self, slice_: Slice, into: memoryview) -> None:
        """Fill `into` (exactly the slice's bytes) with the slice in C order."""
        file = self._catalog.stored_items[slice_.item].file
        try:
            opened = self._opened(slice_.item)
            if slice_.strides is not None:
                _read_strided(self._descriptor(file), opened.stored, slice_, into)
            else:
                _check_inside(slice_.begin + slice_.num_bytes, opened.stored)
                _read_fully(self._descriptor(file), opened.stored.offset + slice_.begin, into)
            if self._check_source and not opened.is_finished:
                if slice_.strides is None and slice_.begin == opened.end:
                    self._extend(slice_.item, opened, into)
                else:
                    self._read_rest(slice_.item, opened)
        except CheckpointError as error:
            raise error.at(tensor=slice_.name, file=self._path(file)) from error

    def settle(self) -> None:
        """What was read is there."""

    def on_device(self, slice_: Slice) -> None:
        """Files don't lie in a GPU's memory."""

    def finish(self) -> None:
        """Check what is left of items that were read in part; after the last slice."""
        for number, opened in list(self._open.items()):
            if self._check_source and not opened.is_finished:
                try:
                    self._read_rest(number, opened)
                except CheckpointError as error:
                    path = self._path(self._catalog.stored_items[number].file)
                    raise error.at(tensor=self._catalog.key_of_item[number], file=path) from error

    def __enter__(self) -> FileReader:
        return self

    def __exit__(self, *exception: object) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def _opened(self, number: int) -> _Open:
        if number not in self._open:
            stored = self._catalog.stored_items[number]
            if stored.crc is None:
                spec = self._catalog.spec_of_item[number]
                located = tensor_item.locate(
                    self._descriptor(stored.file), stored.offset, stored.length, spec
                )
            else:
                located = StoredBytes(stored.offset, stored.length, stored.crc)
            self._open[number] = _Open(located)
        return self._open[number]

    def _read_rest(self, number: int, opened: _Open) -> None:
        descriptor = self._descriptor(self._catalog.stored_items[number].file)
        buffer = memoryview(bytearray(min(_STEP_BYTES, opened.stored.num_bytes)))
        while not opened.is_finished:
            step = buffer[: min(len(buffer), opened.stored.num_bytes - opened.end)]
            _read_fully(descriptor, opened.stored.offset + opened.end, step)
            opened = self._extend(number, opened, step)

    def _extend(self, number: int, opened: _Open, data: memoryview) -> _Open:
        """The CRC with the next bytes of the item, compared when they are the last."""
        stored = opened.stored
        extended = _Open(stored, opened.end + len(data), isal_zlib.crc32(data, opened.crc))
        if extended.is_finished and extended.crc != stored.crc:
            raise CheckpointError(
                "the stored bytes are damaged: their CRC-32 is not the one that torch stored with them",
                expected=f"{stored.crc:08x}",
                got=f"{extended.crc:08x}",
                advice="restore the file from another copy of the checkpoint, or take another iteration",
            )
        self._open[number] = extended
        return extended

    def _descriptor(self, file: int) -> int:
        if file not in self._descriptors:
            try:
                self._descriptors[file] = os.open(self._path(file), os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise CheckpointError(f"can't open: {error.strerror}") from error
        return self._descriptors[file]

    def _path(self, file: int) -> Path:
        return self._folder / self._catalog.files[file]


def _check_inside(end: int, stored: StoredBytes) -> None:
    if end > stored.num_bytes:
        raise CheckpointError(
            "a slice reaches beyond its item", expected=f"{stored.num_bytes} bytes", got=end
        )


def _read_fully(descriptor: int, offset: int, into: memoryview) -> None:
    done = 0
    read: Callable[[int, list[memoryview], int], int] = os.preadv
    while done < len(into):
        try:
            count = read(descriptor, [into[done:]], offset + done)
        except OSError as error:
            raise CheckpointError(f"reading failed: {error.strerror}") from error
        if count == 0:
            raise CheckpointError("the file ends inside a tensor", expected=len(into), got=done)
        done += count


def _read_strided(descriptor: int, stored: StoredBytes, slice_: Slice, into: memoryview) -> None:
    """Through a mapping of the file, since the values don't lie together."""
    assert slice_.strides is not None
    size = slice_.dtype.itemsize
    span = size * (1 + sum((n - 1) * stride for n, stride in zip(slice_.box.shape, slice_.strides)))
    _check_inside(slice_.begin + span, stored)
    if os.fstat(descriptor).st_size < stored.offset + slice_.begin + span:
        raise CheckpointError("the file ends inside a tensor")
    with mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY) as file:
        flat = torch.frombuffer(file, dtype=torch.uint8, count=span, offset=stored.offset + slice_.begin)
        values = flat.view(_INTEGERS[size]).as_strided(slice_.box.shape, slice_.strides)
        torch.frombuffer(into, dtype=_INTEGERS[size]).view(slice_.box.shape).copy_(values)
        del flat, values  # the mapping can't be closed while a tensor looks at it
