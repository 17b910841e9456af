"""Gives the values of slices from the files of a checkpoint, checking the CRC-32 that torch stored with
them.
"""

from __future__ import annotations

import mmap
import os
from bisect import bisect_right
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
class _Run:
    """Bytes [begin, end) of an item that were read, and their CRC."""

    begin: int
    end: int
    crc: int


@dataclass(frozen=True)
class _Open:
    """An item, and the runs of it that were read: in order, with gaps between them."""

    stored: StoredBytes
    runs: tuple[_Run, ...] = ()

    @property
    def is_finished(self) -> bool:
        return not self.gaps

    @property
    def gaps(self) -> list[tuple[int, int]]:
        """What was not read."""
        begins = [run.begin for run in self.runs] + [self.stored.num_bytes]
        ends = [0] + [run.end for run in self.runs]
        return [(end, begin) for end, begin in zip(ends, begins) if end < begin]

    def with_bytes(self, begin: int, data: memoryview) -> _Open:
        """The item with `data` read, which begins at byte `begin`. Bytes that were read before count once."""
        end = begin + len(data)
        at = bisect_right(self.runs, begin, key=lambda run: run.begin)
        before, behind = self.runs[:at], self.runs[at:]
        if begin == end or (before and before[-1].end > begin) or (behind and behind[0].begin < end):
            return self
        run = _Run(begin, end, isal_zlib.crc32(data))
        if before and before[-1].end == begin:
            run = _joined(before[-1], run)
            before = before[:-1]
        if behind and behind[0].begin == end:
            run = _joined(run, behind[0])
            behind = behind[1:]
        return _Open(self.stored, (*before, run, *behind))


def _joined(first: _Run, second: _Run) -> _Run:
    crc = isal_zlib.crc32_combine(first.crc, second.crc, second.end - second.begin)
    return _Run(first.begin, second.end, crc)


class FileReader:
    """Open files of one rank, used by one thread.

    The CRC of an item is put together of those of its slices, in whatever order they are asked for. What was
    not read, or not as bytes in order (a transposed tensor), is read for it at the end.
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
            if self._check_source and slice_.strides is None:
                self._add(slice_.item, slice_.begin, into)
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
                    self._read_rest(number)
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

    def _read_rest(self, number: int) -> None:
        stored = self._open[number].stored
        descriptor = self._descriptor(self._catalog.stored_items[number].file)
        buffer = memoryview(bytearray(min(_STEP_BYTES, stored.num_bytes)))
        for begin, end in self._open[number].gaps:
            for at in range(begin, end, _STEP_BYTES):
                step = buffer[: min(_STEP_BYTES, end - at)]
                _read_fully(descriptor, stored.offset + at, step)
                self._add(number, at, step)

    def _add(self, number: int, begin: int, data: memoryview) -> None:
        """Bytes of an item; the CRC is compared when they are the last that were missing."""
        before = self._open[number]
        opened = self._open[number] = before.with_bytes(begin, data)
        if opened is before or not opened.is_finished:
            return
        expected, got = opened.stored.crc, opened.runs[0].crc if opened.runs else 0
        if got != expected:
            raise CheckpointError(
                "the stored bytes are damaged: their CRC-32 is not the one that torch stored with them",
                expected=f"{expected:08x}",
                got=f"{got:08x}",
                advice="restore the file from another copy of the checkpoint, or take another iteration",
            )

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
