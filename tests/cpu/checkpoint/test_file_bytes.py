"""Claims of `pp_export.checkpoint.file_bytes`: bytes go to their places, the page cache stays as it was."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from pp_export.checkpoint.file_bytes import FileBytes
from pp_export.core.errors import CheckpointError

_SIZE = 8 << 20


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return made(tmp_path / "file")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """One more, to find out what kind of filesystem it is."""
    return made(tmp_path / "other")


def made(path: Path) -> Path:
    path.write_bytes(random.Random(0).randbytes(_SIZE))
    descriptor = os.open(path, os.O_RDWR)
    os.fsync(descriptor)
    os.close(descriptor)
    return path


def forget(path: Path) -> None:
    """Drop the file's pages."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def share_cached(path: Path) -> float:
    """The share of the file that can be read without waiting for the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    found = 0
    for offset in range(0, _SIZE, 64 << 10):
        try:
            found += os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT)
        except OSError:
            continue
    os.close(descriptor)
    return found / (_SIZE >> 16)


def test_pieces_are_filled_one_after_another(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any number of pieces of any size get the file's bytes in order, however few of them a read returns."""
    content, numbers = file.read_bytes(), random.Random(1)
    sizes = [numbers.choice([0, 1, 7, 300]) for _ in range(3000)]
    memory = memoryview(bytearray(sum(sizes)))
    pieces, at = [], 0
    for size in sizes:
        pieces.append(memory[at : at + size])
        at += size
    preadv = os.preadv

    def short(descriptor: int, into: list[memoryview], offset: int, flags: int = 0) -> int:
        return preadv(descriptor, [into[0][: numbers.randint(1, 400)]], offset, flags)

    for read in (preadv, short):
        memory[:] = bytes(len(memory))
        monkeypatch.setattr(os, "preadv", read)
        opened = FileBytes(file)
        opened.read(123, pieces)
        opened.close()
        assert memory == content[123 : 123 + len(memory)]


def test_what_goes_wrong_is_an_error_of_the_checkpoint(file: Path, tmp_path: Path) -> None:
    """A file that ends early, isn't there or can't be read is told as such."""
    opened = FileBytes(file)
    with pytest.raises(CheckpointError, match="ends inside a tensor") as caught:
        opened.read(_SIZE - 10, [memoryview(bytearray(7)), memoryview(bytearray(7))])
    assert (caught.value.expected, caught.value.got) == ("14", "10")
    opened.close()
    with pytest.raises(CheckpointError, match="reading failed"):
        opened.read(0, [memoryview(bytearray(7))])
    with pytest.raises(CheckpointError, match="can't open: No such file"):
        FileBytes(tmp_path / "none")


@pytest.mark.parametrize("has_flag", [True, False])
@pytest.mark.parametrize("was_cached", [True, False])
def test_the_page_cache_stays_as_it_was(
    file: Path, other: Path, monkeypatch: pytest.MonkeyPatch, was_cached: bool, has_flag: bool
) -> None:
    """What was cached stays, what reading brought in goes; also where the kernel has no flag for it."""
    if not has_flag:
        preadv = os.preadv

        def refusing(descriptor: int, into: list[memoryview], offset: int, flags: int = 0) -> int:
            if flags not in (0, os.RWF_NOWAIT):
                raise OSError(95, "Operation not supported")
            return preadv(descriptor, into, offset, flags)

        monkeypatch.setattr(os, "preadv", refusing)
    forget(other)
    if share_cached(other) > 0.5:
        pytest.skip("this filesystem is memory")
    forget(file)  # which was not looked at yet: a look brings in pages too, some of them later
    if was_cached:
        file.read_bytes()
    opened = FileBytes(file)
    step = memoryview(bytearray(1 << 20))
    for offset in range(0, _SIZE, len(step)):
        opened.read(offset, [step])
    opened.close()
    # Pages that are read ahead at that moment can't be dropped, and on a busy machine others drop some.
    cached = share_cached(file)
    assert cached > 0.8 if was_cached else cached < 0.6
