"""Claims of `pp_export.verification.content`: bytes come from the disk, and a bad read is told apart."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pp_export.verification import content, verify_folder, verify_staged_shard
from tests.fixtures.hf_folders import LAST, SHARDS, found, shard_manifest, stage


def faulty_reads(patch: pytest.MonkeyPatch, file: str, damage: Callable[[memoryview, int], None]) -> None:
    """Let every read of `file` pass through `damage`, which gets the bytes and the number of the read."""
    read, count = content._read_step, iter(range(1000))

    def faulty(opened_file: Any, buffer: memoryview) -> int:
        num_bytes = read(opened_file, buffer)
        if num_bytes and os.readlink(f"/proc/self/fd/{opened_file.fileno()}").endswith(file):
            damage(buffer[:num_bytes], next(count))
        return num_bytes

    patch.setattr(content, "_read_step", faulty)


def test_bad_read_once_is_transient(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that gives wrong bytes once is told from a damaged file, and still reported."""

    def damage(data: memoryview, count: int) -> None:
        data[-1] ^= 1 if count == 0 else 0

    faulty_reads(monkeypatch, LAST, damage)
    result = verify_folder(sealed)
    assert found(result) == {(LAST, None, "transient-read")}
    assert not result.ok
    assert "model.norm.weight" in result.faults[0].message


def test_failed_read_once_is_transient(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that fails once is transient too; one that fails twice is an unreadable file."""

    def damage(data: memoryview, count: int) -> None:
        if count < limit:
            raise OSError(5, "Input/output error")

    limit = 1
    faulty_reads(monkeypatch, LAST, damage)
    assert found(verify_folder(sealed)) == {(LAST, None, "transient-read")}
    limit = 100
    assert found(verify_folder(sealed)) == {(LAST, None, "unreadable-file")}


def test_bad_read_always_is_a_wrong_digest(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that are wrong in the same way twice are blamed on the file, not on the way to it."""

    def damage(data: memoryview, count: int) -> None:
        data[-1] ^= 1

    faulty_reads(monkeypatch, LAST, damage)
    assert found(verify_folder(sealed)) == {(LAST, "model.norm.weight", "wrong-digest")}


def test_small_steps_and_threads_change_nothing(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensor digests are right wherever the steps of reading fall, and with any number of threads."""
    for step in (1, 7, 64, 1000):
        monkeypatch.setattr(content, "STEP_BYTES", step)
        assert verify_folder(sealed, threads=3).ok


def test_cached_pages_are_dropped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel is asked to forget the file before the first byte is digested."""
    asked: list[tuple[int, int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, *rest: asked.append(rest))
    verify_staged_shard(folder, stage(folder, shard_manifest(folder / SHARDS[0])))
    assert (0, 0, os.POSIX_FADV_DONTNEED) in asked
