"""A rank's part of the plan as bytes, and back: JSON, in which names and views are said once.

The bytes are a pure function of the part, the same on every machine: the plan's fingerprint is made of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from pp_export.architecture.encodings import Encoding
from pp_export.architecture.made import Placement
from pp_export.core import dtypes
from pp_export.core.dtypes import DType
from pp_export.core.numbering import Numbering, heard_rows, told_rows
from pp_export.core.tensors import Box, Slice, TensorSpec
from pp_export.core.views import View
from pp_export.planning.file_layout import FileRange, TensorPlace, header
from pp_export.planning.rank_plan import FileToVerify, RankPlan
from pp_export.planning.rounds import Given, LedBucket, Round
from pp_export.planning.shard_plan import Bucket, Contribution, ShardLabel, ShardPlan

_OF_ANOTHER_RANK = -1
"""The item of a slice that this rank does not read."""


def to_bytes(part: RankPlan) -> bytes:
    """All of a part but the fingerprint, which is made of all parts, and the capacity of its rank. Items are
    numbered as `part.items` are in order.
    """
    told = _Telling(part.items)
    led = [told.shard(shard) for shard in part.led]
    rounds = [
        [each.number, each.takes is not None, [told.given(given, part.rank) for given in each.gives]]
        for each in part.rounds
    ]
    value = [
        [part.rank, part.world_size, part.num_links, part.described_bytes],
        _runs(part.group),
        [[*link, count] for link, count in part.links.items()],
        [[each.file, each.num_bytes, each.writers] for each in part.to_verify],
        part.items,
        led,
        rounds,
        [list(told.sources), [told.types[source].torch_name for source in told.sources]],
        list(told.names),
        list(told.views),
        list(told.boxes),
        list(told.labels),
    ]
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def from_bytes(image: bytes, fingerprint: str) -> RankPlan:
    """The part that `to_bytes` wrote. The slices that it reads name items by their position in the `items`
    of the original.
    """
    head, group, links, to_verify, _, led_told, rounds_told, *tables = json.loads(image)
    rank, world_size, num_links, described_bytes = head
    heard = _Hearing(rank, *tables)
    led = tuple(map(heard.shard, led_told))
    taken = iter([LedBucket(shard, bucket) for shard in led for bucket in shard.buckets])
    rounds = []
    for number, takes, gives in rounds_told:
        bucket = next(taken) if takes else None
        rounds.append(Round(number, tuple(heard.given(given, bucket) for given in gives), bucket))
    return RankPlan(
        rank=rank,
        world_size=world_size,
        fingerprint=fingerprint,
        num_links=num_links,
        rounds=tuple(rounds),
        led=led,
        group=tuple(member for begin, count in group for member in range(begin, begin + count)),
        links={(sender, receiver): count for sender, receiver, count in links},
        to_verify=tuple(
            FileToVerify(file, num_bytes, tuple(writers)) for file, num_bytes, writers in to_verify
        ),
        described_bytes=described_bytes,
    )


class _Telling:
    """What a part is made of, as JSON values; the tables of what comes often, and the element `types` of the
    sources, fill along.
    """

    def __init__(self, items: Sequence[int]) -> None:
        self.sources: Numbering[str] = Numbering()
        self.names: Numbering[str] = Numbering()
        self.views: Numbering[View] = Numbering()
        self.boxes: Numbering[Box] = Numbering()
        self.labels: Numbering[ShardLabel] = Numbering()
        self.types: dict[str, DType] = {}
        self._item = {item: number for number, item in enumerate(items)}

    def shard(self, shard: ShardPlan) -> list[Any]:
        range_ = shard.range
        first = None if range_.is_whole else _text(range_.header)
        return [
            [range_.file, range_.file_bytes, range_.header_bytes, first, range_.number, range_.count],
            [self._place(place) for place in range_.tensors],
            [shard.unit, shard.stage],
            [[e.kind, self._specs(e.inputs), self._specs(e.outputs), e.scale] for e in shard.encodings],
            [
                [
                    self.sources[source],
                    shard.shapes[source],
                    [
                        number
                        for _, view, name, target in placements
                        for number in (self.views[view], self.names[name], self.views[target])
                    ],
                ]
                for source, placements in shard.placements.items()
            ],
            [
                [bucket.number, [[part.rank, self.slices(part)] for part in bucket.parts]]
                for bucket in shard.buckets
            ],
        ]

    def given(self, given: Given, rank: int) -> list[Any] | None:
        """What `rank` gives; None where it is its own part of the bucket that it takes."""
        if given.shard.leader == rank:
            return None
        return [self.labels[given.shard], self.slices(given.part)]

    def slices(self, part: Contribution) -> list[Any]:
        sources, types, boxes, item_of = self.sources, self.types, self.boxes, self._item
        rows = []
        for name, box, dtype, item, begin, strides in part.slices:
            types[name] = dtype
            rows.append((sources[name], boxes[box], item_of.get(item, _OF_ANOTHER_RANK), begin, strides))
        return told_rows(rows)

    def _place(self, place: TensorPlace) -> list[Any]:
        return [self.names[place.name], place.spec.dtype.torch_name, place.spec.shape, place.begin]

    def _specs(self, specs: Mapping[str, TensorSpec]) -> list[list[Any]]:
        return [[self.names[name], spec.dtype.torch_name, spec.shape] for name, spec in specs.items()]


class _Hearing:
    """The values that `_Telling` told."""

    def __init__(
        self,
        rank: int,
        sources: list[list[str]],
        names: list[str],
        views: list[Any],
        boxes: list[Any],
        labels: list[Any],
    ) -> None:
        self._rank = rank
        self._sources = list(zip(sources[0], map(dtypes.from_torch, sources[1])))
        self._names = names
        self._views = [View(offset, tuple(shape), tuple(strides)) for offset, shape, strides in views]
        self._boxes = [Box(tuple(offset), tuple(shape)) for offset, shape in boxes]
        self._labels = [ShardLabel(*label) for label in labels]

    def shard(self, told: list[Any]) -> ShardPlan:
        of_file, tensors, where, encodings, sources, buckets = told
        file, file_bytes, header_bytes, first, number, count = of_file
        places = tuple(
            TensorPlace(self._names[name], TensorSpec(tuple(shape), dtypes.from_torch(dtype)), begin)
            for name, dtype, shape, begin in tensors
        )
        begin = header(places) if first is None else first.encode("latin-1")
        placements: dict[str, tuple[Placement, ...]] = {}
        shapes = {}
        for at, shape, placed in sources:
            source = self._sources[at][0]
            shapes[source] = tuple(shape)
            placements[source] = tuple(
                Placement(source, self._views[view], self._names[name], self._views[target])
                for view, name, target in _by(3, placed)
            )
        return ShardPlan(
            range=FileRange(file, file_bytes, header_bytes, begin, number, count, places),
            unit=where[0],
            stage=where[1],
            leader=self._rank,
            encodings=tuple(
                Encoding(kind, self._specs(inputs), self._specs(outputs), scale)
                for kind, inputs, outputs, scale in encodings
            ),
            placements=placements,
            shapes=shapes,
            buckets=tuple(
                Bucket(number, tuple(self._part(rank, slices) for rank, slices in parts))
                for number, parts in buckets
            ),
        )

    def given(self, told: list[Any] | None, taken: LedBucket | None) -> Given:
        """What the rank gives to another leader, or (None) to the bucket that it takes itself."""
        if told is not None:
            return Given(self._labels[told[0]], self._part(self._rank, told[1]))
        assert taken is not None
        own = next(part for part in taken.bucket.parts if part.rank == self._rank)
        return Given(taken.shard.label, own)

    def _part(self, rank: int, told: list[Any]) -> Contribution:
        slices = []
        for source, box, item, begin, strides in heard_rows(told):
            name, dtype = self._sources[source]
            slices.append(
                Slice(name, self._boxes[box], dtype, item, begin, None if strides is None else tuple(strides))
            )
        return Contribution(rank, tuple(slices))

    def _specs(self, specs: list[Any]) -> dict[str, TensorSpec]:
        return {
            self._names[name]: TensorSpec(tuple(shape), dtypes.from_torch(dtype))
            for name, dtype, shape in specs
        }


def _by(count: int, values: list[Any]) -> Iterator[tuple[Any, ...]]:
    """Values that were told one after another, so many at a time."""
    return zip(*[iter(values)] * count)


def _runs(ranks: Sequence[int]) -> list[list[int]]:
    """Sorted ranks as runs of consecutive ones: first and count."""
    runs = [list(run) for _, run in groupby(enumerate(ranks), key=lambda pair: pair[1] - pair[0])]
    return [[run[0][1], len(run)] for run in runs]


def _text(data: bytes) -> str:
    """Bytes as a text that JSON takes, one character each."""
    return data.decode("latin-1")
