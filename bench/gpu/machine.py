"""What the machine can do, measured before anything is exported: copies, digests, storage.

Each is what one step of an export does, alone and with nothing to wait for: an export can't be faster than
the slowest.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.results import Spread
from pp_export.core import digest
from pp_export.disk.files import DIRECT_STEP_BYTES, NewFile

_REPETITIONS = 3
_BLOCK_BYTES = 64 << 20
_PIECE_BYTES = 8 << 20


@dataclass(frozen=True)
class Machine:
    """Rates in bytes per second. `digests` and `storage` are of that many threads at once, all together:
    an export has one of each per rank.
    """

    pinned_copy: Spread | None
    sha256: Spread
    digests: dict[int, Spread]
    storage: dict[str, dict[int, Spread]]


def measure(
    device: str, num_bytes: int, counts: Sequence[int], folders: dict[str, tuple[Path, Sequence[int]]]
) -> Machine:
    """Measure with `num_bytes` for each figure, for each number of threads in `counts`; `folders` are told by
    name, with the numbers of writers.
    """
    memory = _memory(min(num_bytes, _BLOCK_BYTES))
    times = max(1, num_bytes // len(memory))
    return Machine(
        _pinned_copy(num_bytes) if device == "cuda" else None,
        _rate(1, times * len(memory), lambda _: _hash(memory, times, tensors=False)),
        {n: _rate(n, times * len(memory), lambda _: _hash(memory, times, tensors=True)) for n in counts},
        {
            name: {n: _storage(folder, memory, times, n) for n in writers}
            for name, (folder, writers) in folders.items()
        },
    )


def _pinned_copy(num_bytes: int) -> Spread:
    """From the GPU to pinned memory, in the export's way: many copies on one stream, waited for together."""
    values = torch.empty(num_bytes, dtype=torch.uint8, device="cuda").fill_(1)
    host = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True).fill_(0)

    def copy(_: int) -> None:
        for piece, target in zip(torch.split(values, _PIECE_BYTES), torch.split(host, _PIECE_BYTES)):
            target.copy_(piece, non_blocking=True)
        torch.cuda.synchronize()

    copy(0)
    return _rate(1, num_bytes, copy)


def _hash(memory: memoryview, times: int, *, tensors: bool) -> None:
    """SHA-256 as the export takes it of a file, and XXH3 as it takes it of the file's tensors."""
    running = digest.sha256()
    for _ in range(times):
        for begin in range(0, len(memory), digest.STEP_BYTES):
            running.update(memory[begin : begin + digest.STEP_BYTES])
        if tensors:
            digest.tensor_digest(memory)
    running.hexdigest()


def _storage(folder: Path, memory: memoryview, times: int, count: int) -> Spread:
    """`count` files written at once, each a share of the bytes, as the export writes: direct where the
    filesystem allows, until they are durable.
    """
    share = max(1, times // count)

    def write(number: int) -> None:
        file = NewFile(folder / f"written-{number}", share * len(memory), direct=True)
        for _ in range(share):
            for begin in range(0, len(memory), DIRECT_STEP_BYTES):
                file.write(memory[begin : begin + DIRECT_STEP_BYTES])
        file.commit()

    def clean() -> None:
        for path in folder.glob("written-*"):
            path.unlink()

    return _rate(count, share * len(memory), write, clean)


def _rate(
    count: int, num_bytes: int, act: Callable[[int], None], after: Callable[[], None] = lambda: None
) -> Spread:
    """Bytes per second of `count` threads that each do `act`, which is `num_bytes` of work."""
    rates = []
    with ThreadPoolExecutor(count) as pool:
        for _ in range(_REPETITIONS):
            begin = time.perf_counter()
            list(pool.map(act, range(count)))
            rates.append(count * num_bytes / (time.perf_counter() - begin))
            after()
    return Spread.of(rates)


def _memory(num_bytes: int) -> memoryview:
    """Page-aligned memory with values that no storage can squeeze."""
    memory = memoryview(mmap.mmap(-1, num_bytes))
    torch.frombuffer(memory, dtype=torch.uint8).random_()
    return memory
