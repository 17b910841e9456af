"""One circle on this machine: a server in a process of its own, a thread and a connection for each member."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from pp_export.distributed.blocks import Blocks
from pp_export.distributed.shared_keys import SharedKeys
from pp_export.distributed.store import Store
from pp_export.distributed.world import World

STEPS: Mapping[str, Callable[[World, bytes], object]] = {
    "share": lambda world, value: world.control.share(lambda: value),
    "gather": lambda world, value: world.control.gather(b"%d" % world.rank + value),
    "together": lambda world, value: world.control.together(lambda: None),
    "scatter": lambda world, value: world.control.scatter(
        lambda: [b"%d" % rank + value for rank in range(world.size)]
    ),
}


@dataclass(frozen=True)
class Measured:
    """Of one kind of step: seconds from the last rank's coming to the last one's going, each time; and the
    requests of one at the store, of which so many are looks for a key.
    """

    seconds: tuple[float, ...]
    requests: float
    looks: float

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class Counting(SharedKeys):
    """Counts requests."""

    def __init__(self, store: Any, counts: Counter[str]) -> None:
        super().__init__(store, patience_seconds=600)
        self._counts, self._count_lock = counts, threading.Lock()

    def check(self, *keys: str) -> bool:
        self._counts["looks"] += 1  # a race may lose a few; the table's figures are rounded
        return super().check(*keys)

    def _call(self, call: Callable[..., Any]) -> Any:
        self._counts["requests"] += 1
        return super()._call(call)


@contextmanager
def server() -> Iterator[int]:
    """The port of a store that another process serves, as a launcher's agent does."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        os.write(write, b"%d\n" % store.port)
        while os.getppid() != 1:
            time.sleep(0.1)
        os._exit(0)
    try:
        yield int(os.read(read, 20))
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def measure_circle(port: int, size: int, *, is_block: bool, value_bytes: int, times: int) -> dict[str, Any]:
    """The steps, the end, and what they ask of the store, of `size` members: a block's, or first ranks."""
    counts: Counter[str] = Counter()
    found: dict[str, Any] = {}
    meet = threading.Barrier(size)
    blocks = None if is_block else Blocks(1, lambda: (Counting(_client(port), Counter()), ""), _never)

    def act(rank: int) -> None:
        keys = Counting(_client(port), counts)
        world = World(rank, size, keys, blocks=blocks, stall_seconds=600)
        for name, step in STEPS.items():
            seconds = []
            meet.wait()
            before = Counter(counts)
            for _ in range(times):
                meet.wait()
                begun = time.perf_counter()
                step(world, bytes(value_bytes if name == "scatter" else 0))
                meet.wait()
                seconds.append(time.perf_counter() - begun)
            if rank == 0:
                spent = {what: (counts[what] - before[what]) / times for what in ("requests", "looks")}
                found[name] = Measured(tuple(seconds), **spent)
            world.control.together(lambda: None)
        meet.wait()
        before, begun = Counter(counts), time.perf_counter()
        world.close(60)
        if rank == 0:
            seconds = [time.perf_counter() - begun]
            spent = {what: counts[what] - before[what] for what in ("requests", "looks")}
            found["leave, clean up"] = Measured(tuple(seconds), **spent)

    with ThreadPoolExecutor(size) as members:
        list(members.map(act, range(size)))
    return found


def measure_look(port: int, num_ranks: int, block_size: int) -> dict[str, float]:
    """Rank 0 looks at the progress of all ranks of a large world, as it does while it waits."""
    from pp_export.distributed.liveness import Liveness, _bundle, _of_block, _of_rank
    from pp_export.distributed.tree import Seat

    counts: Counter[str] = Counter()
    keys = Counting(_client(port), counts)
    posts = {_of_rank(rank): _post(rank) for rank in range(num_ranks)}
    names = list(posts)
    num_bytes = 0
    for block in range(1, -(-num_ranks // block_size)):
        of_block = names[block * block_size : (block + 1) * block_size]
        image = _bundle({name: posts[name] for name in of_block})
        num_bytes += len(image)
        keys.set(_of_block(block), image)
    keys.set_many({name: posts[name] for name in names[:block_size]})
    liveness = Liveness(Seat(0, num_ranks, block_size), keys, keys, 600)
    liveness.progress_of(range(num_ranks))
    time.sleep(num_ranks / 8192)  # it looks no more often than that
    before, begun, cpu = counts["requests"], time.perf_counter(), time.process_time()
    seen = liveness.progress_of(range(num_ranks))
    seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu
    liveness.stop()
    assert len(seen) == num_ranks
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "requests": counts["requests"] - before,
        "bytes": num_bytes,
    }


def _post(rank: int) -> bytes:
    counters = f'"read": {rank * 7919}, "written": {rank * 104729}, "shards": {rank % 7}, "verified": 0'
    doing = f'"doing": {{"reader": "reading round 17", "writer": "writing shard {rank}"}}'
    return f'{{"beat": {rank}, "step": 9, {counters}, {doing}}}'.encode()


def _client(port: int) -> TCPStore:
    return TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)


def _never(address: str, *, whose: str, meanwhile: Callable[[], None]) -> Store:
    raise AssertionError("a block of one rank has no other")
