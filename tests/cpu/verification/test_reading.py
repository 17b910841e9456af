"""Claims of `pp_export.verification.reading`: any bytes of a file, from the disk, without a trace in the page
cache.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pp_export.verification import reading
from pp_export.verification.reading import UncachedFile, make_buffer

SIZES = [0, 1, 4095, 4096, 4097, 3 * 4096, 50_001]


def make_file(path: Path, num_bytes: int) -> bytes:
    """A file of random bytes that are on the disk."""
    data = random.Random(num_bytes).randbytes(num_bytes)
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return data


def cached_pages(path: Path) -> int:
    """Pages of the file that are in memory."""
    size = path.stat().st_size
    num_pages = -(-size // mmap.PAGESIZE)
    flags = (ctypes.c_ubyte * num_pages)()
    with path.open("r+b") as file, mmap.mmap(file.fileno(), size) as mapped:
        first = ctypes.c_char.from_buffer(mapped)
        libc = ctypes.CDLL(None, use_errno=True)
        done = libc.mincore(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(size), flags)
        del first
    assert done == 0
    return sum(flag & 1 for flag in flags)


@pytest.fixture(params=["direct", "through the cache", "refused while reading"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the filesystem takes O_DIRECT: it can, it says no at once, or only when it is asked to read."""
    name: str = request.param
    if name == "through the cache":
        monkeypatch.setattr(os, "O_DIRECT", 0)
    elif name == "refused while reading":
        read = reading._read_once

        def refuse(file: Any, position: int, into: memoryview) -> int:
            if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT:
                raise OSError(errno.EINVAL, "Invalid argument")
            return read(file, position, into)

        monkeypatch.setattr(reading, "_read_once", refuse)
    return name


@pytest.mark.parametrize("size", SIZES)
def test_any_bytes_can_be_read(tmp_path: Path, way: str, size: int) -> None:
    """From any position any number of bytes comes, and fewer only where the file ends, however it is read."""
    data = make_file(tmp_path / "file", size)
    draw = random.Random(1)
    buffer = make_buffer(9000)
    with UncachedFile(tmp_path / "file") as file:
        assert file.num_bytes == size
        for _ in range(50):
            begin, count = draw.randrange(size + 2), draw.randrange(9001)
            assert file.read(begin, count, buffer) == data[begin : begin + count]
        assert file.read(0, 9000, buffer) == data[:9000]


def test_short_reads_are_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that gives fewer bytes than asked for, at any place, is followed by another."""
    data, draw = make_file(tmp_path / "file", 50_001), random.Random(2)
    read = reading._read_once

    def short(file: Any, position: int, into: memoryview) -> int:
        return min(read(file, position, into), draw.randrange(1, 9000))

    monkeypatch.setattr(reading, "_read_once", short)
    with UncachedFile(tmp_path / "file") as file:
        for begin in range(0, 50_001, 7001):
            assert file.read(begin, 20_000, make_buffer(20_000)) == data[begin : begin + 20_000]


def test_nothing_stays_in_the_page_cache(tmp_path: Path) -> None:
    """Reading leaves no page of the file in memory, and what was there before stays there."""
    path = tmp_path / "file"
    make_file(path, 1 << 20)
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if cached_pages(path):
        pytest.skip("this filesystem keeps pages whatever it is told")
    buffer = make_buffer(1 << 20)
    with UncachedFile(path) as file:
        if not file._direct:
            pytest.skip("this filesystem has no O_DIRECT")
        assert len(file.read(0, 1 << 20, buffer)) == 1 << 20
        file.forget()
    assert cached_pages(path) == 0
    with path.open("rb") as cached:
        cached.read()
    before = cached_pages(path)
    assert before > 200
    with UncachedFile(path) as file:
        file.forget()
        file.read(0, 1 << 20, buffer)
    assert cached_pages(path) == before


def test_without_direct_reads_pages_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the cache, `forget` drops all that would answer for the disk, and a read its own pages."""
    monkeypatch.setattr(os, "O_DIRECT", 0)
    make_file(tmp_path / "file", 10_000)
    asked: list[tuple[int, int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, *rest: asked.append(rest))
    with UncachedFile(tmp_path / "file") as file:
        file.read(0, 8192, make_buffer(8192))
        file.forget()
    assert asked == [(0, 8192, os.POSIX_FADV_DONTNEED), (0, 0, os.POSIX_FADV_DONTNEED)]


@pytest.mark.parametrize("code", [errno.EIO, errno.EINVAL])
def test_a_failed_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """What the disk can't give is an OSError, never fewer bytes."""

    def fail(*_: Any) -> int:
        raise OSError(code, "no")

    make_file(tmp_path / "file", 10_000)
    monkeypatch.setattr(reading, "_read_once", fail)
    read: Callable[..., Any]
    with UncachedFile(tmp_path / "file") as file:
        read = file.read
        with pytest.raises(OSError, match="no"):
            read(0, 100, make_buffer(100))
