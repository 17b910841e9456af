"""Tensors of two folders side by side, read in bounded steps; errors are computed only where bytes differ.

A `Pair` is a tensor on both sides, a `_Piece` some whole elements of it, a `_Stretch` pieces that lie one
behind the other on both sides: it is read and compared at once, however many tensors that are.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pp_export.verification.elements import elements, numbers, steps_between
from pp_export.verification.reading import UncachedFile, make_buffer
from pp_export.verification.weights import StoredTensor, unreadable

OnBytes = Callable[[int], None]

STEP_BYTES = 6 << 20
BLOCK_BYTES = 3 << 17
"""What is read, and what is compared, at once. Both hold whole elements, be they of six bits."""


@dataclass(frozen=True)
class Tolerance:
    """What elements may differ by: `absolute` plus `relative` of the larger of both, or `ulps` values of
    their type.
    """

    absolute: float = 0.0
    relative: float = 0.0
    ulps: float = 0.0

    @property
    def is_exact(self) -> bool:
        return not (self.absolute or self.relative or self.ulps)


EXACT = Tolerance()


@dataclass(frozen=True)
class ValueDifference:
    """A tensor of equal dtype and shape whose bits differ.

    The largest errors are over the differing elements whose error is a finite number: absolute, relative to
    the larger of both sides, and in units in the last place (None for complex numbers). `num_not_finite`
    counts the others, where a side is NaN or infinite. -0.0 and 0.0 differ, with error 0. `num_outside` are
    those that differ by more than the tolerance; NaNs of other bits are within any, but not within none.
    """

    name: str
    num_elements: int
    num_different: int
    num_not_finite: int
    num_outside: int
    max_abs_error: float
    max_rel_error: float
    max_ulp_error: float | None


@dataclass(frozen=True)
class Pair:
    """A tensor that both sides have, with one dtype and shape."""

    a: StoredTensor
    b: StoredTensor

    @property
    def name(self) -> str:
        return self.a.entry.name


@dataclass(frozen=True)
class _Piece:
    """Bytes [begin, end) of both tensors of a pair."""

    pair: Pair
    begin: int
    end: int

    def follows(self, other: _Piece) -> bool:
        """Whether it lies right behind `other` on both sides."""
        return all(
            this.path == that.path and this.begin + self.begin == that.begin + other.end
            for this, that in ((self.pair.a, other.pair.a), (self.pair.b, other.pair.b))
        )


@dataclass(frozen=True)
class _Stretch:
    """Pieces of which each follows the one before, `num_bytes` together."""

    pieces: tuple[_Piece, ...]
    num_bytes: int


@dataclass(frozen=True)
class Found:
    """What differs in some elements of a tensor."""

    num_different: int
    num_not_finite: int
    num_outside: int
    max_abs_error: float
    max_rel_error: float
    max_ulp_error: float | None


def compare(
    pairs: Sequence[Pair], threads: int, on_bytes: OnBytes | None, tolerance: Tolerance = EXACT
) -> tuple[list[ValueDifference], int]:
    """The pairs that differ, in their order, and how many bytes were read, of both sides together."""
    comparison = _Comparison(pairs, on_bytes, tolerance)
    with ThreadPoolExecutor(threads, thread_name_prefix="diff") as pool:
        for worker in [pool.submit(comparison.work) for _ in range(threads)]:
            worker.result()
    found = comparison.found
    different = [
        summed(pair.name, pair.a.entry.num_elements, found[pair.name]) for pair in pairs if pair.name in found
    ]
    return different, comparison.num_bytes_read


class _Comparison:
    """The stretches that nobody has compared yet, and what was found so far; shared by threads."""

    def __init__(self, pairs: Sequence[Pair], on_bytes: OnBytes | None, tolerance: Tolerance) -> None:
        self._left, self._on_bytes = _stretches(pairs), on_bytes
        self._tolerance = tolerance
        self._lock = threading.Lock()
        self.found: defaultdict[str, list[Found]] = defaultdict(list)
        self.num_bytes_read = 0

    def work(self) -> None:
        """Compare stretches until none is left. After an exception the other threads stop at their next."""
        try:
            with closing(StoredSide()) as left, closing(StoredSide()) as right:
                while (stretch := self._next()) is not None:
                    first = stretch.pieces[0]
                    a = left.read(first.pair.a, first.begin, stretch.num_bytes)
                    b = right.read(first.pair.b, first.begin, stretch.num_bytes)
                    self._count(len(a) + len(b))
                    if any(_blocks_that_differ(a, b)):
                        self._examine(stretch, a, b)
        except BaseException:
            with self._lock:
                self._left = iter(())
            raise

    def _next(self) -> _Stretch | None:
        with self._lock:
            return next(self._left, None)

    def _count(self, num_bytes: int) -> None:
        with self._lock:
            self.num_bytes_read += num_bytes
            if self._on_bytes is not None:
                self._on_bytes(num_bytes)

    def _examine(self, stretch: _Stretch, a: memoryview, b: memoryview) -> None:
        begin = 0
        for piece in stretch.pieces:
            end = begin + piece.end - piece.begin
            found = differences(a[begin:end], b[begin:end], piece.pair.a.entry.dtype, self._tolerance)
            if found:
                with self._lock:
                    self.found[piece.pair.name] += found
            begin = end


class StoredSide:
    """The file of one side that a thread has in hand, and the thread's memory for it. To be closed."""

    def __init__(self) -> None:
        self._buffer = make_buffer(STEP_BYTES)
        self._open = ExitStack()
        self._path: Path | None = None

    def read(self, tensor: StoredTensor, begin: int, num_bytes: int) -> memoryview:
        """Bytes of the file from byte `begin` of a tensor on, in memory that the next call uses again."""
        try:
            if tensor.path != self._path:
                self.close()
                self._file = self._open.enter_context(UncachedFile(tensor.path))
                self._path = tensor.path
            data = self._file.read(tensor.begin + begin, num_bytes, self._buffer)
        except OSError as error:
            raise unreadable(tensor.path, error.strerror) from None
        if len(data) < num_bytes:
            raise unreadable(tensor.path, "it became shorter meanwhile")
        return data

    def close(self) -> None:
        self._path = None
        self._open.close()


