"""Claims of `pp_export.disk.shared_file`: ranks write one file without ever writing into a block of another,
and whatever call fails is named, and leaves no open file and no final name.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pp_export.core.errors import TargetError
from pp_export.disk import files, shared_file
from pp_export.disk.shared_file import BLOCK_BYTES, RangeFile, join_ranges, whole_blocks
from tests.cpu.disk.test_files import FaultyOs, aligned, listing, mode, num_open_files

B = BLOCK_BYTES
HIDDEN = ".f.ranges.tmp"
CUTS = {
    "inside blocks": (0, B + 10, 3 * B - 1, 3 * B + 5),
    "at a boundary": (0, B, 3 * B, 4 * B),
    "less than a block": (0, 10, 20, 30, 40),
    "over a boundary without a whole block": (0, B - 5, B + 5, 2 * B + 1),
    "ends of one block in two ranges": (0, 2 * B - 8, 2 * B, 2 * B + 8),
    "one range": (0, 2 * B + 7),
}


def data_of(cuts: Sequence[int]) -> bytes:
    return random.Random(cuts[-1]).randbytes(cuts[-1])


def write_ranges(path: Path, cuts: Sequence[int], data: bytes) -> list[tuple[int, bytes]]:
    """Write all ranges, the last first, each from memory that is aligned as the file; their edges."""
    edges = []
    for begin, end in reversed(list(itertools.pairwise(cuts))):
        first, last = whole_blocks(begin, end)
        image = aligned(end - begin, begin % 4096)
        image[:] = data[begin:end]
        file = RangeFile(path, begin, end)
        file.write(image[first - begin : last - begin])
        file.commit()
        edges += [(begin, data[begin:first]), (last, data[last:end])]
    return edges


@given(st.integers(0, 5 * B), st.integers(0, 5 * B))
def test_whole_blocks_lie_inside_and_leave_less_than_a_block(begin: int, length: int) -> None:
    """They begin and end at blocks, inside the range, and each edge is shorter than a block."""
    end = begin + length
    first, last = whole_blocks(begin, end)
    assert begin <= first <= last <= end
    assert first == last or first % B == last % B == 0
    assert first - begin < B
    assert end - last < B
    assert B % 65536 == 0, "larger than every page"


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
def test_ranges_and_edges_are_the_file(tmp_path: Path, cuts: tuple[int, ...]) -> None:
    """Written in any order and joined, the ranges are the file; before that it has no name but a hidden one,
    and nobody else may read it.
    """
    data = data_of(cuts)
    edges = write_ranges(tmp_path / "f", cuts, data)
    assert listing(tmp_path) == [HIDDEN]
    assert mode(tmp_path / HIDDEN) == 0o600
    join_ranges(tmp_path / "f", len(data), edges)
    assert listing(tmp_path) == ["f"]
    assert (tmp_path / "f").read_bytes() == data
    assert mode(tmp_path / "f") == 0o666 & ~files.read_umask()


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
def test_a_range_changes_nothing_outside_its_blocks(tmp_path: Path, cuts: tuple[int, ...]) -> None:
    """What others have written, up to the first and from the last whole block of a range, stays as it is."""
    for begin, end in itertools.pairwise(cuts):
        before = bytes([0xEE]) * (cuts[-1] + B)
        (tmp_path / HIDDEN).write_bytes(before)
        first, last = whole_blocks(begin, end)
        file = RangeFile(tmp_path / "f", begin, end)
        file.write(bytes(last - first))
        file.commit()
        after = (tmp_path / HIDDEN).read_bytes()
        assert after == before[:first] + bytes(last - first) + before[last:]


def test_a_range_needs_all_of_its_bytes(tmp_path: Path) -> None:
    """A range that got fewer or more bytes than its blocks have is not committed."""
    for num_bytes in (B - 1, B + 1):
        file = RangeFile(tmp_path / "f", 0, B)
        file.write(bytes(num_bytes))
        with pytest.raises(TargetError, match="another number of bytes"):
            file.commit()


def test_a_file_of_another_size_gets_no_name(tmp_path: Path) -> None:
    """Where the last range is missing, or is longer than planned, joining fails with both sizes."""
    cuts = (0, B + 10, 3 * B)
    edges = write_ranges(tmp_path / "f", cuts, data_of(cuts))
    for planned in (3 * B - 1, 3 * B + 1):
        with pytest.raises(TargetError, match="another size than planned") as caught:
            join_ranges(tmp_path / "f", planned, edges)
        assert (caught.value.expected, caught.value.got) == (str(planned), str(3 * B))
    assert listing(tmp_path) == [HIDDEN]


def test_a_file_that_nobody_wrote_is_named(tmp_path: Path) -> None:
    """Joining makes no file, and follows no link, under the hidden name."""
    with pytest.raises(TargetError, match="open failed") as caught:
        join_ranges(tmp_path / "f", 1, [(0, b"x")])
    assert caught.value.where == {"operation": "open", "file": str(tmp_path / "f")}
    (tmp_path / "victim").write_bytes(b"keep")
    (tmp_path / HIDDEN).symlink_to(tmp_path / "victim")
    for act in (lambda: join_ranges(tmp_path / "f", 1, [(0, b"x")]), lambda: RangeFile(tmp_path / "f", 0, B)):
        with pytest.raises(TargetError):
            act()
    assert (tmp_path / "victim").read_bytes() == b"keep"


WRITING = ("open", "posix_fallocate", "lseek", "write", "fsync", "close")
JOINING = ("open", "pwrite", "fstat", "fchmod", "fsync", "close", "rename")


@pytest.mark.parametrize("step", ["write", "join"])
def test_any_failing_call_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Whichever call fails, the error has the operation and the path, no file stays open, and the final name
    isn't there.
    """
    before = num_open_files()

    def act() -> None:
        if step == "write":
            file = RangeFile(tmp_path / "f", B, 2 * B)
            file.write(aligned(B))
            file.commit()
        else:
            join_ranges(tmp_path / "f", B, [(0, b"12")])

    for number in range(len(WRITING if step == "write" else JOINING) + 1):
        (tmp_path / HIDDEN).write_bytes(bytes(B))
        faulty_os = FaultyOs(number, only=WRITING if step == "write" else JOINING)
        for module in (files, shared_file):
            monkeypatch.setattr(module, "os", faulty_os)
        if number == len(WRITING if step == "write" else JOINING):
            act()
            assert tuple(faulty_os.calls) == (WRITING if step == "write" else JOINING)
            break
        with pytest.raises(TargetError) as caught:
            act()
        assert os.strerror(errno.EIO) in caught.value.what
        assert caught.value.where["file"] == str(tmp_path / "f")
        assert caught.value.where["operation"]
        assert listing(tmp_path) == [HIDDEN], "the folder is removed as a whole"
    assert num_open_files() == before


def test_short_writes_of_edges_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system writes fewer bytes than asked, the rest follows at its place."""
    (tmp_path / HIDDEN).write_bytes(bytes(100))
    faulty_os = FaultyOs()
    faulty_os.pwrite = lambda fd, data, at: os.pwrite(fd, data[:7], at)  # type: ignore[attr-defined]
    monkeypatch.setattr(shared_file, "os", faulty_os)
    data = random.Random(0).randbytes(90)
    join_ranges(tmp_path / "f", 100, [(5, data)])
    assert (tmp_path / "f").read_bytes() == bytes(5) + data + bytes(5)
