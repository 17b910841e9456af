"""Steps 3 to 7: values on their way from the source to the disk, with a bounded number of shards in hand.

Each step takes what the one before gives, one by one; what may run ahead of the next has a worker of its
own. What a rank reads and doesn't lead it sends away, and it gathers what others read of the shards that
it leads.

Ranks never wait in a circle: all walk the buckets in plan order, and sending never waits for receiving on
the same rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from pp_export.checkpoint.source import Reader
from pp_export.core import errors
from pp_export.core.errors import ExportError
from pp_export.disk import files
from pp_export.distributed.world import World
from pp_export.planning.export_plan import Bucket, Contribution, ExportPlan, ShardPlan
from pp_export.process.ring_buffer import Region, RingBuffer
from pp_export.shards import write
from pp_export.shards.assemble import FrozenShard, ShardAssembler
from pp_export.shards.manifests import ShardManifest
from pp_export.steps.workers import Crew, Progress, StoppedWorkerError


@dataclass(frozen=True)
class ReadPart:
    """What this rank contributes to a bucket, read."""

    shard: ShardPlan
    bucket: Bucket
    part: Contribution
    values: Region


@dataclass(frozen=True)
class GatheredBucket:
    """All contributions to a bucket of a shard that this rank leads; `done` gives their memory back."""

    shard: ShardPlan
    bucket: Bucket
    messages: tuple[tuple[Contribution, torch.Tensor], ...]
    done: Callable[[], None]


@dataclass(frozen=True)
class MappedShard:
    """A shard of which every element has arrived, in the memory of its image."""

    shard: ShardPlan
    assembler: ShardAssembler
    image: Region


@dataclass(frozen=True)
class Frozen:
    """A frozen shard, and the memory that it lies in."""

    shard: FrozenShard
    image: Region


@dataclass(frozen=True)
class WrittenShard:
    """A file that still has to be made durable, and what its JSON will say."""

    file: files.NewFile
    manifest: ShardManifest


class Transfer:
    """The workers of one rank and the memory that the plan gives them, both taken once."""

    def __init__(self, plan: ExportPlan, world: World, staging: Path, progress: Progress) -> None:
        self._plan, self._world, self._rank = plan, world, world.rank
        self._staging, self._progress = staging, progress
        self._crew = Crew(world)
        self._images = RingBuffer(plan.image_bytes(self._rank))
        self._ahead = RingBuffer(plan.ahead_bytes(self._rank))
        self._incoming = torch.empty(plan.incoming_bytes(self._rank), dtype=torch.uint8)
        self._scratch = torch.empty(plan.scratch_bytes(self._rank), dtype=torch.uint8)

    def __enter__(self) -> Transfer:
        return self

    def __exit__(self, *exception: object) -> None:
        del self._images, self._ahead, self._incoming, self._scratch

    def read(self, reader: Reader) -> Iterator[ReadPart]:
        """Everything that this rank was dealt, in plan order."""
        return self._crew.ahead(self._read(reader))

    def gather(self, read: Iterable[ReadPart]) -> Iterator[GatheredBucket]:
        """The buckets of the shards that this rank leads, in plan order; what it leads not is sent to who
        does.
        """
        return self._gather(self._crew.ahead(self._send(read)))

    def map(self, gathered: Iterable[GatheredBucket]) -> Iterator[MappedShard]:
        """The same as shards: every element at its place under its Hugging Face name."""
        assembler: ShardAssembler | None = None
        for each in gathered:
            if assembler is None:
                image = self._images.take(each.shard.num_bytes, self._crew.check)
                assembler = ShardAssembler(each.shard, image.view, self._scratch)
            with self._located(operation="map", stage=each.shard.stage, file=each.shard.file):
                for part, message in each.messages:
                    for slice_, begin in zip(part.slices, part.offsets):
                        assembler.paste(slice_, message[begin:])
            each.done()
            if each.bucket is each.shard.buckets[-1]:
                yield MappedShard(each.shard, assembler, image)
                assembler = None

    def freeze(self, mapped: Iterable[MappedShard]) -> Iterator[Frozen]:
        """The same, encoded and read-only from now on."""
        return self._crew.ahead(self._freeze(mapped))

    def write(self, frozen: Iterable[Frozen]) -> Iterator[WrittenShard]:
        """The same as files; digests are taken of the frozen shard while it is written."""
        return self._crew.ahead(self._write(frozen))

    def finish(self, written: Iterable[WrittenShard], on_poll: Callable[[], None]) -> None:
        """Make all files durable, and let all of this happen; called by all ranks, and over when all are
        done.

        Raises the first error, of any rank.
        """
        self._crew.add(lambda: self._commit(written))
        self._crew.run(on_poll)
        self._world.control.together(lambda: None)

    def _read(self, reader: Reader) -> Iterator[ReadPart]:
        for shard, bucket, part in self._plan.parts_of(self._rank):
            self._crew.check()
            region = self._ahead.take(part.num_bytes, self._crew.check)
            for slice_, begin in zip(part.slices, part.offsets):
                self._progress.doing("reader", f"reading {slice_.name}")
                with self._located(operation="read", stage=shard.stage, tensor=slice_.name, unit=shard.unit):
                    reader.read(slice_, region.view[begin : begin + slice_.num_bytes])
                self._progress.add("read", slice_.num_bytes)
            yield ReadPart(shard, bucket, part, region)
        self._progress.doing("reader", "checking what is left of the source's items")
        with self._located(operation="read"):
            reader.finish()

    def _send(self, read: Iterable[ReadPart]) -> Iterator[ReadPart]:
        """What this rank leads itself; all else is sent away."""
        for each in read:
            shard = each.shard
            if shard.leader == self._rank:
                yield each
                continue
            self._progress.doing("sender", f"sending a part of {shard.file} to rank {shard.leader}")
            with self._located(operation="send", stage=shard.stage, file=shard.file):
                self._world.data.send(_tensor(each.values), shard.leader, each.bucket.number)
            self._ahead.give_back(each.values)

    def _gather(self, own: Iterator[ReadPart]) -> Iterator[GatheredBucket]:
        for shard in self._plan.led_by(self._rank):
            for bucket in shard.buckets:
                with self._located(operation="gather", stage=shard.stage, file=shard.file):
                    gathered = self._receive(shard, bucket, own)
                yield gathered

    def _receive(self, shard: ShardPlan, bucket: Bucket, own: Iterator[ReadPart]) -> GatheredBucket:
        """First what other ranks send, then what this one read."""
        self._crew.check()
        parts = [part for part in bucket.parts if part.rank != self._rank]
        senders = ", ".join(str(part.rank) for part in parts) or "itself"
        self._progress.doing("gatherer", f"waiting for parts of {shard.file} from {senders}")
        sizes = [part.num_bytes for part in parts]
        messages = torch.split(self._incoming[: sum(sizes)], sizes)
        self._world.data.receive({part.rank: m for part, m in zip(parts, messages)}, bucket.number)
        gathered = tuple(zip(parts, messages))
        if len(parts) == len(bucket.parts):
            return GatheredBucket(shard, bucket, gathered, lambda: None)
        mine = next(own)
        gathered = (*gathered, (mine.part, _tensor(mine.values)))
        return GatheredBucket(shard, bucket, gathered, lambda: self._ahead.give_back(mine.values))

    def _freeze(self, mapped: Iterable[MappedShard]) -> Iterator[Frozen]:
        for each in mapped:
            with self._located(operation="freeze", stage=each.shard.stage, file=each.shard.file):
                frozen = Frozen(each.assembler.freeze(), each.image)
            yield frozen

    def _write(self, frozen: Iterable[Frozen]) -> Iterator[WrittenShard]:
        with ThreadPoolExecutor(1, thread_name_prefix="digest") as digester:
            for each in frozen:
                self._progress.doing("writer", f"writing {each.shard.file}")
                manifest = digester.submit(write.digest_shard, each.shard)
                with self._located(operation="write", file=each.shard.file):
                    file = write.write_shard(
                        each.shard, self._staging, lambda count: self._progress.add("written", count)
                    )
                    written = WrittenShard(file, manifest.result())
                self._images.give_back(each.image)
                yield written

    def _commit(self, written: Iterable[WrittenShard]) -> None:
        for each in written:
            self._progress.doing("committer", f"making {each.manifest.file} durable")
            with self._located(operation="commit", file=each.manifest.file):
                write.commit_shard(each.file, each.manifest, self._staging)
            self._progress.add("shards", 1)

    @contextmanager
    def _located(self, **where: object) -> Iterator[None]:
        """Give every error the place where it happened."""
        try:
            yield
        except StoppedWorkerError:
            raise
        except ExportError as error:
            error.at(rank=self._rank, **where)
            raise
        except Exception as error:
            raise errors.unforeseen(error).at(rank=self._rank, **where) from error


def _tensor(region: Region) -> torch.Tensor:
    return torch.frombuffer(region.view, dtype=torch.uint8)
