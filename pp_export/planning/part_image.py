"""A rank's part of the plan as bytes, and back: JSON, in which names and views are said once.

The bytes are a pure function of the part, the same on every machine: the plan's fingerprint is made of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from pp_export.architecture.accounting import Placement
from pp_export.architecture.encodings import Encoding
from pp_export.core import dtypes
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
        [part.rank, part.world_size, part.num_links, part.num_files_in_ranges],
        _runs(part.group),
        [[*link, count] for link, count in part.links.items()],
        [
            [each.file, each.num_bytes, each.writers, None if each.header is None else _text(each.header)]
            for each in part.to_verify
        ],
        part.items,
        led,
        rounds,
        list(told.sources),
        list(told.names),
        [[view.offset, view.shape, view.strides] for view in told.views],
        [[label.leader, label.file, label.stage, label.unit] for label in told.labels],
    ]
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def from_bytes(image: bytes, fingerprint: str) -> RankPlan:
    """The part that `to_bytes` wrote. The slices that it reads name items by their position in the `items`
    of the original.
    """
    head, group, links, to_verify, _, led_told, rounds_told, *tables = json.loads(image)
    rank, world_size, num_links, num_files_in_ranges = head
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
        num_files_in_ranges=num_files_in_ranges,
        rounds=tuple(rounds),
        led=led,
        group=tuple(member for begin, count in group for member in range(begin, begin + count)),
        links={(sender, receiver): count for sender, receiver, count in links},
        to_verify=tuple(
            FileToVerify(file, size, tuple(writers), None if first is None else first.encode("latin-1"))
            for file, size, writers, first in to_verify
        ),
    )


class _Numbers(dict[Any, int]):
    """Numbers values in the order in which they are first asked for."""

    def __missing__(self, key: Any) -> int:
        return self.setdefault(key, len(self))


class _Telling:
    """What a part is made of, as JSON values; `sources`, `names`, `views` and `labels` fill along."""

    def __init__(self, items: Sequence[int]) -> None:
        self.sources, self.names, self.views, self.labels = (_Numbers() for _ in range(4))
        self._item = {item: number for number, item in enumerate(items)}

    def shard(self, shard: ShardPlan) -> list[Any]:
        range_ = shard.range
        first = None if range_.is_whole else _text(range_.header)
        types = dict(_types_of(shard))
        return [
            [range_.file, range_.file_bytes, range_.header_bytes, first, range_.number, range_.count],
            [self._place(place) for place in range_.tensors],
            [shard.unit, shard.stage],
            [[e.kind, self._specs(e.inputs), self._specs(e.outputs)] for e in shard.encodings],
            [
                [
                    self.sources[source, types[source]],
                    shard.shapes[source],
                    [
                        [self.views[each.view], self.names[each.name], self.views[each.target]]
                        for each in placements
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

    def slices(self, part: Contribution) -> list[list[Any]]:
        item, sources = self._item, self.sources
        return [
            [
                sources[each.name, each.dtype.torch_name],
                item.get(each.item, _OF_ANOTHER_RANK),
                each.begin,
                each.box.offset,
                each.box.shape,
                *(() if each.strides is None else (each.strides,)),
            ]
            for each in part.slices
        ]

    def _place(self, place: TensorPlace) -> list[Any]:
        return [self.names[place.name], place.spec.dtype.torch_name, place.spec.shape, place.begin]

    def _specs(self, specs: Mapping[str, TensorSpec]) -> list[list[Any]]:
        return [[self.names[name], spec.dtype.torch_name, spec.shape] for name, spec in specs.items()]


class _Hearing:
    """The values that `_Telling` told."""

    def __init__(
        self, rank: int, sources: list[Any], names: list[str], views: list[Any], labels: list[Any]
    ) -> None:
        self._rank = rank
        self._sources = [(name, dtypes.from_torch(dtype)) for name, dtype in sources]
        self._names = names
        self._views = [View(offset, tuple(shape), tuple(strides)) for offset, shape, strides in views]
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
                for view, name, target in placed
            )
        return ShardPlan(
            range=FileRange(file, file_bytes, header_bytes, begin, number, count, places),
            unit=where[0],
            stage=where[1],
            leader=self._rank,
            encodings=tuple(Encoding(kind, self._specs(i), self._specs(o)) for kind, i, o in encodings),
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

    def _part(self, rank: int, slices: list[Any]) -> Contribution:
        return Contribution(rank, tuple(self._slice(*each) for each in slices))

    def _slice(
        self,
        source: int,
        item: int,
        begin: int,
        offset: list[int],
        shape: list[int],
        strides: list[int] | None = None,
    ) -> Slice:
        name, dtype = self._sources[source]
        box = Box(tuple(offset), tuple(shape))
        return Slice(name, box, dtype, item, begin, None if strides is None else tuple(strides))

    def _specs(self, specs: list[Any]) -> dict[str, TensorSpec]:
        return {
            self._names[name]: TensorSpec(tuple(shape), dtypes.from_torch(dtype))
            for name, dtype, shape in specs
        }


def _types_of(shard: ShardPlan) -> Iterable[tuple[str, str]]:
    """The element type of each source of a shard, by the slices of it."""
    return (
        (slice_.name, slice_.dtype.torch_name)
        for bucket in shard.buckets
        for part in bucket.parts
        for slice_ in part.slices
    )


def _runs(ranks: Sequence[int]) -> list[list[int]]:
    """Sorted ranks as runs of consecutive ones: first and count."""
    runs = [list(run) for _, run in groupby(enumerate(ranks), key=lambda pair: pair[1] - pair[0])]
    return [[run[0][1], len(run)] for run in runs]


def _text(data: bytes) -> str:
    """Bytes as a text that JSON takes, one character each."""
    return data.decode("latin-1")
