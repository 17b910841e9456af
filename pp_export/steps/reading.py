"""Step 3 on one rank: its slices are read round by round, each to where it is needed next.

What the rank leads goes straight to its place in the image of its shard, where it lies in long enough pieces;
the rest is read aside and pasted. What it reads for others lies in memory of its own until it is sent, or
stays on the GPU that it is sent from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from pp_export.checkpoint.source import Reader
from pp_export.core.tensors import Slice
from pp_export.distributed.wire import Message
from pp_export.planning.rank_plan import RankPlan
from pp_export.planning.rounds import LOOK_AHEAD, Given, Round
from pp_export.planning.shard_plan import ShardPlan
from pp_export.process.ring_buffer import Region, RingBuffer
from pp_export.shards.assemble import ShardAssembler
from pp_export.steps.exchange import GrowingShard, ReadRound
from pp_export.steps.workers import Crew, Progress, located

if TYPE_CHECKING:
    import torch


class Rings:
    """The memory that the plan gives a rank, taken once: for the images that shards grow in, for what is read
    aside, ahead of its use, and for what is still to be encoded.
    """

    def __init__(self, plan: RankPlan) -> None:
        self.images = RingBuffer(plan.image_bytes)
        self.ahead = RingBuffer(plan.ahead_bytes)
        self.scratch = RingBuffer(plan.scratch_bytes)

    def release(self) -> None:
        """Give the memory back, whoever still holds this."""
        del self.images, self.ahead, self.scratch


@dataclass(frozen=True)
class _Place:
    """Where the slices of a part go that this rank reads in a round. Into host memory: each to its `pieces`
    in the shard's image, or else to its offset in the `region`; or, `on_device`, nowhere.
    """

    given: Given
    region: Region | None = None
    pieces: tuple[list[memoryview] | None, ...] = ()
    on_device: tuple[torch.Tensor, ...] = ()


@dataclass(frozen=True)
class _PlacedRound:
    """A round, and memory for everything that is read in it."""

    round: Round
    growing: GrowingShard | None
    places: tuple[_Place, ...]


class Reading:
    """The rounds of this rank, read by its `crew`. Values come from a GPU (`from_device`) or not, and are
    sent from there or not.
    """

    def __init__(
        self,
        plan: RankPlan,
        rings: Rings,
        crew: Crew,
        progress: Progress,
        *,
        from_device: bool,
        sends_from_device: bool,
    ) -> None:
        self._plan, self._rank, self._rings = plan, plan.rank, rings
        self._crew, self._progress, self._span = crew, progress, progress.recorder.span
        self._is_from_device, self._sends_from_device = from_device, sends_from_device

    def walk(self, reader: Reader) -> Iterator[ReadRound]:
        """Everything that this rank was dealt, round by round, by as many threads as the reader allows."""
        placed, read = self._place(reader), partial(self._read, reader)
        if reader.allows_threads:
            rounds = self._crew.in_parallel("reader", placed, read, self._plan.capacity.threads)
        else:
            rounds = self._crew.ahead("reader", map(read, placed), LOOK_AHEAD)
        return self._checked(rounds, reader)

    def _place(self, reader: Reader) -> Iterator[_PlacedRound]:
        """Memory is taken in the order of the rounds, and by one worker, so that it always returns."""
        growing: GrowingShard | None = None
        for each in self._plan.rounds:
            self._crew.check()
            if each.takes is not None and each.takes.bucket.number == each.takes.shard.buckets[0].number:
                growing = self._begin(each.takes.shard)
            places = tuple(self._place_of(given, growing, reader) for given in each.gives)
            yield _PlacedRound(each, growing if each.takes is not None else None, places)

    def _begin(self, shard: ShardPlan) -> GrowingShard:
        image = self._rings.images.take(shard.image_bytes, self._crew.check)
        scratch = self._rings.scratch.take(shard.scratch_bytes, self._crew.check) if shard.encodings else None
        with located(self._rank, operation="read", stage=shard.stage, file=shard.file):
            memory = memoryview(b"") if scratch is None else scratch.view
            assembler = ShardAssembler(shard, image.view[shard.image_begin :], memory)
        return GrowingShard(shard, assembler, image, scratch)

    def _place_of(self, given: Given, growing: GrowingShard | None, reader: Reader) -> _Place:
        part = given.part
        pieces: tuple[list[memoryview] | None, ...] = ()
        if given.shard.leader == self._rank:
            assert growing is not None
            # Memory that a GPU writes to is pinned, and that of images is not.
            straight = not self._is_from_device
            pieces = tuple(growing.assembler.memory_for(s) if straight else None for s in part.slices)
            if None not in pieces:
                return _Place(given, None, pieces)
        elif self._sends_from_device:
            found: list[torch.Tensor] = []
            for slice_ in part.slices:
                with self._reading(given, slice_):
                    values = reader.on_device(slice_)
                if values is None:
                    break
                found.append(values)
            else:
                return _Place(given, on_device=tuple(found))
        return _Place(given, self._rings.ahead.take(part.num_bytes, self._crew.check), pieces)

    def _read(self, reader: Reader, placed: _PlacedRound) -> ReadRound:
        messages: list[Message] = []
        sent_from: list[Region] = []
        for place in placed.places:
            given = place.given
            if place.on_device:
                messages += [Message(given.shard.leader, values) for values in place.on_device]
                self._progress.add("read", given.part.value_bytes)
                continue
            memory = list(_memory(place))
            for slice_, pieces in zip(given.part.slices, memory):
                with self._reading(given, slice_), self._span("reads", num_bytes=slice_.num_bytes):
                    reader.read(slice_, *pieces)
                self._progress.add("read", slice_.num_bytes)
            if given.shard.leader != self._rank:
                messages += [Message(given.shard.leader, pieces[0]) for pieces in memory]
                sent_from += [place.region] if place.region is not None else []
        reader.settle()
        if placed.growing is not None:
            self._take_own(placed.growing, [p for p in placed.places if p.given.shard.leader == self._rank])
        return ReadRound(placed.round, placed.growing, tuple(messages), tuple(sent_from))

    def _take_own(self, growing: GrowingShard, places: Iterable[_Place]) -> None:
        """What this rank has read for its own shard is at its place, or goes there."""
        for place in places:
            with located(self._rank, operation="map", stage=growing.shard.stage, file=growing.shard.file):
                for slice_, straight, pieces in zip(place.given.part.slices, place.pieces, _memory(place)):
                    if straight is not None:
                        growing.assembler.filled(slice_)
                        continue
                    with self._span("pastes", num_bytes=slice_.num_bytes):
                        growing.assembler.paste(slice_, pieces[0])
            if place.region is not None:
                self._rings.ahead.give_back(place.region)

    def _checked(self, read: Iterable[ReadRound], reader: Reader) -> Iterator[ReadRound]:
        yield from read
        self._progress.doing("checking what is left of the source's items")
        with located(self._rank, operation="read"), self._span("reads"):
            reader.finish()

    @contextmanager
    def _reading(self, given: Given, slice_: Slice) -> Iterator[None]:
        """What a reader does for a slice, seen from outside."""
        label = given.shard
        self._progress.doing(f"reading {slice_.name}")
        with located(self._rank, operation="read", stage=label.stage, tensor=slice_.name, unit=label.unit):
            yield


def _memory(place: _Place) -> Iterator[list[memoryview]]:
    """For each slice of a part, the memory that it is read into."""
    part = place.given.part
    for number, (slice_, begin) in enumerate(zip(part.slices, part.offsets)):
        pieces = place.pieces[number] if place.pieces else None
        if pieces is None:
            assert place.region is not None
            pieces = [place.region.view[begin : begin + slice_.num_bytes]]
        yield pieces
