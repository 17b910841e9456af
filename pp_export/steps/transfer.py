"""Moves the values: four worker threads per rank, with a bounded number of shards in hand.

- the *reader* reads this rank's parts in plan order, hands those of its own shards over and sends the others
  away;
- the *gatherer* receives the parts of the shards that this rank leads and pastes them until each is full,
  then freezes it;
- the *writer* digests and writes frozen shards, the *committer* makes them durable.

Ranks never wait in a circle: all walk the buckets in plan order, and sending never waits for receiving on the
same rank. The main thread only watches: it raises what a worker raised, and notices when another rank failed.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from pp_export.core import errors
from pp_export.core.errors import ExportError
from pp_export.core.tensors import Slice
from pp_export.disk import files
from pp_export.distributed.world import World
from pp_export.planning.export_plan import Bucket, Contribution, ExportPlan, ShardPlan
from pp_export.process.ring_buffer import Region, RingBuffer
from pp_export.shards import write
from pp_export.shards.assemble import FrozenShard, ShardAssembler
from pp_export.shards.manifests import ShardManifest

_Item = TypeVar("_Item")


class Reader(Protocol):
    """Gives the values of slices; used by one thread."""

    def read(self, slice_: Slice, into: memoryview) -> None:
        """Fill `into` (exactly the slice's bytes) with the slice in C order."""

    def finish(self) -> None:
        """After the last slice: check what could not be checked slice by slice."""


class Progress:
    """Counters of one rank, added to by its workers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = {"read": 0, "written": 0, "shards": 0, "verified": 0}
        self._doing: dict[str, str] = {}

    def add(self, name: str, amount: int) -> None:
        with self._lock:
            self._counts[name] += amount

    def doing(self, worker: str, what: str) -> None:
        """What a worker is at, for the error when it hangs."""
        with self._lock:
            self._doing[worker] = what

    def snapshot(self) -> dict[str, Any]:
        """All counters, and what each worker is `doing`."""
        with self._lock:
            return {**self._counts, "doing": dict(self._doing)}


class _EndWorkerError(Exception):
    """Another worker of this rank failed."""


def run_workers(
    world: World, workers: Sequence[Callable[[], None]], stop: threading.Event, on_poll: Callable[[], None]
) -> None:
    """Run `workers` in threads while the calling (main) thread listens to the other ranks.

    Raises the first error of a worker, or of another rank. `stop` then asks the workers to end; one that is
    blocked in a transfer ends by `World.end_transfers`.
    """
    raised: list[BaseException] = []

    def guard(work: Callable[[], None]) -> None:
        try:
            work()
        except _EndWorkerError:
            pass
        except BaseException as error:  # noqa: BLE001  raised again by the main thread
            raised.append(error)
            stop.set()

    threads = [threading.Thread(target=guard, args=(work,), daemon=True) for work in workers]

    def finished() -> bool:
        on_poll()
        if raised:
            raise raised[0]
        return not any(thread.is_alive() for thread in threads)

    world.workers = []
    try:
        for thread in threads:
            thread.start()
            world.workers.append(thread)  # one that a signal kept from starting can't be joined
        world.wait(finished)
    finally:
        stop.set()
    if raised:
        raise raised[0]


class Transfer:
    """Reads, gathers, freezes and writes all shards that this rank takes part in."""

    def __init__(
        self, plan: ExportPlan, world: World, reader: Reader, staging: Path, progress: Progress
    ) -> None:
        self._plan, self._world, self._reader = plan, world, reader
        self._staging, self._progress = staging, progress
        self._stop = threading.Event()
        self._images = RingBuffer(plan.image_bytes(world.rank))
        self._ahead = RingBuffer(plan.ahead_bytes(world.rank))
        self._own: queue.Queue[tuple[Contribution, Region]] = queue.Queue()
        self._frozen: queue.Queue[tuple[FrozenShard, Region] | None] = queue.Queue()
        self._written: queue.Queue[tuple[files.NewFile, ShardManifest] | None] = queue.Queue()
        self._records: list[ShardManifest] = []

    def run(self, on_poll: Callable[[], None]) -> list[ShardManifest]:
        """Move everything; the records of the shards that this rank wrote. Raises the first error, of any
        rank.
        """
        run_workers(
            self._world, [self._read_parts, self._gather, self._write, self._commit], self._stop, on_poll
        )
        return self._records

    def _read_parts(self) -> None:
        for shard, bucket, part in self._plan.parts_of(self._world.rank):
            self._check_stop()
            region = self._ahead.take(part.num_bytes, self._check_stop)
            for slice_, begin in zip(part.slices, part.offsets):
                self._progress.doing("reader", f"reading {slice_.name}")
                with self._located(operation="read", stage=shard.stage, tensor=slice_.name, unit=shard.unit):
                    self._reader.read(slice_, region.view[begin : begin + slice_.num_bytes])
                self._progress.add("read", slice_.num_bytes)
            if shard.leader == self._world.rank:
                self._own.put((part, region))
            else:
                self._progress.doing("reader", f"sending a part of {shard.file} to rank {shard.leader}")
                with self._located(operation="send", stage=shard.stage, file=shard.file):
                    self._world.send(_tensor(region.view), shard.leader, bucket.number)
                self._ahead.give_back(region)
        self._progress.doing("reader", "checking what is left of the source's records")
        with self._located(operation="read"):
            self._reader.finish()

    def _gather(self) -> None:
        incoming = torch.empty(self._plan.incoming_bytes(self._world.rank), dtype=torch.uint8)
        for shard in self._plan.led_by(self._world.rank):
            with self._located(operation="gather", stage=shard.stage, file=shard.file):
                image = self._images.take(shard.num_bytes, self._check_stop)
                assembler = ShardAssembler(shard, image.view)
                for bucket in shard.buckets:
                    self._fill(assembler, shard, bucket, incoming)
                self._frozen.put((assembler.freeze(), image))
                del assembler
        self._frozen.put(None)

    def _fill(
        self, assembler: ShardAssembler, shard: ShardPlan, bucket: Bucket, incoming: torch.Tensor
    ) -> None:
        """Paste a bucket: first what other ranks send, then what this one read."""
        self._check_stop()
        parts = [part for part in bucket.parts if part.rank != self._world.rank]
        senders = ", ".join(str(part.rank) for part in parts) or "itself"
        self._progress.doing("gatherer", f"waiting for parts of {shard.file} from {senders}")
        sizes = [part.num_bytes for part in parts]
        messages = torch.split(incoming[: sum(sizes)], sizes)
        self._world.receive({part.rank: m for part, m in zip(parts, messages)}, bucket.number)
        for part, message in zip(parts, messages):
            _paste(assembler, part, message)
        if len(parts) < len(bucket.parts):
            part, region = self._get(self._own)
            _paste(assembler, part, _tensor(region.view))
            self._ahead.give_back(region)

    def _write(self) -> None:
        with ThreadPoolExecutor(1, thread_name_prefix="digest") as digester:
            while (item := self._get(self._frozen)) is not None:
                frozen, image = item
                self._progress.doing("writer", f"writing {frozen.file}")
                record = digester.submit(write.digest_shard, frozen)
                with self._located(operation="write", file=frozen.file):
                    file = write.write_shard(
                        frozen, self._staging, lambda n: self._progress.add("written", n)
                    )
                    self._written.put((file, record.result()))
                self._images.give_back(image)
        self._written.put(None)

    def _commit(self) -> None:
        while (written := self._get(self._written)) is not None:
            file, record = written
            self._progress.doing("committer", f"making {record.file} durable")
            with self._located(operation="commit", file=record.file):
                write.commit_shard(file, record, self._staging)
            self._records.append(record)
            self._progress.add("shards", 1)

    @contextmanager
    def _located(self, **where: object) -> Iterator[None]:
        """Give every error the place where it happened."""
        try:
            yield
        except _EndWorkerError:
            raise
        except ExportError as error:
            error.at(rank=self._world.rank, **where)
            raise
        except Exception as error:
            raise errors.unforeseen(error).at(rank=self._world.rank, **where) from error

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise _EndWorkerError

    def _get(self, items: queue.Queue[_Item]) -> _Item:
        while True:
            self._check_stop()
            try:
                return items.get(timeout=0.1)
            except queue.Empty:
                continue


def _paste(assembler: ShardAssembler, part: Contribution, message: torch.Tensor) -> None:
    for slice_, begin in zip(part.slices, part.offsets):
        assembler.paste(slice_, message[begin:])


def _tensor(view: memoryview) -> torch.Tensor:
    return torch.frombuffer(view, dtype=torch.uint8)
