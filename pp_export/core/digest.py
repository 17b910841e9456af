"""Digests of bytes: SHA-256 for files (what `sha256sum`, the Hub and signing tools check), XXH3-128 for
tensors.

A file's digest is the proof. A tensor's digest only says *which* tensor a damaged byte belongs to, so it may
be a fast non-cryptographic one.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import xxhash

STEP_BYTES = 4 << 20


def sha256() -> hashlib._Hash:
    """A running SHA-256 of a file."""
    return hashlib.sha256()


def tensor_digest(data: memoryview | bytes) -> str:
    """Hex XXH3-128 of the bytes of a tensor, or of a header."""
    return xxhash.xxh3_128(data).hexdigest()


def canonical_json(value: Any) -> bytes:
    """The one byte image of a JSON value: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode("utf-8", "backslashreplace")  # paths need not be text


def json_digest(value: Any) -> str:
    """Hex SHA-256 of the canonical JSON image of `value`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()
