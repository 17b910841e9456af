"""Every byte of a checkpoint's weights, read as an export reads them and looked at: `inspect --deep`.

One process does it, with a thread for each of several tensors at a time, in steps of a few MiB. What can't be
read is told, and the rest is looked at all the same.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from pp_export.checkpoint.catalog import Catalog
from pp_export.checkpoint.formats import describe_checkpoint, open_checkpoint
from pp_export.checkpoint.source import Reader
from pp_export.core import elements
from pp_export.core.errors import CheckpointError, ExportError, OptionError
from pp_export.core.tensors import Box, Slice, check_coverage
from pp_export.process.cores import usable_cores
from pp_export.steps.checkpoint_report import (
    CheckpointFault,
    CheckpointReport,
    Examination,
    ExaminedTensor,
    checkpoint_report,
)
from pp_export.steps.examined import ValuesExaminer

STEP_BYTES = 4 << 20
OnBytes = Callable[[int], None]


def examine_folder(
    folder: Path,
    iteration: int | None,
    threads: int | None,
    *,
    on_total: OnBytes | None = None,
    on_bytes: OnBytes | None = None,
) -> CheckpointReport:
    """Tell of a checkpoint, and of every byte of its weights. `on_total` is told how many bytes will be read
    before the first is. Raises CheckpointError where the metadata can't be read, and OptionError.
    """
    if threads is not None and threads < 1:
        raise OptionError("an examination needs at least one thread", got=threads)
    missing: list[ExportError] = []
    catalog = describe_checkpoint(folder, iteration, on_fault=missing.append)
    if on_total is not None:
        on_total(sum(spec.num_bytes for spec in catalog.specs.values()))
    examined = examine(
        catalog,
        missing,
        threads=usable_cores() if threads is None else threads,
        on_bytes=on_bytes or (lambda _: None),
    )
    return checkpoint_report(catalog, examined)


def examine(
    catalog: Catalog,
    missing: Sequence[ExportError] = (),
    *,
    threads: int,
    on_bytes: OnBytes = lambda _: None,
) -> Examination:
    """Read all weights of a checkpoint of files; called by one process. `missing` is what was told while it
    was described. `on_bytes` is told the bytes of every step, by one thread at a time; what it raises ends
    the examination.
    """
    began = time.monotonic()
    work = _Work(catalog, on_bytes)
    work.faults += [fault for error in missing for fault in _missing(error)]
    names = sorted(catalog.specs, key=lambda name: -catalog.specs[name].num_bytes)
    with (
        open_checkpoint(catalog, check_source=True) as reader,
        open_checkpoint(catalog, check_source=False) as unchecked,
        ThreadPoolExecutor(threads, thread_name_prefix="examine") as pool,
    ):
        work.checked, work.unchecked = reader, unchecked
        futures = [pool.submit(work.look_at, name) for name in names]
        try:
            seen = {name: future.result() for name, future in zip(names, futures)}
        finally:  # after an exception the other threads stop at their next step
            work.is_over.set()
            for future in futures:
                future.cancel()
        work.finish()
    unproved = work.names_in_faulty_items()
    tensors = {
        name: replace(seen[name], digest=None) if name in unproved else seen[name] for name in catalog.specs
    }
    faults = sorted(work.faults, key=lambda each: (each.kind, each.tensor or "", each.file or ""))
    return Examination(
        has_checksums=catalog.has_checksums,
        num_bytes_read=work.num_bytes_read,
        seconds=time.monotonic() - began,
        faults=tuple(faults),
        tensors=tensors,
    )


class _Work:
    """What threads share: the readers, and what was found."""

    checked: Reader
    unchecked: Reader

    def __init__(self, catalog: Catalog, on_bytes: OnBytes) -> None:
        self._catalog, self._slices, self._on_bytes = catalog, catalog.slices, on_bytes
        self._lock = threading.Lock()
        self._items: set[int] = set()
        self.is_over = threading.Event()
        self.num_bytes_read = 0
        self.faults: list[CheckpointFault] = []

    def look_at(self, name: str) -> ExaminedTensor:
        """One tensor, step by step."""
        spec, slices = self._catalog.specs[name], self._slices.get(name, ())
        is_whole = self._is_covered(name, slices)
        whole = Slice(name, Box((0,) * len(spec.shape), spec.shape), spec.dtype, -1)
        steps = _filled(whole, slices) if is_whole else ((step, [step]) for s in slices for step in _cut(s))
        examiner = ValuesExaminer(spec.dtype)
        memory, aside = (memoryview(bytearray(min(STEP_BYTES, spec.num_bytes))) for _ in range(2))
        for step, parts in steps:
            if self.is_over.is_set():
                break
            into = memory[: step.num_bytes]
            are_there = [self._read(part, step, into, aside) for part in parts]
            if all(are_there):
                examiner.take(into)
            else:
                is_whole = False
        seen = examiner.seen()
        return ExaminedTensor(
            dtype=spec.dtype.torch_name,
            shape=spec.shape,
            digest=seen.digest if is_whole else None,
            num_nan=seen.num_nan,
            num_infinite=seen.num_infinite,
            is_zero=seen.is_zero,
            is_constant=seen.is_constant,
        )

    def finish(self) -> None:
        """Check what single slices could not show."""
        while True:
            try:
                self.checked.finish()
                return
            except CheckpointError as error:
                key = error.where.get("tensor", "")
                items = {n for n, of in self._catalog.key_of_item.items() if of == key} - self._items
                if items:
                    self.faults.append(_fault("damaged", error))
                self._items |= items

    def names_in_faulty_items(self) -> set[str]:
        """The tensors of which some bytes lie in an item that isn't what was stored."""
        found = self._slices.items()
        return {name for name, slices in found if any(each.item in self._items for each in slices)}

    def _is_covered(self, name: str, slices: Sequence[Slice]) -> bool:
        try:
            check_coverage(name, self._catalog.specs[name].shape, [each.box for each in slices])
        except CheckpointError as error:
            with self._lock:
                self.faults.append(_fault("uncovered", error))
            return False
        return True

    def _read(self, part: Slice, step: Slice, into: memoryview, aside: memoryview) -> bool:
        """Read a part of a step to its place; whether its values are there."""
        begin = _straight(part, step)
        target = aside[: part.num_bytes] if begin is None else into[begin : begin + part.num_bytes]
        is_there = self._try(part, target)
        if begin is None and is_there:
            size = step.dtype.itemsize
            begins = map(int.__sub__, part.box.offset, step.box.offset)
            at = tuple(slice(first, first + count) for first, count in zip(begins, part.box.shape))
            values = elements.of(into, size, step.box.shape)[at]
            elements.copy(elements.of(target, size, part.box.shape), values)
        with self._lock:
            self.num_bytes_read += part.num_bytes if is_there else 0
            self._on_bytes(part.num_bytes)
        return is_there

    def _try(self, part: Slice, target: memoryview) -> bool:
        try:
            self.checked.read(part, target)
        except CheckpointError as error:
            kind = "damaged"
            try:
                self.unchecked.read(part, target)
            except CheckpointError:
                kind = "unreadable"
            with self._lock:
                if part.item not in self._items:
                    key = self._catalog.key_of_item[part.item]
                    self.faults.append(_fault(kind, error, key))
                self._items.add(part.item)
            return kind == "damaged"
        return True


