"""Claims of `archive.read_part`: an archive in a part of a file is read as strictly as one that is a file."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pp_export.core.errors import CheckpointError
from pp_export.torch_file import archive

VALUE = {"iteration": 7, "args": ["a", 1.5]}
Change = Callable[[str, bytes], bytes]


def image_of(
    *, change: Change = lambda name, data: data, method: int = zipfile.ZIP_STORED, twice: str = ""
) -> bytes:
    """What torch.save writes of VALUE, each member through `change`, the member `twice` two times."""
    saved, written = io.BytesIO(), io.BytesIO()
    torch.save(VALUE, saved)
    with (
        zipfile.ZipFile(saved) as old,
        zipfile.ZipFile(written, "w", method) as new,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        for member in old.infolist():
            name = member.filename.partition("/")[2]
            for _ in range(1 + (name == twice)):
                new.writestr(member.filename, change(name, old.read(member)))
    return written.getvalue()


def big_endian(name: str, data: bytes) -> bytes:
    return b"big" if name == "byteorder" else data


def part_of(folder: Path, image: bytes) -> tuple[Path, int, int]:
    """A file in the middle of which `image` lies."""
    path = folder / "__0_0.distcp"
    path.write_bytes(b"before" + image + b"behind")
    return path, len(b"before"), len(image)


def test_a_sound_archive_is_read_in_a_file_and_as_one(tmp_path: Path) -> None:
    """Both ways give the same value."""
    (tmp_path / "common.pt").write_bytes(image_of())
    assert archive.read_part(*part_of(tmp_path, image_of())) == VALUE
    assert archive.read(tmp_path / "common.pt").value == VALUE


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (image_of(method=zipfile.ZIP_DEFLATED), "is compressed"),
        (image_of(twice="data.pkl"), "two members have one name"),
        (image_of(change=big_endian), "little-endian"),
        (image_of()[:-1], "truncated"),
        (image_of().replace(b"iteration", b"jteration"), "CRC"),
    ],
    ids=["compressed", "twice", "big-endian", "truncated", "damaged"],
)
def test_both_ways_refuse_the_same(image: bytes, words: str, tmp_path: Path) -> None:
    """What the one way refuses the other refuses with the same reason, naming the file."""
    path, part = tmp_path / "common.pt", part_of(tmp_path, image)
    path.write_bytes(image)
    for read, file in ((lambda: archive.read_part(*part), part[0]), (lambda: archive.read(path), path)):
        with pytest.raises(CheckpointError, match=words) as refused:
            read()
        assert refused.value.where == {"file": str(file)}


@pytest.mark.parametrize("image", [b"", b"garbage", b"PK\x03\x04"])
def test_what_is_no_archive_is_damaged(image: bytes, tmp_path: Path) -> None:
    """Bytes that are no zip are a damaged file, named; so is a file that can't be read."""
    path, offset, length = part_of(tmp_path, image)
    with pytest.raises(CheckpointError, match=r"__0_0\.distcp is damaged") as refused:
        archive.read_part(path, offset, length)
    assert refused.value.where == {"file": str(path)}
    with pytest.raises(CheckpointError, match="can't read: No such file"):
        archive.read_part(tmp_path / "absent", 0, 10)
