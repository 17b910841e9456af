"""Claims of `pp_export.verification.content`: bytes come from the disk, and a bad read is told apart."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import xxhash
from safetensors.torch import save_file

from pp_export.verification import claims, content, reading, verify_folder
from pp_export.verification.content import Promise, Reader
from tests.fixtures.hf_folders import LAST, found, shard_manifest


def faulty_reads(patch: pytest.MonkeyPatch, file: str, damage: Callable[[memoryview, int], None]) -> None:
    """Let every read of `file` pass through `damage`, which gets the bytes and the number of the read."""
    read, count = reading._read_once, iter(range(1000))

    def faulty(opened_file: Any, position: int, buffer: memoryview) -> int:
        num_bytes = read(opened_file, position, buffer)
        if num_bytes and os.readlink(f"/proc/self/fd/{opened_file.fileno()}").endswith(file):
            damage(buffer[:num_bytes], next(count))
        return num_bytes

    patch.setattr(reading, "_read_once", faulty)


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


@pytest.mark.parametrize(("threads", "num_files"), [(1, 3), (2, 1), (2, 5), (3, 2)])
def test_no_more_threads_digest_than_were_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int, num_files: int
) -> None:
    """One large file keeps two threads busy, SHA-256 beside the rest, if two may; and never do more than that
    digest at once, however many files there are.
    """
    lock, busy, most = threading.Lock(), 0, 0
    monkeypatch.setattr(content, "STEP_BYTES", 1 << 16)

    def counted(call: Callable[[Any], None]) -> Callable[[Any], None]:
        def update(data: Any) -> None:
            nonlocal busy, most
            with lock:
                busy += 1
                most = max(most, busy)
            time.sleep(0.002)
            call(data)
            with lock:
                busy -= 1

        return update

    class Whole:
        def __init__(self) -> None:
            self._running = hashlib.sha256()
            self.update, self.hexdigest = counted(self._running.update), self._running.hexdigest

    class Part:
        def __init__(self) -> None:
            self._running = xxhash.xxh3_128()
            self.update = counted(self._running.update)
            self.hexdigest, self.reset = self._running.hexdigest, self._running.reset

    generator = torch.Generator().manual_seed(0)
    promises = []
    for number in range(num_files):
        path = tmp_path / f"{number}.safetensors"
        save_file({"t": torch.rand(100_000, generator=generator)}, path)
        claim = claims.parse_shard_claim(shard_manifest(path))
        promises.append(Promise(path.name, {"the test": claim.whole.sha256}, claim))
    monkeypatch.setattr(content, "sha256", Whole)
    monkeypatch.setattr(content, "xxhash", SimpleNamespace(xxh3_128=Part))
    with Reader(tmp_path, threads=threads) as reader:
        assert reader.check_all(promises) == []
    assert most == threads
