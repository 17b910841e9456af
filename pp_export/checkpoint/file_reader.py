"""Gives the values of slices from the files of a checkpoint, checking the CRC-32 that torch stored with
them.
"""

from __future__ import annotations

import mmap
import os
import threading
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from isal import isal_zlib

from pp_export.checkpoint.catalog import NO_CRC, Catalog
from pp_export.checkpoint.file_bytes import FileBytes
from pp_export.core.errors import CheckpointError
from pp_export.core.tensors import Slice
from pp_export.core.views import View
from pp_export.torch_file import tensor_item
from pp_export.torch_file.tensor_item import StoredBytes

_STEP_BYTES = 4 << 20


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

    def with_run(self, run: _Run) -> _Open:
        """The item with a run read. Bytes that were read before count once."""
        at = bisect_right(self.runs, run.begin, key=lambda each: each.begin)
        before, behind = self.runs[:at], self.runs[at:]
        if (
            run.begin == run.end
            or (before and before[-1].end > run.begin)
            or (behind and behind[0].begin < run.end)
        ):
            return self
        if before and before[-1].end == run.begin:
            run = _joined(before[-1], run)
            before = before[:-1]
        if behind and behind[0].begin == run.end:
            run = _joined(run, behind[0])
            behind = behind[1:]
        return _Open(self.stored, (*before, run, *behind))


def _joined(first: _Run, second: _Run) -> _Run:
    crc = isal_zlib.crc32_combine(first.crc, second.crc, second.end - second.begin)
    return _Run(first.begin, second.end, crc)


class FileReader:
    """Open files of one rank, used by any number of threads.

    The CRC of an item is put together of those of its slices, in whatever order they are asked for. What was
    not read, or not as bytes in order (a transposed tensor), is read for it at the end.
    """

    def __init__(self, catalog: Catalog, *, check_source: bool) -> None:
        self._catalog, self._check_source = catalog, check_source
        self._folder = Path(catalog.description.folder)
        self._lock = threading.Lock()
        self._files: dict[int, FileBytes] = {}
        self._open: dict[int, _Open] = {}
        self._is_closed = False

    allows_threads = True

    def read(self, slice_: Slice, *into: memoryview) -> None:
        """Fill `into`, one after another (together exactly the slice's bytes), with the slice in C order."""
        file = self._catalog.stored_items[slice_.item].file
        try:
            stored = self._opened(slice_.item)
            if slice_.strides is not None:
                _read_strided(self._file(file), stored, slice_, into)
                return
            _check_inside(slice_.begin + slice_.num_bytes, stored)
            self._file(file).read(stored.offset + slice_.begin, into)
            if self._checks(slice_.item):
                self._add(slice_.item, slice_.begin, into)
        except CheckpointError as error:
            raise error.at(tensor=slice_.name, file=self._path(file)) from error

    def settle(self) -> None:
        """What was read is there."""

    def on_device(self, slice_: Slice) -> None:
        """Files don't lie in a GPU's memory."""

    def finish(self) -> None:
        """Check what is left of items that were read in part; after the last slice. Called again after an
        error, it goes on with the next item.
        """
        for number, opened in list(self._open.items()):
            if self._checks(number) and not opened.is_finished:
                try:
                    self._read_rest(number)
                except CheckpointError as error:
                    del self._open[number]
                    path = self._path(self._catalog.stored_items[number].file)
                    raise error.at(tensor=self._catalog.key_of_item[number], file=path) from error

    def __enter__(self) -> FileReader:
        return self

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._is_closed = True  # after a failure, workers may still be about to read
            for file in self._files.values():
                file.close()
            self._files.clear()

    def _checks(self, number: int) -> bool:
        return self._check_source and self._catalog.stored_items[number].crc != NO_CRC

    def _opened(self, number: int) -> StoredBytes:
        with self._lock:
            if number in self._open:
                return self._open[number].stored
        stored = self._catalog.stored_items[number]
        if stored.crc is None:
            spec = self._catalog.spec_of_item[number]
            descriptor = self._file(stored.file).descriptor
            located = tensor_item.locate(descriptor, stored.offset, stored.length, spec)
        else:
            located = StoredBytes(stored.offset, stored.length, stored.crc)
        with self._lock:
            return self._open.setdefault(number, _Open(located)).stored

    def _read_rest(self, number: int) -> None:
        opened = self._open[number]
        file = self._file(self._catalog.stored_items[number].file)
        buffer = memoryview(bytearray(min(_STEP_BYTES, opened.stored.num_bytes)))
        for begin, end in opened.gaps:
            for at in range(begin, end, _STEP_BYTES):
                step = buffer[: min(_STEP_BYTES, end - at)]
                file.read(opened.stored.offset + at, [step])
                self._add(number, at, [step])

    def _add(self, number: int, begin: int, read: Sequence[memoryview]) -> None:
        """Bytes of an item; the CRC is compared when they are the last that were missing."""
        end, crc = begin, 0
        for each in read:
            end, crc = end + len(each), isal_zlib.crc32(each, crc)
        with self._lock:
            before = self._open[number]
            opened = self._open[number] = before.with_run(_Run(begin, end, crc))
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

    def _file(self, number: int) -> FileBytes:
        with self._lock:
            if self._is_closed:
                raise CheckpointError("the checkpoint is not read any more")
            if number not in self._files:
                self._files[number] = FileBytes(self._path(number))
            return self._files[number]

    def _path(self, file: int) -> Path:
        return self._folder / self._catalog.files[file]


def _check_inside(end: int, stored: StoredBytes) -> None:
    if end > stored.num_bytes:
        raise CheckpointError(
            "a slice reaches beyond the end of its stored item", expected=f"{stored.num_bytes} bytes", got=end
        )


def _read_strided(file: FileBytes, stored: StoredBytes, slice_: Slice, into: Sequence[memoryview]) -> None:
    """Through a mapping of the file, since the values don't lie together."""
    from pp_export.core import elements  # numpy, for which describing alone need not wait

    assert slice_.strides is not None
    size, shape = slice_.dtype.itemsize, slice_.box.shape
    span = size * (1 + sum((n - 1) * stride for n, stride in zip(shape, slice_.strides)))
    begin = stored.offset + slice_.begin
    _check_inside(slice_.begin + span, stored)
    if os.fstat(file.descriptor).st_size < begin + span:
        raise CheckpointError("the file ends inside a tensor")
    dense = into[0] if len(into) == 1 else memoryview(bytearray(slice_.num_bytes))
    with (
        mmap.mmap(file.descriptor, 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as whole,
        whole[begin : begin + span] as part,
    ):
        values = elements.seen(part, size, View(0, shape, slice_.strides))
        elements.copy(values, elements.of(dense, size, shape))
        del values  # the mapping can't be closed while an array looks at it
    at = 0
    for piece in into if len(into) > 1 else ():
        piece[:] = dense[at : at + len(piece)]
        at += len(piece)
