"""Makes the plan: cuts units into files, large files into ranges, all into buckets, and deals slices and
shards to ranks.

Files depend on the HF tensors and `max_shard_bytes` only, never on who reads or writes them: the bytes of an
export are the same for every layout of the checkpoint and every grid of the export.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from pp_export.architecture.accounting import Account
from pp_export.architecture.units import Unit
from pp_export.core.file_names import numbered_weights
from pp_export.core.tensors import Shape, Slice, TensorSpec
from pp_export.planning.assignment import Assignment, GridAssignment, HolderAssignment, Slices
from pp_export.planning.export_plan import ExportPlan
from pp_export.planning.file_layout import FileLayout, FileRange, arrange
from pp_export.planning.ranges import cut_ranges
from pp_export.planning.rank_grid import RankGrid
from pp_export.planning.runs import balance
from pp_export.planning.shard_plan import Bucket, Contribution, ShardPlan

BUCKET_BYTES = 8 << 20

_DIGITS = re.compile(r"(\d+)")


def units_of(account: Account) -> list[Unit]:
    """The units in file order, as the table declares them."""
    return sorted(set(account.unit_of.values()))


def make_plan(
    account: Account,
    slices: Slices,
    grid: RankGrid,
    *,
    max_shard_bytes: int,
    leaders_per_stage: int | None,
    holders: Sequence[Sequence[int]] | None = None,
    basis: str = "",
) -> ExportPlan:
    """The plan for exporting `account` from the stored `slices`; `leaders_per_stage` None means every rank
    leads.

    `holders` are the ranks that can read each item; None where every rank can read all, and `grid` decides.
    `basis` is that of `ExportPlan`.
    """
    names_of: defaultdict[Unit, list[str]] = defaultdict(list)
    for name, unit in account.unit_of.items():
        names_of[unit].append(name)
    units = units_of(account)
    files = [
        (unit, tensors) for unit in units for tensors in _split(account, names_of[unit], max_shard_bytes)
    ]
    sources_of = {unit: _sources(account, names) for unit, names in names_of.items()}
    if holders is None:
        unit_bytes = [sum(account.outputs[name].num_bytes for name in names_of[unit]) for unit in units]
        stage_of = dict(zip(units, balance(unit_bytes, grid.pipeline)))
        assignment: Assignment = GridAssignment(grid, account, stage_of, leaders_per_stage)
    else:
        items_of = {
            unit: sorted({slice_.item for source in sources_of[unit] for slice_ in slices[source]})
            for unit in units
        }
        assignment = HolderAssignment(holders, items_of, leaders_per_stage)
    encoding_of = {name: encoding for encoding in account.encodings for name in encoding.outputs}
    # Where the user bounds who leads, ranges would have no leaders of their own.
    num_leaders = grid.world_size if leaders_per_stage is None else 1
    fair_share = -(-sum(spec.num_bytes for spec in account.outputs.values()) // num_leaders)

    def ties_of(name: str) -> list[str]:
        """What must have one leader: a source that several tensors come from, tensors encoded together."""
        return [*account.sources_of[name], *(encoding_of[name].outputs if name in encoding_of else ())]

    parts = [
        (unit, list(tensors) if range_.is_whole else _in_natural_order(range_), range_)
        for position, (unit, tensors) in enumerate(files, start=1)
        for range_ in cut_ranges(
            FileLayout(numbered_weights(position, len(files)), arrange(tensors)), ties_of, fair_share
        )
    ]
    shards: list[ShardPlan] = []
    number = 0
    for unit, names, range_ in parts:
        stage = assignment.stage_of[unit]
        leader = assignment.lead(stage, range_.data_bytes)
        sources = _sources(account, names)
        encodings = tuple({id(e): e for name in names if (e := encoding_of.get(name)) is not None}.values())
        mapped = {name for e in encodings for name in e.inputs}
        mapped |= set(names) - {name for e in encodings for name in e.outputs}
        buckets = [
            Bucket(number + i, parts)
            for i, parts in enumerate(_buckets(assignment, stage, leader, sources, slices))
        ]
        number += len(buckets)
        shards.append(
            ShardPlan(
                range=range_,
                unit=str(unit),
                stage=stage,
                leader=leader,
                encodings=encodings,
                placements={s: tuple(p for p in account.placements[s] if p.name in mapped) for s in sources},
                shapes={s: account.shapes[s] for s in sources},
                buckets=tuple(buckets),
            )
        )
    return ExportPlan(basis, grid.world_size, assignment.stages, tuple(shards))


def _sources(account: Account, names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(source for name in names for source in account.sources_of[name]))


def _buckets(
    assignment: Assignment, stage: int, leader: int, sources: Sequence[str], slices: Slices
) -> list[tuple[Contribution, ...]]:
    """The buckets of the shard of `sources`, filled up to BUCKET_BYTES, with their slices dealt to ranks.

    Slices of one item stay in byte order, so that its CRC can run along.
    """
    filled: list[defaultdict[int, list[Slice]]] = [defaultdict(list)]
    size = 0
    for source in sources:
        shape = _extent(slices[source])
        for slice_ in sorted(slices[source], key=lambda slice_: (slice_.item, slice_.begin)):
            owner = assignment.owner(stage, leader, shape, slice_)
            for row in slice_.rows(BUCKET_BYTES):
                if size and size + row.num_bytes > BUCKET_BYTES:
                    filled.append(defaultdict(list))
                    size = 0
                filled[-1][owner].append(row)
                size += row.num_bytes
    return [
        tuple(Contribution(rank, tuple(held)) for rank, held in sorted(bucket.items())) for bucket in filled
    ]


def _split(account: Account, names: list[str], max_shard_bytes: int) -> list[dict[str, TensorSpec]]:
    """The files of the unit that `names` are. HF tensors with a common source stay together, so that it
    travels to one leader only.
    """
    groups: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in names:
        groups[account.sources_of[name]].append(name)
    ordered = sorted(
        (sorted(group, key=_natural) for group in groups.values()), key=lambda group: _natural(group[0])
    )
    files: list[dict[str, TensorSpec]] = [{}]
    size = 0
    for together in ordered:
        group = {name: account.outputs[name] for name in together}
        group_bytes = sum(spec.num_bytes for spec in group.values())
        if files[-1] and size + group_bytes > max_shard_bytes:
            files.append({})
            size = 0
        files[-1].update(group)
        size += group_bytes
    return files


def _extent(slices: Sequence[Slice]) -> Shape:
    return tuple(
        max(ends) for ends in zip(*[[o + n for o, n in zip(s.box.offset, s.box.shape)] for s in slices])
    )


def _in_natural_order(range_: FileRange) -> list[str]:
    return sorted((place.name for place in range_.tensors), key=_natural)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key in which numbers count as numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in _DIGITS.split(name)]
