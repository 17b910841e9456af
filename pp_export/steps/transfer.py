"""Steps 3 to 7: values on their way from the source to the disk, with a bounded number of shards in hand.

Each step takes what the one before gives, one by one; what may run ahead of the next has a worker of its
own. What a rank reads and doesn't lead it sends away, and it gathers what others read of the shards that
it leads, in rounds (`steps.exchange`).
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
from pp_export.core.tensors import Slice
from pp_export.disk import files
from pp_export.distributed.backends import NCCL, Backend, own_device
from pp_export.distributed.wire import Message
from pp_export.distributed.world import World
from pp_export.planning.rank_plan import RankPlan
from pp_export.planning.rounds import LOOK_AHEAD, Given
from pp_export.planning.shard_plan import Contribution, ShardPlan
from pp_export.process.pinned_memory import pin
from pp_export.process.ring_buffer import Region, RingBuffer
from pp_export.shards import write
from pp_export.shards.assemble import FrozenShard, ShardAssembler
from pp_export.shards.manifests import RangeManifest, ShardManifest
from pp_export.steps.exchange import Exchange, GatheredBucket, ReadRound, as_tensor
from pp_export.steps.workers import Crew, Progress, StoppedWorkerError


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
    """A file that still has to be made durable, and what the JSON of the shard, or the range, will say."""

    file: files.OpenFile
    manifest: ShardManifest | RangeManifest


class Transfer:
    """The workers of one rank and the memory that the plan gives them, both taken once.

    Where values come from a GPU or go over one, the memory that they pass through is pinned.
    """

    def __init__(
        self,
        plan: RankPlan,
        world: World,
        backend: Backend,
        staging: Path,
        progress: Progress,
        *,
        values_on: torch.device | None,
    ) -> None:
        self._plan, self._world, self._rank = plan, world, world.rank
        self._staging, self._progress = staging, progress
        self._crew = Crew(world)
        is_nccl = backend.name == NCCL
        self._device = own_device(values_on) if is_nccl else values_on
        self._sends_from_device = is_nccl and values_on is not None
        self._exchange = Exchange(plan, world, backend, self._device, self._crew, progress)
        self._images = RingBuffer(plan.image_bytes)
        self._ahead = RingBuffer(plan.ahead_bytes)
        self._scratch = torch.empty(plan.scratch_bytes, dtype=torch.uint8)
        self._unpin: list[Callable[[], None]] = []

    def __enter__(self) -> Transfer:
        if self._device is not None:
            self._unpin += [pin(ring.memory, self._device) for ring in (self._ahead, self._exchange.incoming)]
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        """After a failure, workers may still be at it: memory is given back when they have ended."""
        self._world.data.hold(self._release)
        if kind is None:
            self._world.data.close()

    @property
    def sent(self) -> dict[int, int]:
        """The bytes that this rank has sent to others, by rank."""
        return dict(self._exchange.sent)

    def read(self, reader: Reader) -> Iterator[ReadRound]:
        """Everything that this rank was dealt, round by round."""
        return self._crew.ahead(self._read(reader), LOOK_AHEAD)

    def gather(self, read: Iterable[ReadRound]) -> Iterator[GatheredBucket]:
        """The buckets of the shards that this rank leads, in plan order; what it leads not is sent to who
        does. Where nothing is exchanged, whoever takes the buckets also reads them.
        """
        gathered = self._gather(self._exchange.walk(read, self._ahead))
        return self._crew.ahead(gathered) if self._exchange.has_peers else gathered

    def map(self, gathered: Iterable[GatheredBucket]) -> Iterator[MappedShard]:
        """The same as shards: every element at its place under its Hugging Face name."""
        assembler: ShardAssembler | None = None
        for each in gathered:
            shard, bucket = each.led
            if assembler is None:
                image = self._images.take(shard.image_bytes, self._crew.check)
                assembler = ShardAssembler(shard, image.view[shard.image_begin :], self._scratch)
            with self._located(operation="map", stage=shard.stage, file=shard.file):
                each.arrived()
                for part, values in each.parts:
                    for slice_, begin in zip(part.slices, part.offsets):
                        assembler.paste(slice_, values[begin:])
            each.done()
            if bucket is shard.buckets[-1]:
                yield MappedShard(shard, assembler, image)
                assembler = None

    def freeze(self, mapped: Iterable[MappedShard]) -> Iterator[Frozen]:
        """The same, encoded and read-only from now on."""
        return self._crew.ahead(self._freeze(mapped))

    def write(self, frozen: Iterable[Frozen]) -> Iterator[WrittenShard]:
        """The same as files; digests are taken of the frozen shard while it is written."""
        return self._crew.ahead(self._write(frozen), self._plan.shards_in_flight)

    def finish(self, written: Iterable[WrittenShard], on_poll: Callable[[], None]) -> None:
        """Make all files durable, and let all of this happen; called by all ranks, and over when all are
        done.

        Raises the first error, of any rank.
        """
        self._crew.add(lambda: self._commit(written))
        self._crew.run(on_poll)
        self._world.control.together(lambda: None)

    def _read(self, reader: Reader) -> Iterator[ReadRound]:
        for each in self._plan.rounds:
            self._crew.check()
            own: tuple[Contribution, Region] | None = None
            messages: list[Message] = []
            sent_from: list[Region] = []
            for given in each.gives:
                leader, part = given.shard.leader, given.part
                if leader != self._rank and (values := self._on_device(reader, given)):
                    messages += [Message(leader, each_of) for each_of in values]
                    continue
                region = self._in_memory(reader, given)
                if leader == self._rank:
                    own = (part, region)
                    continue
                sent_from.append(region)
                for slice_, begin in zip(part.slices, part.offsets):
                    messages.append(Message(leader, as_tensor(region)[begin : begin + slice_.num_bytes]))
            reader.settle()
            yield ReadRound(each, own, tuple(messages), tuple(sent_from))
        self._progress.doing("reader", "checking what is left of the source's items")
        with self._located(operation="read"):
            reader.finish()

    def _in_memory(self, reader: Reader, given: Given) -> Region:
        """The slices of a part, read into host memory one after another."""
        part = given.part
        region = self._ahead.take(part.num_bytes, self._crew.check)
        for slice_, begin in zip(part.slices, part.offsets):
            with self._reading(given, slice_):
                reader.read(slice_, region.view[begin : begin + slice_.num_bytes])
            self._progress.add("read", slice_.num_bytes)
        return region

    def _on_device(self, reader: Reader, given: Given) -> list[torch.Tensor]:
        """The slices of a part where they lie, if a wire can send them from there."""
        values = []
        for slice_ in given.part.slices if self._sends_from_device else ():
            with self._reading(given, slice_):
                found = reader.on_device(slice_)
            if found is None:
                return []
            values.append(found)
        self._progress.add("read", sum(slice_.num_bytes for slice_ in given.part.slices) if values else 0)
        return values

    @contextmanager
    def _reading(self, given: Given, slice_: Slice) -> Iterator[None]:
        """What a reader does for a slice, seen from outside."""
        shard = given.shard
        self._progress.doing("reader", f"reading {slice_.name}")
        with self._located(operation="read", stage=shard.stage, tensor=slice_.name, unit=shard.unit):
            yield

    def _gather(self, walked: Iterator[GatheredBucket]) -> Iterator[GatheredBucket]:
        while True:
            with self._located(operation="gather"):
                each = next(walked, None)
            if each is None:
                return
            yield each

    def _freeze(self, mapped: Iterable[MappedShard]) -> Iterator[Frozen]:
        for each in mapped:
            with self._located(operation="freeze", stage=each.shard.stage, file=each.shard.file):
                frozen = Frozen(each.assembler.freeze(), each.image)
            yield frozen

    def _write(self, frozen: Iterable[Frozen]) -> Iterator[WrittenShard]:
        for each in frozen:
            self._progress.doing("writer", f"writing {each.shard.file}")
            # One for each shard: nobody would end one that waits for the next when another worker fails.
            with (
                self._located(operation="write", file=each.shard.file),
                ThreadPoolExecutor(1, thread_name_prefix="digest") as digester,
            ):
                manifest = digester.submit(write.digest_shard, each.shard)
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

    def _release(self) -> None:
        for unpin in self._unpin:
            unpin()
        del self._images, self._ahead, self._scratch, self._exchange.incoming
