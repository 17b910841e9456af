"""Step 4 on one rank: the rounds in which values travel, walked by the one thread that talks to the wire."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pp_export.distributed.backends import Backend
from pp_export.distributed.wire import Group, Message, Place, Wire
from pp_export.distributed.world import World
from pp_export.planning.rank_plan import RankPlan
from pp_export.planning.rounds import LOOK_AHEAD, Arrival, Round
from pp_export.planning.shard_plan import ALIGNMENT, Bucket, Contribution, ShardPlan
from pp_export.process.ring_buffer import Region, RingBuffer
from pp_export.shards.assemble import ShardAssembler
from pp_export.steps.workers import Crew, Progress

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class GrowingShard:
    """A shard whose elements are arriving, and the memory that it grows in; in `scratch` what is to be
    encoded.
    """

    shard: ShardPlan
    assembler: ShardAssembler
    image: Region
    scratch: Region | None


@dataclass(frozen=True)
class ReadRound:
    """What this rank gives to others in a round, read: the messages, and the memory that these lie in, unless
    they are sent from where the parameters are. What it gives to itself is at its place already in the shard
    that grows by this round, if it leads one.
    """

    round: Round
    growing: GrowingShard | None
    messages: tuple[Message, ...]
    sent_from: tuple[Region, ...]


@dataclass(frozen=True)
class GatheredRound:
    """A bucket of a shard that this rank leads, with the contributions of others: they are there when
    `arrived` has returned. `done` gives their memory back.
    """

    growing: GrowingShard
    bucket: Bucket
    parts: tuple[tuple[Contribution, memoryview], ...]
    arrived: Callable[[], None]
    done: Callable[[], None]


class Exchange:
    """The rounds of this rank in a transfer; `sent` counts the bytes that went to each other rank."""

    def __init__(
        self,
        plan: RankPlan,
        world: World,
        name: str,
        backend: Backend,
        device: torch.device | None,
        crew: Crew,
        progress: Progress,
    ) -> None:
        self._plan, self._world, self._rank = plan, world, world.rank
        self._backend, self._device = backend, device
        self._crew, self._progress = crew, progress
        self._name = name
        self.incoming = RingBuffer(plan.incoming_bytes)
        self.sent: Counter[int] = Counter()
        self.has_peers = len(plan.group) > 1

    def walk(self, read: Iterable[ReadRound], read_memory: RingBuffer) -> Iterator[GatheredRound]:
        """Every round in which this rank leads, as soon as it is over. `read` are all rounds of this rank in
        order; what they were read into is given back to `read_memory`.
        """
        wire = self._connect() if self.has_peers else None
        for each in read:
            yield from self._round(each, wire, read_memory)
        if wire is not None:
            self._end(wire)

    def _end(self, wire: Wire) -> None:
        self._progress.doing("waiting for what it has sent")
        wire.finish()

    def _connect(self) -> Wire:
        """The wire of this rank's group, warmed up: a byte has gone over every link before values do."""
        group, senders, receivers = self._plan.group, self._plan.senders, self._plan.receivers
        peers = sorted({*senders, *receivers})
        told = ", ".join(map(str, peers))
        self._progress.doing(f"connecting with {told} over {self._backend.name}")
        assert self._backend.name is not None
        bounds = Group(
            group,
            f"{self._name}/{group[0]}",
            incoming_bytes=max(self._plan.arriving_bytes, len(senders)),
            packed_bytes=max(self._plan.outgoing_bytes, len(receivers) * ALIGNMENT),
            alignment=ALIGNMENT,
            look_ahead=LOOK_AHEAD,
            device=self._device,
            peers=tuple(peers),
        )
        wire = self._world.data.connect(bounds, self._backend.name, self._crew.check)
        byte = memoryview(bytearray(1))
        arrived = wire.exchange(
            [Message(receiver, byte) for receiver in receivers],
            [Place(sender, at, at + 1) for at, sender in enumerate(senders)],
            memoryview(bytearray(len(senders))),
        )
        arrived()
        return wire

    def _round(self, each: ReadRound, wire: Wire | None, read_memory: RingBuffer) -> Iterator[GatheredRound]:
        self._crew.check()
        arrivals = each.round.arrivals
        region = self.incoming.take(each.round.incoming_bytes, self._crew.check) if arrivals else None
        into = region.view if region else memoryview(b"")
        arrived: Callable[[], None] = _nothing
        if each.messages or arrivals:
            assert wire is not None
            self._progress.doing(self._told(each))
            with self._progress.recorder.span("sends", num_bytes=sum(m.values.nbytes for m in each.messages)):
                arrived = wire.exchange(each.messages, list(_places(arrivals)), into)
        for peer, values in each.messages:
            self.sent[peer] += values.nbytes
        for sent_from in each.sent_from:
            read_memory.give_back(sent_from)
        parts = tuple((arrival.part, into[arrival.begin :]) for arrival in arrivals)

        def done() -> None:
            if region is not None:
                self.incoming.give_back(region)

        if each.growing is not None:
            assert each.round.takes is not None
            yield GatheredRound(each.growing, each.round.takes.bucket, parts, arrived, done)

    def _told(self, each: ReadRound) -> str:
        to = sorted({message.peer for message in each.messages})
        senders = [arrival.part.rank for arrival in each.round.arrivals]
        return f"in round {each.round.number}, sending to {to or 'none'}, receiving from {senders or 'none'}"


def _places(arrivals: Iterable[Arrival]) -> Iterator[Place]:
    """One for each slice, as they are sent."""
    for part, begin in arrivals:
        for slice_, offset in zip(part.slices, part.offsets):
            yield Place(part.rank, begin + offset, begin + offset + slice_.num_bytes)


def _nothing() -> None:
    """There is nothing to wait for."""
