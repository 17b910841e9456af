"""Claims of `pp_export.torch_file.archive`: where a file's tensors lie is what torch says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pp_export.core import dtypes
from pp_export.core.errors import CheckpointError
from pp_export.torch_file import archive


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.uint16, torch.float8_e4m3fn, torch.bool]
)
def test_every_kind_of_tensor_is_found_in_a_file(dtype: torch.dtype, tmp_path: Path) -> None:
    """Typed storages, storages of bytes, parameters, views of them: offset and bytes are those of torch."""
    raw = torch.arange(96, dtype=torch.uint8).remainder(2).view(torch.bool) if dtype is torch.bool else None
    flat = torch.arange(96, dtype=torch.uint8).view(dtype) if raw is None else raw
    part = flat[8:].view(-1, 4)
    saved = {"plain": flat, "view": part[1:], "cut": part[:, 1:3]}
    torch.save(saved | {"parameter": torch.nn.Parameter(part, requires_grad=False)}, tmp_path / "file.pt")
    stored = archive.read(tmp_path / "file.pt")
    data = (tmp_path / "file.pt").read_bytes()
    for key, expected in (saved | {"parameter": part}).items():
        found = stored.view(stored.value[key])
        assert found is not None
        assert (found.view.shape, found.view.strides) == (tuple(expected.shape), tuple(expected.stride()))
        assert (found.dtype, found.num_bytes) == (dtypes.from_torch(str(dtype)), expected.nbytes)
        begin = stored.begins([found.storage])[found.storage]
        bytes_there = torch.frombuffer(bytearray(data[begin : begin + 96]), dtype=dtype)
        again = bytes_there.as_strided(found.view.shape, found.view.strides, found.view.offset)
        assert torch.equal(again.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8)), key
    assert stored.view({"no": "tensor"}) is None


def test_a_tensor_beyond_its_storage_is_refused(tmp_path: Path) -> None:
    """A description that does not fit the storages is refused before any byte is taken."""
    torch.save({"weight": torch.zeros(4, 4)}, tmp_path / "file.pt")
    stored = archive.read(tmp_path / "file.pt")
    shorter = {"0": archive.Member(stored.storages["0"].header, 60, 0)}
    with pytest.raises(CheckpointError, match="beyond its storage"):
        archive.Archive(stored.path, stored.value, shorter).view(stored.value["weight"])


@pytest.mark.parametrize("offset", [0, 32])
def test_a_damaged_local_header_is_refused(offset: int, tmp_path: Path) -> None:
    """A member must begin where the directory says, under the name that the directory says."""
    torch.save({"weight": torch.zeros(4, 4)}, tmp_path / "file.pt")
    stored = archive.read(tmp_path / "file.pt")
    data = bytearray((tmp_path / "file.pt").read_bytes())
    at = stored.storages["0"].header + (offset and 30 + len("file/data/0") - 1)
    data[at] ^= 1
    (tmp_path / "file.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        stored.begins(["0"])