def _stretches(pairs: Sequence[Pair]) -> Iterator[_Stretch]:
    """All bytes of all pairs, in the order of the files of one side."""
    pieces: list[_Piece] = []
    num_bytes = 0
    for piece in _pieces(sorted(pairs, key=lambda pair: (pair.a.path, pair.a.begin))):
        added = piece.end - piece.begin
        if pieces and not (num_bytes + added <= STEP_BYTES and piece.follows(pieces[-1])):
            yield _Stretch(tuple(pieces), num_bytes)
            pieces, num_bytes = [], 0
        pieces.append(piece)
        num_bytes += added
    if pieces:
        yield _Stretch(tuple(pieces), num_bytes)


def _pieces(pairs: Sequence[Pair]) -> Iterator[_Piece]:
    for pair in pairs:
        for begin in range(0, pair.a.num_bytes, STEP_BYTES):
            yield _Piece(pair, begin, min(begin + STEP_BYTES, pair.a.num_bytes))


def differences(a: memoryview, b: memoryview, dtype: str, tolerance: Tolerance) -> list[Found]:
    """How whole elements of the safetensors type `dtype` differ, block by block; nothing where they don't."""
    return [_difference(*both, dtype, tolerance) for both in _blocks_that_differ(a, b)]


def _blocks_that_differ(a: memoryview, b: memoryview) -> Iterator[tuple[memoryview, memoryview]]:
    import numpy

    for begin in range(0, len(a), BLOCK_BYTES):
        in_a, in_b = a[begin : begin + BLOCK_BYTES], b[begin : begin + BLOCK_BYTES]
        if not numpy.array_equal(numpy.frombuffer(in_a, numpy.uint8), numpy.frombuffer(in_b, numpy.uint8)):
            yield in_a, in_b


def _difference(a: memoryview, b: memoryview, dtype: str, tolerance: Tolerance) -> Found:
    """How whole elements differ. Errors are computed in float64."""
    import numpy

    bits_a, bits_b = elements(a, dtype), elements(b, dtype)
    differs = bits_a != bits_b
    bits_a, bits_b = bits_a[differs], bits_b[differs]
    in_a, in_b = numbers(bits_a, dtype), numbers(bits_b, dtype)
    steps = steps_between(bits_a, bits_b, dtype)
    with numpy.errstate(all="ignore"):  # NaN and infinity are counted
        errors = numpy.abs(in_a - in_b)
        sizes = numpy.maximum(numpy.abs(in_a), numpy.abs(in_b))
        relative = numpy.where(errors > 0, errors / sizes, 0.0)
        is_finite = numpy.isfinite(errors)
        is_within = is_finite & (errors <= tolerance.absolute + tolerance.relative * sizes)
        if steps is not None:
            is_within |= is_finite & (steps <= tolerance.ulps)
        is_within |= numpy.isnan(in_a) & numpy.isnan(in_b)
    num_within = 0 if tolerance.is_exact else int(is_within.sum())

    def largest(values: Any) -> float:
        return float(values.max(initial=0.0, where=is_finite))

    return Found(
        len(bits_a),
        int((~is_finite).sum()),
        len(bits_a) - num_within,
        largest(errors),
        largest(relative),
        None if steps is None else largest(steps),
    )


def summed(name: str, num_elements: int, found: Sequence[Found]) -> ValueDifference:
    """What was found in all parts of a tensor that differ."""
    steps = [each.max_ulp_error for each in found if each.max_ulp_error is not None]
    return ValueDifference(
        name,
        num_elements,
        sum(each.num_different for each in found),
        sum(each.num_not_finite for each in found),
        sum(each.num_outside for each in found),
        max(each.max_abs_error for each in found),
        max(each.max_rel_error for each in found),
        max(steps, default=None),
    )
