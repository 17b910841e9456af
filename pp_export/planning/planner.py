"""Makes the plan: cuts units into files, large files into ranges, all into buckets, and deals slices and
shards to ranks.

Files depend on the HF tensors and the `layout` that is asked for only (`output_files`), never on who reads or
writes them: the bytes of an export are the same for every layout of the checkpoint and every grid of the
export.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from operator import attrgetter

from pp_export.architecture.accounting import Account
from pp_export.architecture.units import Unit
from pp_export.core.tensors import Slice, TensorSpec
from pp_export.planning.assign_grid import assign_grid
from pp_export.planning.assign_holders import Holders, assign_holders
from pp_export.planning.assign_shared import assign_shared
from pp_export.planning.assignment import FileContent
from pp_export.planning.capacity import ONE_THREAD, Capacity
from pp_export.planning.export_plan import ExportPlan
from pp_export.planning.file_layout import FileLayout, FileRange, arrange
from pp_export.planning.output_files import Layout, output_files
from pp_export.planning.ranges import cut_ranges
from pp_export.planning.rank_grid import RankGrid
from pp_export.planning.shard_plan import Bucket, Contribution, ShardPlan

BUCKET_BYTES = 8 << 20
_TURNS = 1 << 20
_BY_LAYER = Layout()

Slices = Mapping[str, tuple[Slice, ...]]

_ITEM_AND_BEGIN = attrgetter("item", "begin")


def unit_bytes(account: Account) -> dict[Unit, int]:
    """The bytes of each unit's tensors, in file order, as the table declares it."""
    found = dict.fromkeys(sorted(set(account.unit_of.values())), 0)
    for name, unit in account.unit_of.items():
        found[unit] += account.outputs[name].num_bytes
    return found


