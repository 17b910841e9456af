"""Claims of `pp_export.core.digest`: digests are the standard ones, and JSON has one byte image."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest
import xxhash

from pp_export.core import digest


def test_tensor_digest_is_xxh3_128_of_the_bytes() -> None:
    """A tensor's digest is XXH3-128 of its bytes, from bytes and from a view alike."""
    data = bytes(range(256)) * 5
    assert digest.tensor_digest(data) == xxhash.xxh3_128_hexdigest(data)
    assert digest.tensor_digest(memoryview(data)[3:700]) == xxhash.xxh3_128_hexdigest(data[3:700])
    assert digest.tensor_digest(b"") != digest.tensor_digest(b"\0")


def test_file_digest_is_what_sha256sum_prints(tmp_path: Path) -> None:
    """The running file digest equals that of the `sha256sum` command."""
    running, path = digest.sha256(), tmp_path / "data"
    for part in (b"one", b"", b"two" * 1000):
        running.update(part)
    path.write_bytes(b"one" + b"two" * 1000)
    printed = subprocess.run(["sha256sum", path], check=True, capture_output=True, text=True).stdout
    assert running.hexdigest() == printed.split()[0]


def test_json_has_one_byte_image() -> None:
    """Equal JSON values have equal bytes: keys sorted, no spaces, UTF-8 as it is."""
    assert digest.canonical_json({"b": [1, 2.5, None], "a": "ü"}) == b'{"a":"\xc3\xbc","b":[1,2.5,null]}'
    expected = hashlib.sha256(b'{"a":1,"b":{"c":2,"d":3}}').hexdigest()
    assert digest.json_digest({"b": {"d": 3, "c": 2}, "a": 1}) == expected
    assert digest.json_digest({"a": 1}) != digest.json_digest({"a": 2})


def test_no_number_that_json_lacks() -> None:
    """NaN and infinity, which are not JSON, are refused instead of written."""
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            digest.canonical_json([value])
