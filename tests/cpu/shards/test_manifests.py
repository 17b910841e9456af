"""Claims of `pp_export.shards.manifests`: records, index, manifest and sums say the same, in forms that
others read.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

from pp_export.shards.manifests import ShardManifest, TensorManifest, index, manifest, sums

RECORD = ShardManifest(
    "model-00001-of-00001.safetensors",
    120,
    "ab" * 32,
    "01" * 16,
    (
        TensorManifest("a.weight", "BF16", (2, 3), 0, 12, "cd" * 16),
        TensorManifest("s", "F32", (), 12, 16, "ef" * 16),
    ),
)
FILES = {"b.txt": (3, "11" * 32), "a.txt": (5, "22" * 32), RECORD.file: (120, "ab" * 32)}


def test_a_record_survives_json() -> None:
    """A shard record written as JSON comes back equal, shapes as tuples."""
    value = json.loads(json.dumps(RECORD.to_json()))
    assert value["tensors"][0] == {
        "name": "a.weight",
        "dtype": "BF16",
        "shape": [2, 3],
        "begin": 0,
        "end": 12,
        "xxh3_128": "cd" * 16,
    }
    assert ShardManifest.from_json(value) == RECORD


def test_a_record_of_another_form_is_no_record() -> None:
    """A record that lacks a field or has one more is not taken for a shard record."""
    value = RECORD.to_json()
    for broken in ({**value, "tensors": [{"name": "x"}]}, {k: v for k, v in value.items() if k != "sha256"}):
        with pytest.raises((TypeError, KeyError)):
            ShardManifest.from_json(broken)


def test_the_index_has_names_sorted_and_true_sizes() -> None:
    """The index maps sorted names to files and gives bytes and parameters as metadata."""
    value = index({"z": "2", "a": "1"}, total_size=10, total_parameters=5)
    assert value == {
        "metadata": {"total_parameters": 5, "total_size": 10},
        "weight_map": {"a": "1", "z": "2"},
    }
    assert list(value["weight_map"]) == ["a", "z"]


def test_the_manifest_carries_its_own_digest() -> None:
    """The digest is the SHA-256 of the manifest without it, as canonical JSON; any change makes it wrong."""
    made = manifest([RECORD], FILES, total_size=16, total_parameters=7, provenance={"from": "größe"})
    assert made["format"] == "pp_export manifest 1"
    assert made["shards"] == [RECORD.to_json()]
    assert list(made["files"]) == sorted(FILES)
    assert made["files"]["a.txt"] == {"bytes": 5, "sha256": "22" * 32}
    assert (made["total_size"], made["total_parameters"]) == (16, 7)
    stored = json.loads(json.dumps(made))
    digest = stored.pop("digest")

    def sha256(value: object) -> str:
        image = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        return hashlib.sha256(image).hexdigest()

    assert digest == sha256(stored)
    stored["total_size"] = 17
    assert digest != sha256(stored)


def test_sums_are_read_by_sha256sum(tmp_path: Path) -> None:
    """`sha256sum -c` accepts the sums of unchanged files, and names a changed one."""
    contents = {"z.txt": b"one", "a b.json": b"two", "sub/c.txt": b""}
    (tmp_path / "sub").mkdir()
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    digests = {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in contents.items()}
    (tmp_path / "SHA256SUMS").write_text(sums(digests))

    def check() -> subprocess.CompletedProcess[str]:
        command = ["sha256sum", "--strict", "-c", "SHA256SUMS"]
        return subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)

    checked = check()
    assert checked.returncode == 0
    assert checked.stdout.splitlines() == ["a b.json: OK", "sub/c.txt: OK", "z.txt: OK"]
    (tmp_path / "z.txt").write_bytes(b"One")
    assert "z.txt: FAILED" in check().stdout