def _missing(error: ExportError) -> list[CheckpointFault]:
    """What was told while the checkpoint was described: a fault for each file or box."""
    whole = _fault("missing", error)
    return [replace(whole, message=text) for text in error.findings] or [whole]


def _fault(kind: str, error: ExportError, key: str | None = None) -> CheckpointFault:
    """An error as a fault of a file or tensor."""
    told = [error.what]
    told += [f"{word} {text}" for word, text in (("expected", error.expected), ("got", error.got)) if text]
    file = error.where.get("file")
    return CheckpointFault(
        kind=kind,
        tensor=key or error.where.get("tensor"),
        file=None if file is None else Path(file).name,
        message="; ".join(told),
    )


def _cut(whole: Slice) -> Iterator[Slice]:
    """A slice in steps that follow one another in its own C order, each of at most `STEP_BYTES`."""
    for part in whole.rows(STEP_BYTES):
        if part.num_bytes <= STEP_BYTES or part == whole:
            yield part
        else:
            yield from _cut(part)


def _filled(whole: Slice, slices: Sequence[Slice]) -> Iterator[tuple[Slice, list[Slice]]]:
    """The steps of a tensor, with the parts of its slices that fill each."""
    left = sorted(slices, key=lambda each: each.box.offset)
    for step in _cut(whole):
        if step.box.shape:
            begin, rows = step.box.offset[0], step.box.shape[0]
            left = [each for each in left if each.box.offset[0] + each.box.shape[0] > begin]
            near = [each for each in left if each.box.offset[0] < begin + rows]
        else:
            near = left
        yield step, [part for each in near if (part := _within(each, step.box)) is not None]


def _within(slice_: Slice, box: Box) -> Slice | None:
    """What of a slice lies in a box that is narrower than the tensor in its first dims alone."""
    part = slice_
    for dim, (offset, count) in enumerate(zip(box.offset, box.shape)):
        own, size = part.box.offset[dim], part.box.shape[dim]
        begin, end = max(offset, own), min(offset + count, own + size)
        if begin >= end:
            return None
        if end - begin < size:
            part = part.part(begin - own, end - begin, dim=dim)
    return part


def _straight(part: Slice, step: Slice) -> int | None:
    """The byte of a step from which on all of a part lies; None where it lies in several places."""
    shape = step.box.shape
    dim = next((d for d, count in enumerate(shape) if count > 1), None)
    if dim is None:
        return 0
    if part.box.shape[dim + 1 :] != shape[dim + 1 :]:
        return None
    row = part.box.offset[dim] - step.box.offset[dim]
    return row * math.prod(shape[dim + 1 :]) * step.dtype.itemsize
