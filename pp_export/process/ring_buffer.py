"""Memory that is taken once and used again: its pages are faulted in once and its size is the plan's."""

from __future__ import annotations

import mmap
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

_PAGE = mmap.PAGESIZE


@dataclass
class Region:
    """A part of an arena: `view` is writable until the region is given back."""

    begin: int
    end: int
    view: memoryview
    is_free: bool = False


class RingBuffer:
    """A ring of `num_bytes`: regions are taken one after another, and their space returns when they are given
    back.
    """

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = pages(num_bytes)
        memory = mmap.mmap(-1, self.num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)  # the first touch of 4 KB pages costs as much as filling them
        self._memory = memoryview(memory)
        self._live: deque[Region] = deque()
        self._changed = threading.Condition()

    @property
    def memory(self) -> memoryview:
        """All of it, for who pins it."""
        return self._memory

    def take(self, num_bytes: int, check: Callable[[], None]) -> Region:
        """A contiguous region, as soon as there is one; `check` is called now and then while waiting, and may
        raise.
        """
        size = pages(num_bytes)
        if size > self.num_bytes:
            raise ValueError(f"an arena of {self.num_bytes} bytes can't give {size}")
        with self._changed:
            while (begin := self._find(size)) is None:
                check()
                self._changed.wait(0.1)
            region = Region(begin, begin + size, self._memory[begin : begin + num_bytes])
            self._live.append(region)
            return region

    def give_back(self, region: Region) -> None:
        """The region may be used again; nobody may hold its view any more."""
        with self._changed:
            region.is_free = True
            while self._live and self._live[0].is_free:
                self._live.popleft()
            self._changed.notify_all()

    def _find(self, size: int) -> int | None:
        if not self._live:
            return 0
        first, last = self._live[0].begin, self._live[-1].end
        if last <= first:
            return last if first - last >= size else None
        if self.num_bytes - last >= size:
            return last
        return 0 if first >= size else None


def pages(num_bytes: int) -> int:
    """`num_bytes` rounded up to whole pages, at least one."""
    return max(1, -(-num_bytes // _PAGE)) * _PAGE
