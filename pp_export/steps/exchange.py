"""Step 4 on one rank: the rounds in which values travel, walked by the one thread that talks to the wire."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch

from pp_export.distributed.backends import Backend
from pp_export.distributed.wire import Group, Message, Place, Wire
from pp_export.distributed.world import World
from pp_export.planning.export_plan import ExportPlan
from pp_export.planning.rounds import LOOK_AHEAD, Arrival, LedBucket, Round
from pp_export.planning.shard_plan import ALIGNMENT, Contribution
from pp_export.process.ring_buffer import Region, RingBuffer
from pp_export.steps.workers import Crew, Progress


@dataclass(frozen=True)
class ReadRound:
    """What this rank gives in a round, read: its part of its own bucket, the messages to other leaders, and
    the memory that these lie in, unless they are sent from where the parameters are.
    """

    round: Round
    own: tuple[Contribution, Region] | None
    messages: tuple[Message, ...]
    sent_from: tuple[Region, ...]


@dataclass(frozen=True)
class GatheredBucket:
    """A bucket of a shard that this rank leads, with all contributions: they are there when `arrived` has
    returned. `done` gives their memory back.
    """

    led: LedBucket
    parts: tuple[tuple[Contribution, torch.Tensor], ...]
    arrived: Callable[[], None]
    done: Callable[[], None]


class Exchange:
    """The rounds of this rank; `sent` counts the bytes that went to each other rank."""

    def __init__(
        self,
        plan: ExportPlan,
        world: World,
        backend: Backend,
        device: torch.device | None,
        crew: Crew,
        progress: Progress,
    ) -> None:
        self._plan, self._world, self._rank = plan, world, world.rank
        self._backend, self._device = backend, device
        self._crew, self._progress = crew, progress
        self._name = world.data.begin()
        self.incoming = RingBuffer(plan.incoming_bytes(self._rank))
        self.sent: Counter[int] = Counter()
        self.has_peers = len(plan.group_of(self._rank)) > 1

    def walk(self, read: Iterable[ReadRound], read_memory: RingBuffer) -> Iterator[GatheredBucket]:
        """Every bucket that this rank leads, as soon as its round is over. `read` are the rounds of this rank
        in order; what they were read into is given back to `read_memory`.
        """
        wire = self._connect() if self.has_peers else None
        for each in read:
            yield from self._round(each, wire, read_memory)
        if wire is not None:
            self._end(wire)

    def _end(self, wire: Wire) -> None:
        self._progress.doing("exchanger", "waiting for what it has sent")
        wire.finish()

    def _connect(self) -> Wire:
        """The wire of this rank's group, warmed up: a byte has gone over every link before values do."""
        group, rank, links = self._plan.group_of(self._rank), self._rank, self._plan.links
        assert self._backend.name is not None
        senders = [sender for sender, receiver in links if receiver == rank]
        receivers = [receiver for sender, receiver in links if sender == rank]
        peers = sorted({*senders, *receivers})
        told = ", ".join(map(str, peers))
        self._progress.doing("exchanger", f"connecting with {told} over {self._backend.name}")
        bounds = Group(
            group,
            f"{self._name}/{group[0]}",
            incoming_bytes=max(self._plan.arriving_bytes(rank), len(senders)),
            packed_bytes=max(self._plan.outgoing_bytes(rank), len(receivers) * ALIGNMENT),
            alignment=ALIGNMENT,
            look_ahead=LOOK_AHEAD,
            device=self._device,
            peers=tuple(peers),
        )
        wire = self._world.data.connect(bounds, self._backend.name, self._crew.check)
        byte = torch.zeros(1, dtype=torch.uint8)
        arrived = wire.exchange(
            [Message(receiver, byte) for receiver in receivers],
            [Place(sender, at, at + 1) for at, sender in enumerate(senders)],
            torch.empty(len(senders), dtype=torch.uint8),
        )
        arrived()
        return wire

    def _round(self, each: ReadRound, wire: Wire | None, read_memory: RingBuffer) -> Iterator[GatheredBucket]:
        self._crew.check()
        arrivals = each.round.arrivals
        region = self.incoming.take(each.round.incoming_bytes, self._crew.check) if arrivals else None
        into = as_tensor(region) if region else torch.empty(0, dtype=torch.uint8)
        arrived: Callable[[], None] = _nothing
        if each.messages or arrivals:
            assert wire is not None
            self._progress.doing("exchanger", self._told(each))
            arrived = wire.exchange(each.messages, list(_places(arrivals)), into)
        for peer, values in each.messages:
            self.sent[peer] += values.nbytes
        for sent_from in each.sent_from:
            read_memory.give_back(sent_from)
        if each.round.takes is None:
            return
        parts = [(arrival.part, into[arrival.begin :]) for arrival in arrivals]
        if each.own is not None:
            part, own = each.own
            parts.append((part, as_tensor(own)))

        def done() -> None:
            if region is not None:
                self.incoming.give_back(region)
            if each.own is not None:
                read_memory.give_back(each.own[1])

        yield GatheredBucket(each.round.takes, tuple(parts), arrived, done)

    def _told(self, each: ReadRound) -> str:
        to = sorted({message.peer for message in each.messages})
        senders = [arrival.part.rank for arrival in each.round.arrivals]
        return f"in round {each.round.number}, sending to {to or 'none'}, receiving from {senders or 'none'}"


def _places(arrivals: Iterable[Arrival]) -> Iterator[Place]:
    """One for each slice, as they are sent."""
    for part, begin in arrivals:
        for slice_, offset in zip(part.slices, part.offsets):
            yield Place(part.rank, begin + offset, begin + offset + slice_.num_bytes)


def as_tensor(region: Region) -> torch.Tensor:
    """The region's bytes as a tensor."""
    return torch.frombuffer(region.view, dtype=torch.uint8)


def _nothing() -> None:
    """There is nothing to wait for."""
