"""Claims of `pp_export.planning.ranges`: large files are cut where there are more ranks than files, into
parts of about a fair share, never through what one leader must have; and the files stay the same.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pp_export.architecture.accounting import Account
from pp_export.architecture.encodings import Encoding
from pp_export.core.dtypes import from_torch
from pp_export.core.tensors import TensorSpec
from pp_export.planning import ranges
from pp_export.planning.export_plan import ExportPlan
from pp_export.planning.file_layout import FileLayout, FileRange, arrange
from pp_export.planning.planner import make_plan
from pp_export.planning.ranges import MIN_RANGE_BYTES, cut_ranges
from pp_export.planning.rank_grid import RankGrid
from tests.cpu.planning.test_planner import DENSE, LARGE, MOE, files_of, settle
from tests.fixtures.catalogs import ToyDecoder

BYTE = from_torch("uint8")
Ties = dict[str, list[str]]


def layout_of(sizes: list[int]) -> FileLayout:
    """A file of byte tensors t000, t001, ... with these sizes."""
    return FileLayout("f", arrange({f"t{at:03}": TensorSpec((size,), BYTE) for at, size in enumerate(sizes)}))


def plan_of(
    toy: ToyDecoder,
    world_size: int,
    *,
    account: Account | None = None,
    max_shard_bytes: int = LARGE,
    grid: RankGrid | None = None,
    leaders: int | None = None,
) -> ExportPlan:
    return make_plan(
        account or settle(toy),
        toy.slices(2),
        world_size,
        max_shard_bytes=max_shard_bytes,
        grid=grid,
        leaders_per_stage=leaders,
    )


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges may be as small as a fair share."""
    monkeypatch.setattr(ranges, "MIN_RANGE_BYTES", 1)


