"""Claims of `pp_export.torch_file.zip_member`: a member begins where its own header says, or nowhere."""

from __future__ import annotations

import io
import zipfile

import pytest
import torch

from pp_export.torch_file.zip_directory import ReadAt
from pp_export.torch_file.zip_member import read_local_header


def reading(image: bytes) -> ReadAt:
    return lambda begin, count: image[begin : begin + count]


def test_members_begin_where_their_bytes_are() -> None:
    """For every member that torch wrote the header gives its name and the place of its bytes."""
    buffer = io.BytesIO()
    torch.save({"x": torch.arange(5), "y": torch.ones(300)}, buffer)
    image = buffer.getvalue()
    with zipfile.ZipFile(buffer) as archive:
        for member in archive.infolist():
            header = read_local_header(reading(image), member.header_offset)
            assert header.name == member.filename.encode()
            assert image[header.begin : header.begin + member.file_size] == archive.read(member)


@pytest.mark.parametrize("at", [1, 4, 10**6])
def test_no_header_is_an_error(at: int) -> None:
    """Where no header begins, or the file ends inside one, reading it is an error that says where."""
    buffer = io.BytesIO()
    torch.save({"x": torch.arange(5)}, buffer)
    with pytest.raises(ValueError, match=f"no member begins at byte {at}"):
        read_local_header(reading(buffer.getvalue()), at)
    with pytest.raises(ValueError, match="no member begins at byte 0"):
        read_local_header(reading(buffer.getvalue()[:29]), 0)