def make_plan(
    account: Account,
    slices: Slices,
    world_size: int,
    *,
    max_shard_bytes: int,
    layout: Layout = _BY_LAYER,
    grid: RankGrid | None = None,
    holders: Holders | None = None,
    leaders_per_stage: int | None = None,
    basis: str = "",
    capacity: Capacity = ONE_THREAD,
) -> ExportPlan:
    """The plan for exporting `account` from the stored `slices` by `world_size` ranks.

    `holders` are the ranks that hold each item, where not all ranks can read all; `grid` is that of
    `world_size` ranks which the user asked for. With neither, each rank reads what it writes.
    `leaders_per_stage` bounds who leads with a grid or holders; None means all. `basis` and
    `capacity` are those of `ExportPlan`.
    """
    files = output_files(account, max_shard_bytes, layout)
    encoding_of = {name: encoding for encoding in account.encodings for name in encoding.outputs}

    def ties_of(name: str) -> Collection[str]:
        """What must have one leader: a source that several tensors come from, tensors encoded together."""
        sources = account.sources_of[name]
        return (*sources, *encoding_of[name].outputs) if name in encoding_of else sources

    # Where the user bounds who leads, ranges would have no leaders of their own.
    is_bounded = leaders_per_stage is not None and (grid, holders) != (None, None)
    num_leaders = 1 if is_bounded else world_size
    fair_share = -(-sum(spec.num_bytes for spec in account.outputs.values()) // num_leaders)
    parts = [
        (file, names, range_)
        for file in files
        for range_, names in _in_order_of(
            file.tensors,
            cut_ranges(FileLayout(file.name, arrange(file.tensors)), ties_of, fair_share),
        )
    ]
    # A tensor without elements is stored nowhere.
    sources_of = [[s for s in _sources(account, names) if slices[s]] for _, names, _ in parts]
    contents = [
        FileContent(file.unit, range_.data_bytes, _ordered(sources, slices))
        for (file, _, range_), sources in zip(parts, sources_of)
    ]
    if holders is not None:
        assignment = assign_holders(contents, holders, leaders_per_stage)
    elif grid is not None:
        assignment = assign_grid(contents, grid, account, leaders_per_stage)
    else:
        assignment = assign_shared(contents, world_size)
    shards: list[ShardPlan] = []
    number = 0
    for position, (file, names, range_) in enumerate(parts):
        leader, sources = assignment.leaders[position], sources_of[position]
        encodings = tuple({id(e): e for name in names if (e := encoding_of.get(name)) is not None}.values())
        mapped = {name for e in encodings for name in e.inputs}
        mapped |= set(names) - {name for e in encodings for name in e.outputs}
        buckets = [
            Bucket(number + i, bucket)
            for i, bucket in enumerate(_buckets(contents[position], assignment.reader_of, leader))
        ]
        number += len(buckets)
        shards.append(
            ShardPlan(
                range=range_,
                unit=file.label,
                stage=assignment.stage_of[leader],
                leader=leader,
                encodings=encodings,
                placements={s: tuple(p for p in account.placements[s] if p.name in mapped) for s in sources},
                shapes={s: account.shapes[s] for s in sources},
                buckets=tuple(buckets),
            )
        )
    return ExportPlan(basis, world_size, assignment.stages, tuple(shards), capacity)


def _sources(account: Account, names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(source for name in names for source in account.sources_of[name]))


def _ordered(sources: Iterable[str], slices: Slices) -> tuple[Slice, ...]:
    """The slices of a file in the order in which they are read. Those of one item stay in byte order, so that
    its CRC can run along.
    """
    return tuple(slice_ for source in sources for slice_ in sorted(slices[source], key=_ITEM_AND_BEGIN))


def _buckets(
    content: FileContent, reader_of: Mapping[int, int], leader: int
) -> list[tuple[Contribution, ...]]:
    """The buckets of a shard, filled up to BUCKET_BYTES."""
    filled: list[defaultdict[int, list[Slice]]] = [defaultdict(list)]
    size = 0
    for row, reader, num_bytes in _in_turns(content, reader_of, leader):
        if size and size + num_bytes > BUCKET_BYTES:
            filled.append(defaultdict(list))
            size = 0
        filled[-1][reader].append(row)
        size += num_bytes
    return [
        tuple(Contribution(rank, tuple(held)) for rank, held in sorted(bucket.items())) for bucket in filled
    ]


def _in_turns(
    content: FileContent, reader_of: Mapping[int, int], leader: int
) -> list[tuple[Slice, int, int]]:
    """The rows of all slices, who reads each, and its bytes. Readers take turns as their shares demand, each
    with its own rows in their order.

    Every leader begins at another reader. Otherwise all leaders of a group would ask the same rank in the
    same round (for expert 0, then 1, ...), and the others would wait.
    """
    rows: list[tuple[Slice, int, int]] = []
    to_read: defaultdict[int, int] = defaultdict(int)
    for slice_, num_bytes in zip(content.slices, content.slice_bytes):
        reader = reader_of[slice_.item]
        to_read[reader] += num_bytes
        if num_bytes <= BUCKET_BYTES:
            rows.append((slice_, reader, num_bytes))
        else:
            rows += [(row, reader, row.num_bytes) for row in slice_.rows(BUCKET_BYTES)]
    if len(to_read) < 2:
        return rows
    readers = sorted(to_read)
    first = bisect_left(readers, leader)
    turn = {reader: (number - first) % len(readers) for number, reader in enumerate(readers)}
    done = dict.fromkeys(readers, 0)
    keys: list[tuple[int, int]] = []
    for _, reader, num_bytes in rows:
        keys.append((done[reader] * _TURNS // to_read[reader], turn[reader]))
        done[reader] += num_bytes
    return [rows[at] for at in sorted(range(len(rows)), key=keys.__getitem__)]


def _in_order_of(
    tensors: Mapping[str, TensorSpec], ranges: Iterable[FileRange]
) -> Iterator[tuple[FileRange, list[str]]]:
    """The ranges of a file, and the names in each in the order of the file's `tensors`."""
    position = {name: number for number, name in enumerate(tensors)}
    for range_ in ranges:
        yield range_, sorted((place.name for place in range_.tensors), key=position.__getitem__)