@st.composite
def files(draw: st.DrawFn) -> tuple[FileLayout, Ties, int]:
    """A file, ties among its tensors, and a fair share, all in units of MIN_RANGE_BYTES / 4."""
    sizes = draw(st.lists(st.integers(0, 20), min_size=1, max_size=12))
    layout = layout_of([size * MIN_RANGE_BYTES // 4 for size in sizes])
    ties = {place.name: [f"s{draw(st.integers(0, 2 * len(sizes)))}"] for place in layout.tensors}
    return layout, ties, draw(st.integers(0, 40)) * MIN_RANGE_BYTES // 4


@given(files())
def test_ranges_are_a_file_in_runs_that_no_tie_leads_out_of(file: tuple[FileLayout, Ties, int]) -> None:
    """The ranges of a file are its bytes in order without gap, each with tensors and bytes; two tensors with
    a tie in common are in one range.
    """
    layout, ties, fair_share = file
    found = cut_ranges(layout, ties.__getitem__, fair_share)
    assert [(each.number, each.count) for each in found] == [(at, len(found)) for at in range(len(found))]
    assert tuple(place for each in found for place in each.tensors) == layout.tensors
    assert [each.begin for each in found] == [0, *(each.end for each in found[:-1])]
    assert found[-1].end == layout.num_bytes == sum(each.num_bytes for each in found)
    assert b"".join(each.header for each in found) == layout.header == found[0].header
    range_of: dict[str, int] = {}
    for each in found:
        assert each.data_bytes > 0 or len(found) == 1
        assert [place.begin for place in each.own_places] == [
            place.begin - each.tensors[0].begin for place in each.tensors
        ]
        for place in each.tensors:
            for tie in ties[place.name]:
                assert range_of.setdefault(tie, each.number) == each.number


@given(files())
def test_ranges_are_as_light_as_they_can_be_and_few(file: tuple[FileLayout, Ties, int]) -> None:
    """There are at most as many as the file has times a fair share, rounded, or times the least that is worth
    it; the heaviest is as light as that number allows, and no smaller number would do.
    """
    layout, ties, fair_share = file
    found = cut_ranges(layout, ties.__getitem__, fair_share)
    num_bytes = layout.tensors[-1].end
    shares = math.floor(Fraction(num_bytes, max(1, fair_share)) + Fraction(1, 2))
    most = min(shares, num_bytes // MIN_RANGE_BYTES)
    assert len(found) <= max(1, most)
    groups = [group[-1].end - group[0].begin for group in ranges._groups(layout.tensors, ties.__getitem__)]

    def heaviest(count: int) -> int:
        cuts = itertools.combinations(range(1, len(groups)), count - 1)
        return min(
            max(sum(groups[a:b]) for a, b in itertools.pairwise((0, *cut, len(groups)))) for cut in cuts
        )

    got = max(each.data_bytes for each in found)
    assert got == heaviest(max(1, min(most, len(groups))))
    assert len(found) == 1 or heaviest(len(found) - 1) > got


def test_tensors_between_tied_ones_stay_with_them() -> None:
    """Megatron's fused QKV becomes tensors that others lie between: all of them are one range."""
    size = MIN_RANGE_BYTES
    layout = layout_of([size, size, size, size])
    ties = {"t000": ["qkv"], "t001": ["proj"], "t002": ["qkv"], "t003": ["other"]}
    found = cut_ranges(layout, ties.__getitem__, 1)
    assert [[place.name for place in each.tensors] for each in found] == [["t000", "t001", "t002"], ["t003"]]


@pytest.mark.parametrize("toy", [DENSE, MOE], ids=["dense", "moe"])
def test_no_source_and_no_encoding_has_two_leaders(tiny: None, toy: ToyDecoder) -> None:
    """With 64 ranks every Megatron tensor goes to one leader, as do the tensors that are encoded together."""
    settled = settle(toy)
    pairs = [
        [f"model.layers.{layer}.self_attn.{one}_proj.weight" for one in ("k", "o")]
        for layer in range(toy.num_layers)
    ]
    encodings = []
    for pair in pairs:
        specs = {name: settled.outputs[name] for name in pair}
        encodings.append(Encoding("test", specs, specs))
    for account in (settled, replace(settled, encodings=tuple(encodings))):
        plan = plan_of(toy, 64, account=account)
        assert len(plan.shards) > len(plan.files)
        of_source: dict[str, int] = {}
        of_encoding: dict[str, int] = {}
        for number, shard in enumerate(plan.shards):
            for source in shard.placements:
                assert of_source.setdefault(source, number) == number
            for encoding in shard.encodings:
                assert of_encoding.setdefault(str(sorted(encoding.inputs)), number) == number
            mapped = {p.name for placements in shard.placements.values() for p in placements}
            assert mapped == {place.name for place in shard.tensors}
        assert len(of_encoding) == len(account.encodings)


@pytest.mark.parametrize("toy", [DENSE, MOE], ids=["dense", "moe"])
@pytest.mark.parametrize("max_shard_bytes", [1500, LARGE])
def test_files_are_the_same_for_every_number_of_ranks(
    tiny: None, toy: ToyDecoder, max_shard_bytes: int
) -> None:
    """Names, headers and places don't depend on ranges; nor does what is verified, by a rank that wrote none
    of it where there is one. More ranks lead more, and never more than need to.
    """
    first = files_of(plan_of(toy, 1, max_shard_bytes=max_shard_bytes))
    total = sum(spec.num_bytes for spec in settle(toy).outputs.values())
    num_ranges = []
    for world_size in range(1, 65):
        plan = plan_of(toy, world_size, max_shard_bytes=max_shard_bytes)
        whole = [
            (file[0].file, file[0].unit, sum((shard.tensors for shard in file), ()), file[0].range.header)
            for file in plan.files
        ]
        assert whole == first
        assert (plan.total_size, len(plan.verifiers())) == (total, len(first))
        for file, reader in zip(plan.files, plan.verifiers()):
            writers = {shard.leader for shard in file}
            assert reader not in writers or len(writers) == world_size
            shares = Fraction(file[-1].tensors[-1].end * world_size, total)
            assert len(file) <= max(1, math.floor(shares + Fraction(1, 2)))
        num_ranges.append(len(plan.shards))
    assert num_ranges[0] == len(first) < num_ranges[-1]
    assert len({shard.leader for shard in plan_of(toy, 64).shards}) > len(plan_of(toy, 64).files)


def test_equal_files_are_whole_up_to_as_many_ranks(tiny: None) -> None:
    """Of n files of one size none is cut for n ranks or fewer; for twice as many, and from half as many more
    on, each is cut in two.
    """
    layout, num_files = layout_of([10] * 8), 5
    for world_size in range(1, 2 * num_files + 1):
        fair_share = -(-num_files * layout.tensors[-1].end // world_size)
        found = cut_ranges(layout, lambda name: [name], fair_share)
        assert len(found) == (2 if 2 * world_size >= 3 * num_files else 1)
        assert (found == [FileRange.whole(layout)]) == found[0].is_whole == (len(found) == 1)


def test_small_files_and_bounded_leaders_leave_files_whole() -> None:
    """Less than MIN_RANGE_BYTES has one leader for any number of ranks, as has every file where the user
    bounds the leaders of a stage.
    """
    assert len(plan_of(MOE, 64).shards) == len(plan_of(MOE, 64).files)
    bounded = plan_of(large(), 1024, grid=RankGrid((1024,)), leaders=4)
    assert all(len(file) == 1 for file in bounded.files)
    assert any(len(file) > 1 for file in plan_of(large(), 1024, grid=RankGrid((1024,))).files)


@cache
def large() -> ToyDecoder:
    """Six layers of a Qwen3-235B: 94 of them take the planner 10 s, and are all alike."""
    return ToyDecoder(
        num_layers=6,
        hidden=4096,
        heads=64,
        groups=4,
        head_dim=128,
        ffn=1536,
        vocab=151_936,
        padded_vocab=151_936,
        num_experts=128,
    )


def test_a_large_model_has_work_for_many_ranks() -> None:
    """Six of 94 layers at six of 94 parts of 16,384 ranks: layers of 5 GB are led by more than thirty ranks
    each, in ranges no larger than what one fused tensor makes, and memory counts ranges.
    """
    plan = plan_of(large(), 16_384 * 6 // 94)
    layers = [file for file in plan.files if file[0].unit.startswith("layer")]
    led: Counter[int] = Counter()
    for shard in plan.shards:
        led[shard.leader] += shard.num_bytes
    for file in layers:
        assert len({shard.leader for shard in file}) == len(file) > 30
        assert max(shard.num_bytes for shard in file) < 150 << 20
        for shard in file:
            assert led[shard.leader] == shard.num_bytes
            assert plan.part_of(shard.leader).image_bytes < 151 << 20
