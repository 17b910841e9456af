"""What one rank needs of the plan, and nothing else: rank 0 plans, and every rank gets its own part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from pp_export.architecture.quantization import SCHEMES
from pp_export.planning.capacity import Capacity
from pp_export.planning.rounds import LOOK_AHEAD, Link, Round
from pp_export.planning.shard_plan import Contribution, ShardPlan
from pp_export.process.ring_buffer import pages

BASE_BYTES, TORCH_BYTES = 96 << 20, 204 << 20
"""The interpreter with what every export imports; and torch, for ranks that exchange or encode."""
BOX_BYTES, TENSOR_BYTES = 1200, 700
"""What a rank holds of each box that it reads, and of each tensor that it makes; `python -m bench.scale`
measures it.
"""
QUANTIZING_BYTES = 10 << 20
"""What a thread needs that quantizes, besides the weight and what comes of it."""
DESCRIBED_BOX_BYTES = 2400
"""What rank 0 needs for each stored box of the whole, from the checkpoint's own description to the parts."""


@dataclass(frozen=True)
class FileToVerify:
    """A file that a rank re-reads: its size, and the ranks that write its ranges, in order of these."""

    file: str
    num_bytes: int
    writers: tuple[int, ...]

    @property
    def is_whole(self) -> bool:
        """Whether it is one range, which one leader writes."""
        return len(self.writers) == 1


@dataclass(frozen=True)
class RankPlan:
    """The part of rank `rank` in the plan of `world_size` ranks whose fingerprint is `fingerprint`.

    `rounds` are what it reads, sends, receives and pastes, in order; `led` the shards that it gathers and
    writes, in file order; `group` the ranks that it exchanges with, directly or by others, itself among them;
    `links` the bytes that go from it to others and from others to it; `to_verify` the files that it re-reads,
    never one that it wrote, unless there is no other rank. `num_links` counts those of the whole plan: where
    there are none, no rank sends to another. `described_bytes` is the memory that describing and planning
    the whole takes, on the rank that does; `capacity` is what it may take of its node.

    Slices that it reads name their item by its number in the catalog that goes along; those that others
    read for it name none that it knows.
    """

    rank: int
    world_size: int
    fingerprint: str
    num_links: int
    rounds: tuple[Round, ...]
    led: tuple[ShardPlan, ...]
    group: tuple[int, ...]
    links: Mapping[Link, int]
    to_verify: tuple[FileToVerify, ...]
    described_bytes: int = 0
    capacity: Capacity = Capacity()

    @property
    def senders(self) -> list[int]:
        """The ranks that send to this one."""
        return [sender for sender, receiver in self.links if receiver == self.rank]

    @property
    def receivers(self) -> list[int]:
        """The ranks that it sends to."""
        return [receiver for sender, receiver in self.links if sender == self.rank]

    @property
    def parts(self) -> Iterator[Contribution]:
        """What it reads, in the order in which it does."""
        return (given.part for each in self.rounds for given in each.gives)

    @cached_property
    def items(self) -> tuple[int, ...]:
        """The numbers of the items that it reads, in the order in which it first does."""
        return tuple(dict.fromkeys(slice_.item for part in self.parts for slice_ in part.slices))

    @property
    def is_idle(self) -> bool:
        """Whether it neither reads nor leads; it may still have files `to_verify`."""
        return not (self.led or self.rounds)

    @cached_property
    def read_bytes(self) -> int:
        return sum(part.value_bytes for part in self.parts)

    @property
    def sent_bytes(self) -> int:
        return sum(count for (sender, _), count in self.links.items() if sender == self.rank)

    @property
    def written_bytes(self) -> int:
        return sum(shard.num_bytes for shard in self.led)

    @cached_property
    def peak_bytes(self) -> int:
        """Planned peak of anonymous memory: a constant for the interpreter and libraries, what describes the
        work, the shards in flight, the rounds read ahead, those that are being received, and what is being
        encoded.
        """
        return self._besides_images + self.image_bytes

    @property
    def base_bytes(self) -> int:
        """Memory for the interpreter and libraries."""
        needs_torch = self.world_size > 1 or any(shard.encodings for shard in self.led)
        return BASE_BYTES + (TORCH_BYTES if needs_torch else 0)

    @cached_property
    def metadata_bytes(self) -> int:
        """Memory for what describes the work: the rank's part of the catalog and of the plan, or all of them
        on the rank that plans.
        """
        own = len(self.items) * BOX_BYTES + sum(len(shard.tensors) for shard in self.led) * TENSOR_BYTES
        return max(own, self.described_bytes)

    @cached_property
    def _besides_images(self) -> int:
        quantizes = any(encoding.kind in SCHEMES for shard in self.led for encoding in shard.encodings)
        buffers = self.ahead_bytes + self.incoming_bytes + self.scratch_bytes
        buffers += quantizes * self.capacity.threads * QUANTIZING_BYTES
        return self.base_bytes + self.metadata_bytes + buffers

    @cached_property
    def shards_in_flight(self) -> int:
        """How many shards it has in hand at most: one for each thread to hash and write, and one that is
        being filled; fewer where the memory that it may take asks for it, but one.
        """
        count, memory = min(self.capacity.threads + 1, max(1, len(self.led))), self.capacity.memory_bytes
        while count > 1 and memory is not None and self._besides_images + self._of_images(count) > memory:
            count -= 1
        return count

    @property
    def image_bytes(self) -> int:
        """Memory for the shards in hand: as much as `shards_in_flight` consecutive ones of it need."""
        return self._of_images(self.shards_in_flight)

    def _of_images(self, count: int) -> int:
        led = [pages(shard.image_bytes) for shard in self.led]
        return max((sum(led[i : i + count]) for i in range(len(led))), default=0)

    @property
    def rounds_ahead(self) -> int:
        """How many rounds it has memory for: one that travels or is pasted and one that is read, or where it
        is alone one for each thread that reads, and one more.
        """
        return LOOK_AHEAD if len(self.group) > 1 else max(LOOK_AHEAD, self.capacity.threads + 1)

    @cached_property
    def ahead_bytes(self) -> int:
        """Memory for the parts that it has read and not yet sent or pasted."""
        read = (sum(pages(given.part.num_bytes) for given in each.gives) for each in self.rounds)
        return self.rounds_ahead * max(read, default=0)

    @property
    def incoming_bytes(self) -> int:
        """Memory for the parts that other ranks send to it and that are not yet pasted."""
        return LOOK_AHEAD * pages(arriving) if (arriving := self.arriving_bytes) else 0

    @cached_property
    def arriving_bytes(self) -> int:
        """The most that arrives in one round."""
        return max((each.incoming_bytes for each in self.rounds), default=0)

    @cached_property
    def outgoing_bytes(self) -> int:
        """The most that it sends in one round."""
        return max((each.outgoing_bytes(self.rank) for each in self.rounds), default=0)

    @cached_property
    def scratch_bytes(self) -> int:
        """Memory for the tensors that are still to be encoded, of a shard that is being filled and of the one
        before.
        """
        led = [pages(shard.scratch_bytes) for shard in self.led if shard.scratch_bytes]
        return max((sum(led[i : i + 2]) for i in range(len(led))), default=0)
