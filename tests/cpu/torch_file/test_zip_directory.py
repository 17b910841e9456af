"""Claims of `pp_export.torch_file.zip_directory`: it says of a zip what Python's own reader says."""

from __future__ import annotations

import io
import random
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pp_export.torch_file.zip_directory import NoDirectoryError, Window, read_checked, read_directory
from pp_export.torch_file.zip_member import read_local_header


def by_torch() -> bytes:
    buffer = io.BytesIO()
    torch.save({f"x{number}": torch.arange(number) for number in range(30)}, buffer)
    return buffer.getvalue()


def by_python(*, wide: bool, num_members: int = 3) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for number in range(num_members):
            with file.open(f"a/data/{number}", "w", force_zip64=wide) as member:
                member.write(bytes([number % 256]) * (number % 100))
    return buffer.getvalue()


ARCHIVES = {
    "torch": by_torch(),
    "python": by_python(wide=False),
    "python, wide": by_python(wide=True),
    "more members than 16 bits count": by_python(wide=False, num_members=70_000),
    "no member": by_python(wide=False, num_members=0),
}


@pytest.fixture(params=ARCHIVES)
def image(request: pytest.FixtureRequest) -> bytes:
    return ARCHIVES[request.param]


@pytest.fixture
def window(image: bytes, tmp_path: Path) -> Iterator[Window]:
    """The archive between other bytes of a file."""
    (tmp_path / "file").write_bytes(b"before" + image + b"behind")
    with (tmp_path / "file").open("rb") as file:
        yield Window(file.fileno(), 6, len(image))


def test_members_are_those_of_python(image: bytes, window: Window) -> None:
    """Names, sizes, CRCs, places and bytes of all members are those that the zipfile module finds."""
    directory = read_directory(window.read, window.length)
    with zipfile.ZipFile(io.BytesIO(image)) as file:
        assert directory.begin == file.start_dir
        expected = file.infolist()
        found = [(m.name.decode(), m.num_bytes, m.packed_bytes, m.crc, m.begin) for m in directory.members]
        assert found == [(m.filename, m.file_size, m.compress_size, m.CRC, m.header_offset) for m in expected]
        for member in random.Random(0).sample(directory.members, min(40, len(expected))):
            begin = read_local_header(window.read, member.begin).begin
            assert read_checked(window.read, member, begin) == file.read(member.name.decode())


def test_a_window_gives_the_bytes_of_its_part_of_a_file(image: bytes, window: Window) -> None:
    """Any bytes, in any order, those of pieces in memory too; fewer only where the window ends."""
    chance = random.Random(1)
    for _ in range(300):
        begin, count = chance.randrange(len(image) + 2), chance.randrange(9000)
        assert window.read(begin, count) == image[begin : begin + count]


def test_an_archive_without_its_end_is_cut_off() -> None:
    """Whatever is lacking at the end, or stands behind it, there is no directory."""
    image = ARCHIVES["torch"]
    for data in (b"", image[:10], image[:-1], image[:-30], image + b"\0", image + b"comment"):
        with pytest.raises(NoDirectoryError):
            read_directory(lambda begin, count, data=data: data[begin : begin + count], len(data))  # type: ignore[misc]


@pytest.mark.parametrize("name", ["torch", "python", "python, wide"])
def test_damage_is_refused_or_changes_nothing_else(name: str) -> None:
    """Any flipped bit of directory and end is a ValueError, or shows in one member at most."""
    image = ARCHIVES[name]

    def read(begin: int, count: int) -> bytes:
        return bytes(damaged[begin : begin + count])

    damaged = bytearray(image)
    whole = read_directory(read, len(image))
    num_refused = 0
    for at in range(whole.begin, len(image)):
        for bit in range(8):
            damaged = bytearray(image)
            damaged[at] ^= 1 << bit
            try:
                found = read_directory(read, len(image))
            except ValueError:
                num_refused += 1
                continue
            pairs = zip(found.members, whole.members, strict=True)
            assert found.begin == whole.begin
            assert sum(a != b for a, b in pairs) <= 1
    assert num_refused > 300


def test_a_directory_with_a_comment_is_refused() -> None:
    """A comment, which could hold another end, is none that torch writes."""
    image = ARCHIVES["python"]
    commented = image[:-2] + struct.pack("<H", 3) + b"abc"
    with pytest.raises(ValueError, match="end of a zip"):
        read_directory(lambda begin, count: commented[begin : begin + count], len(commented))
