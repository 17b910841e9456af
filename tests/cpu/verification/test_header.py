"""Claims of `pp_export.verification.header`: every rule of the format holds, whatever the bytes."""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from pp_export.verification import verify_folder, verify_structure
from pp_export.verification.header import read_header
from tests.fixtures.hf_folders import MIDDLE
from tests.fixtures.mutations import FUZZ, mutations

HEADERS = {
    "gap": (b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}', 3),
    "overlap": (
        b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}',
        3,
    ),
    "key twice": (
        b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}',
        2,
    ),
    "inner key twice": (b'{"a":{"dtype":"U8","dtype":"U8","shape":[2],"data_offsets":[0,2]}}', 2),
    "unknown key": (b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2],"x":1}}', 2),
    "missing key": (b'{"a":{"dtype":"U8","data_offsets":[0,2]}}', 2),
    "unknown dtype": (b'{"a":{"dtype":"Q8","shape":[2],"data_offsets":[0,2]}}', 2),
    "unknown dtype of nothing": (b'{"a":{"dtype":"Q8","shape":[0],"data_offsets":[0,0]}}', 0),
    "dtype a list": (b'{"a":{"dtype":["U8"],"shape":[2],"data_offsets":[0,2]}}', 2),
    "shape a number": (b'{"a":{"dtype":"U8","shape":2,"data_offsets":[0,2]}}', 2),
    "three offsets": (b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2,2]}}', 2),
    "offsets a map": (b'{"a":{"dtype":"U8","shape":[2],"data_offsets":{"0":0,"2":2}}}', 2),
    "entry a number": (b'{"a":2}', 0),
    "metadata a list": (b'{"__metadata__":[],"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}', 2),
    "minus zero": (b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[-0,2]}}', 2),
    "negative size": (b'{"a":{"dtype":"U8","shape":[-2,-1],"data_offsets":[0,2]}}', 2),
    "size true": (b'{"a":{"dtype":"U8","shape":[true],"data_offsets":[0,1]}}', 1),
    "size float": (b'{"a":{"dtype":"U8","shape":[2.0],"data_offsets":[0,2]}}', 2),
    "overflow": (b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}', 0),
    "overflow beside zero": (
        b'{"a":{"dtype":"U8","shape":[4294967296,4294967296,0],"data_offsets":[0,0]}}',
        0,
    ),
    "huge number": (b'{"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,0]}}', 0),
    "backwards": (b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[2,0]}}', 0),
    "wrong size": (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', 4),
    "metadata with a number": (
        b'{"__metadata__":{"n":1},"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}',
        2,
    ),
    "not UTF-8": (b'{"\xff":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}', 2),
    "lone surrogate": (b'{"\\ud800":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}', 2),
    "deep": (b'{"a":' + b"[" * 200_000, 0),
    "infinite": (b'{"a":1e999}', 0),
    "not an object": (b"[]", 0),
    "no tensors": (b"{}", 0),
}


@pytest.mark.parametrize("name", HEADERS)
def test_bad_header_is_refused(tmp_path: Path, name: str) -> None:
    """Each rule of the format holds in any folder, ours or not; a broken one is a fault of that file."""
    header, num_bytes = HEADERS[name]
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * num_bytes)
    faults = verify_folder(tmp_path).faults
    assert faults
    assert {fault.file for fault in faults} == {"model.safetensors"}
    assert {fault.kind for fault in faults} <= {"bad-header", "empty-shard"}


@pytest.mark.parametrize(
    ("length", "num_bytes", "words"),
    [
        (10**8 + 1, 10**8 + 9, "the format allows 100000000"),
        (2**63, 1000, "the format allows 100000000"),
        (993, 1000, "the file has 1000"),
        (0, 7, "too few"),
        (0, 8, "starts with"),
        (10**8, 10**8 + 8, "starts with"),
    ],
)
def test_bad_header_length(tmp_path: Path, length: int, num_bytes: int, words: str) -> None:
    """A length that the format or the file does not allow is a fault, and nothing of that size is parsed."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length))
    os.truncate(path, num_bytes)
    (fault,) = (fault for fault in verify_structure(tmp_path) if fault.file == path.name)
    assert fault.kind == "bad-header"
    assert words in fault.message


@settings(FUZZ, max_examples=400)
@given(mutations(), st.booleans())
def test_header_that_we_accept_is_accepted_by_the_library(
    sealed: Path, mutate: Callable[[bytes], bytes], fix_length: bool
) -> None:
    """Our header rules are no weaker than the library's: it opens whatever we find no fault with."""
    data = (sealed / MIDDLE).read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    header = mutate(data[8:start])
    fuzzed = (struct.pack("<Q", len(header)) if fix_length else data[:8]) + header + data[start:]
    with tempfile.TemporaryDirectory(dir=sealed.parent) as parent:
        path = Path(parent) / "fuzzed.safetensors"
        path.write_bytes(fuzzed)
        with path.open("rb", buffering=0) as file:
            ours, faults = read_header(file, path.name, len(fuzzed), ours=False)
    if not faults:
        assert ours is not None
        library = safetensors.deserialize(fuzzed)  # type: ignore[no-untyped-call]
        assert {name for name, _ in library} == {entry.name for entry in ours.tensors}
