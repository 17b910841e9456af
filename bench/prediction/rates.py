"""What this machine can do: its disk, and the CPU seconds of each pass over a byte."""

from __future__ import annotations

import hashlib
import mmap
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

import xxhash
from isal import isal_zlib

from pp_export.core.dtypes import from_torch
from pp_export.shards.finite import count_not_finite

_SIZE, _STEP = 512 << 20, 4 << 20
GB = 1e9


def disk_gbps(folder: Path) -> tuple[float, float]:
    """GB/s that one process reads and writes past the page cache."""
    file = folder / "rates"
    block = mmap.mmap(-1, _STEP)
    block.write(os.urandom(_STEP))

    def write() -> None:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
        try:
            for _ in range(_SIZE // _STEP):
                os.write(descriptor, block)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def read() -> None:
        descriptor = os.open(file, os.O_RDONLY | os.O_DIRECT)
        try:
            while os.readv(descriptor, [block]):
                pass
        finally:
            os.close(descriptor)

    try:
        written, read_ = _wall_seconds(write), _wall_seconds(read)
    finally:
        file.unlink(missing_ok=True)
    return _SIZE / GB / read_, _SIZE / GB / written


def pass_costs(folder: Path) -> dict[str, float]:
    """CPU seconds per GB: of reading with a CRC-32, SHA-256 and the look for what is no finite number,
    writing with XXH3, and reading back by XXH3.
    """
    memory, file = mmap.mmap(-1, _SIZE), folder / "rates"
    view = memoryview(memory)
    for begin in range(0, _SIZE, _STEP):
        view[begin : begin + _STEP] = os.urandom(_STEP)

    def steps() -> list[memoryview]:
        return [view[begin : begin + _STEP] for begin in range(0, _SIZE, _STEP)]

    def write() -> None:
        descriptor, digest = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_DIRECT), xxhash.xxh3_128()
        for step in steps():
            os.write(descriptor, step)
            digest.update(step)
        os.close(descriptor)

    def read(check: Callable[[memoryview], object], flags: int) -> None:
        descriptor = os.open(file, os.O_RDONLY | flags)
        for step in steps():
            os.readv(descriptor, [step])
            check(step)
        os.close(descriptor)

    def look_and_hash() -> None:
        count_not_finite(view, from_torch("bfloat16"))
        hashlib.sha256(view)

    try:
        found = {"writes": _cpu_seconds(write)}
        file.read_bytes()  # into the page cache
        found["reads"] = _cpu_seconds(lambda: read(isal_zlib.crc32, 0))
        found["verifies"] = _cpu_seconds(lambda: read(xxhash.xxh3_128_digest, os.O_DIRECT))
        found["hashes"] = _cpu_seconds(look_and_hash)
    finally:
        file.unlink(missing_ok=True)
    return {name: seconds / (_SIZE / GB) for name, seconds in found.items()}


def _wall_seconds(act: Callable[[], object]) -> float:
    """Of three times, the median."""
    found = []
    for _ in range(3):
        begin = time.perf_counter()
        act()
        found.append(time.perf_counter() - begin)
    return sorted(found)[1]


def _cpu_seconds(act: Callable[[], object]) -> float:
    before = resource.getrusage(resource.RUSAGE_SELF)
    act()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
