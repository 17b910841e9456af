"""Claims of `pp_export.verification.claims`: what a manifest or a shard's JSON says is never trusted."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pp_export.verification import KINDS, verify_folder, verify_staged_shard
from tests.fixtures.damage import edit_json, sealed_edit
from tests.fixtures.hf_folders import DOWN, MANIFEST, MIDDLE, SHARDS, found, shard_manifest, stage
from tests.fixtures.opened_paths import opened


def test_manifest_of_a_later_release_is_one_fault(folder: Path) -> None:
    """A manifest that can't be understood is compared with nothing, so other files get no blame."""
    sealed_edit(MANIFEST, "format", value="pp_export manifest 2")(folder)
    assert found(verify_folder(folder)) == {(MANIFEST, None, "bad-manifest")}


def test_unsafe_record_is_never_opened(folder: Path) -> None:
    """A shard record that names a file outside the folder is a fault, and the file is not opened."""
    save_file({DOWN: torch.ones(2)}, folder.parent / "outside.safetensors")
    record = shard_manifest(folder.parent / "outside.safetensors") | {"file": "../outside.safetensors"}
    edit_json(MANIFEST, lambda manifest: manifest["shards"].append(record), resealed=True)(folder)
    opened.clear()
    assert (MANIFEST, None, "bad-manifest") in found(verify_folder(folder))
    (fault,) = verify_staged_shard(folder, stage(folder, record, MIDDLE))
    assert (fault.kind, fault.file) == ("bad-manifest", MIDDLE)
    assert opened
    assert not any("outside" in path for path in opened)


def test_bad_records_are_faults(folder: Path) -> None:
    """A record of the wrong form, or one that names a file outside, is a fault and opens nothing."""
    record = shard_manifest(folder / SHARDS[0])
    values: tuple[Any, ...] = (None, 1.5, "../x.safetensors", [], [None], {}, -1, "x", 10**30)
    for key in record:
        for value in values:
            faults = verify_staged_shard(folder, stage(folder, record | {key: value}, SHARDS[0]))
            assert faults
            assert {fault.kind for fault in faults} <= KINDS.keys()
    for key in record["tensors"][0]:
        for value in values:
            changed = record | {"tensors": [record["tensors"][0] | {key: value}]}
            assert verify_staged_shard(folder, stage(folder, changed))


def swap_for_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("damage", "kind", "words"),
    [
        (lambda path: path.unlink(), "missing-file", "its JSON is not there"),
        (lambda path: path.write_bytes(b""), "bad-manifest", "not JSON"),
        (lambda path: path.write_bytes(b"[1]"), "bad-manifest", "an array"),
        (
            lambda path: path.write_bytes(b'{"a": 1, ' + path.read_bytes()[1:-1] + b', "a": 1}'),
            "bad-manifest",
            "twice",
        ),
        (lambda path: path.write_bytes(b'{"a": NaN, ' + path.read_bytes()[1:]), "bad-manifest", "NaN"),
        (lambda path: path.write_bytes(b"[" * 100_000), "bad-manifest", "deep"),
        (lambda path: os.truncate(path, 1 << 40), "bad-manifest", "are not read"),
        (swap_for_pipe, "unreadable-file", "not a regular file"),
    ],
    ids=["missing", "empty", "list", "key twice", "NaN", "deep", "huge", "pipe"],
)
def test_json_of_a_staged_shard_is_not_trusted(
    folder: Path, damage: Callable[[Path], object], kind: str, words: str
) -> None:
    """A shard whose JSON is missing, malformed, huge or no file has one fault, and none of it is read."""
    file = stage(folder, shard_manifest(folder / MIDDLE))
    assert verify_staged_shard(folder, file) == []
    damage(folder / ".shards" / f"{file}.json")
    seen: list[int] = []
    (fault,) = verify_staged_shard(folder, file, seen.append)
    assert (fault.kind, fault.file) == (kind, MIDDLE)
    assert words in fault.message
    assert not seen


def test_json_of_another_shard_is_refused(folder: Path) -> None:
    """A shard's JSON must name that shard: a swapped one proves nothing, though file and JSON are whole."""
    stage(folder, shard_manifest(folder / SHARDS[0]), MIDDLE)
    (fault,) = verify_staged_shard(folder, MIDDLE)
    assert (fault.kind, fault.file) == ("bad-manifest", MIDDLE)
    assert SHARDS[0] in fault.message
