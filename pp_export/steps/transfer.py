"""Steps 3 to 8: values on their way from the source to the disk and once more back from there, with a bounded
number of shards in hand.

Each step takes what the one before gives, one by one, and has workers of its own, as many as the rank has
threads: several rounds are read at once (`steps.reading`), several shards are hashed and written. What a rank
reads and doesn't lead it sends away, and it gathers what others read for it, in rounds (`steps.exchange`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pp_export.checkpoint.source import Reader
from pp_export.disk import files
from pp_export.distributed.backends import NCCL, Backend, own_device
from pp_export.distributed.world import World
from pp_export.planning.rank_plan import FileToVerify, RankPlan
from pp_export.planning.shard_plan import Bucket
from pp_export.process.pinned_memory import pin
from pp_export.process.ring_buffer import Region
from pp_export.shards import write
from pp_export.shards.assemble import FrozenShard
from pp_export.shards.manifests import RangeManifest, ShardManifest
from pp_export.steps.exchange import Exchange, GatheredRound, GrowingShard, ReadRound
from pp_export.steps.reading import Reading, Rings
from pp_export.steps.verification import verify_file
from pp_export.steps.workers import Crew, Progress, located

if TYPE_CHECKING:
    import torch

_MIN_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 0.01, 0.5


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

    Where values come from a GPU or go over one, the memory that they pass through is pinned. A `crew` may be
    given that does other work besides.
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
        crew: Crew | None = None,
    ) -> None:
        self._plan, self._world, self._rank = plan, world, world.rank
        self._staging, self._progress, self._threads = staging, progress, plan.capacity.threads
        self._span = progress.recorder.span
        self._crew = crew or Crew(world)
        is_nccl, from_device = backend.name == NCCL, values_on is not None
        self._device = own_device(values_on) if is_nccl else values_on
        self._name = world.data.begin()
        self._exchange = Exchange(plan, world, self._name, backend, self._device, self._crew, progress)
        self._rings = Rings(plan)
        self._reading = Reading(
            plan,
            self._rings,
            self._crew,
            progress,
            from_device=from_device,
            sends_from_device=is_nccl and from_device,
        )
        self._unpin: list[Callable[[], None]] = []
        self._uncommitted: set[files.OpenFile] = set()

    def __enter__(self) -> Transfer:
        if self._device is not None:
            self._unpin += [
                pin(ring.memory, self._device) for ring in (self._rings.ahead, self._exchange.incoming)
            ]
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
        return self._reading.walk(reader)

    def gather(self, read: Iterable[ReadRound]) -> Iterator[GatheredRound]:
        """The rounds in which this rank leads, in plan order; what it leads not is sent to who does."""
        gathered = self._gather(self._exchange.walk(read, self._rings.ahead))
        return self._crew.ahead("exchanger", gathered) if self._exchange.has_peers else gathered

    def map(self, gathered: Iterable[GatheredRound]) -> Iterator[GrowingShard]:
        """The same as shards: every element at its place under its Hugging Face name."""
        pasted = (
            self._crew.in_parallel("paster", gathered, self._paste, self._threads)
            if self._exchange.has_peers
            else map(self._paste, gathered)
        )
        return (growing for growing, bucket in pasted if bucket.number == growing.shard.buckets[-1].number)

    def freeze(self, mapped: Iterable[GrowingShard]) -> Iterator[Frozen]:
        """The same, encoded and read-only from now on."""
        return self._crew.in_parallel("encoder", mapped, self._freeze, self._threads)

    def done_with(self, frozen: Frozen) -> None:
        """Its memory may be used again: for who does something else with frozen shards than `write`."""
        self._rings.images.give_back(frozen.image)

    def write(self, frozen: Iterable[Frozen]) -> Iterator[WrittenShard]:
        """The same as files; digests are taken of the frozen shard while it is written."""
        return self._crew.in_parallel("writer", frozen, self._write, self._threads)

    def commit(self, written: Iterable[WrittenShard]) -> Iterator[str]:
        """The files, durable and under their names; whoever verifies them hears of it."""
        return self._crew.in_parallel("committer", written, self._commit, self._threads)

    def verify(self, committed: Iterable[str]) -> Iterator[str]:
        """The files of one range that this rank is to re-read, whoever `committed` them, each as soon as that
        is done; meanwhile this rank's own are committed.
        """
        self._crew.exhaust("committed", committed)
        to_verify = deque(each for each in self._plan.to_verify if each.is_whole)
        return self._crew.in_parallel("verifier", self._announced(to_verify), self._verify, self._threads)

    def finish(self, files: Iterable[object], on_poll: Callable[[], None]) -> None:
        """Let all of this happen, until the last of `files`; called by all ranks, and over when all are
        done.

        Raises the first error, of any rank.
        """
        self._crew.exhaust("finisher", files)
        self._crew.run(on_poll)
        self._world.control.together(lambda: None)

    def _gather(self, walked: Iterator[GatheredRound]) -> Iterator[GatheredRound]:
        while True:
            with located(self._rank, operation="gather"):
                each = next(walked, None)
            if each is None:
                return
            yield each

    def _paste(self, each: GatheredRound) -> tuple[GrowingShard, Bucket]:
        growing, shard = each.growing, each.growing.shard
        with located(self._rank, operation="map", stage=shard.stage, file=shard.file):
            if each.parts:
                with self._span("receives"):
                    each.arrived()
            for part, values in each.parts:
                with self._span("pastes", num_bytes=part.value_bytes, file=shard.file):
                    for slice_, begin in zip(part.slices, part.offsets):
                        growing.assembler.paste(slice_, values[begin:])
        each.done()
        return growing, each.bucket

    def _freeze(self, each: GrowingShard) -> Frozen:
        shard = each.shard
        with (
            located(self._rank, operation="freeze", stage=shard.stage, file=shard.file),
            self._span("encodes", num_bytes=shard.data_bytes, file=shard.file),
        ):
            frozen = Frozen(each.assembler.freeze(), each.image)
        if each.scratch is not None:
            self._rings.scratch.give_back(each.scratch)
        return frozen

    def _write(self, each: Frozen) -> WrittenShard:
        frozen = each.shard
        self._progress.doing(f"writing {frozen.file}")
        # One for each shard: nobody would end one that waits for the next when another worker fails.
        with (
            located(self._rank, operation="write", file=frozen.file),
            ThreadPoolExecutor(1, thread_name_prefix="digester") as digester,
        ):
            manifest = digester.submit(self._digest, frozen)
            with self._span("writes", num_bytes=len(frozen.image), file=frozen.file):
                file = write.write_shard(
                    frozen, self._staging, lambda count: self._progress.add("written", count)
                )
            self._uncommitted.add(file)
            written = WrittenShard(file, manifest.result())
        self._rings.images.give_back(each.image)
        return written

    def _digest(self, frozen: FrozenShard) -> ShardManifest | RangeManifest:
        with self._span("hashes", num_bytes=len(frozen.image), file=frozen.file):
            return write.digest_shard(frozen)

    def _commit(self, each: WrittenShard) -> str:
        file = each.manifest.file
        self._progress.doing(f"making {file} durable")
        with located(self._rank, operation="commit", file=file), self._span("writes", file=file):
            write.commit_shard(each.file, each.manifest, self._staging)
        self._uncommitted.discard(each.file)
        self._progress.add("shards", 1)
        if isinstance(each.manifest, ShardManifest):
            self._world.announcements.post(self._announced_as(file))
        return file

    def _announced(self, waiting: deque[FileToVerify]) -> Iterator[FileToVerify]:
        """Each of the files, once its writer has committed it. Of each writer only the first is asked for,
        since it commits them about in order.
        """
        pause, posted = _MIN_PAUSE_SECONDS, self._world.announcements.has
        while waiting:
            self._crew.check()
            first_of = {each.writers[0]: each for each in reversed(waiting)}
            found = [
                each for writer, each in first_of.items() if posted(self._announced_as(each.file), writer)
            ]
            for each in found:
                waiting.remove(each)
                yield each
            pause = _MIN_PAUSE_SECONDS if found else min(2 * pause, _MAX_PAUSE_SECONDS)
            time.sleep(pause)

    def _announced_as(self, file: str) -> str:
        """Files of an earlier export in this world may have had the same name."""
        return f"{self._name}/{file}"

    def _verify(self, each: FileToVerify) -> str:
        verify_file(self._rank, self._staging, each, self._progress)
        return each.file

    def _release(self) -> None:
        for file in self._uncommitted:
            file.abandon()  # of a file that is removed, all that was reserved stays taken until it is closed
        for unpin in self._unpin:
            unpin()
        self._rings.release()
        del self._exchange.incoming
