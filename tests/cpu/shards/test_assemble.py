"""Claims of `pp_export.shards.assemble`: a frozen shard is byte for byte the library's file, and nothing
changes it any more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from pp_export.architecture import accounting, rules, table_files
from pp_export.architecture.accounting import Expected, account
from pp_export.architecture.encodings import Types
from pp_export.architecture.sizes import ModelSizes
from pp_export.core import file_names
from pp_export.core.dtypes import from_torch
from pp_export.core.errors import ExportError
from pp_export.core.tensors import Box, Shape, Slice, TensorSpec
from pp_export.planning import planner
from pp_export.planning.export_plan import ExportPlan
from pp_export.planning.planner import make_plan
from pp_export.planning.rank_grid import RankGrid
from pp_export.planning.shard_plan import ShardPlan
from pp_export.shards import assemble
from pp_export.shards.assemble import FrozenShard, ShardAssembler
from pp_export.shards.manifests import ShardManifest
from pp_export.shards.write import commit_shard, digest_shard, write_shard
from tests.fixtures.boxes import shapes, tilings, whole, within
from tests.fixtures.catalogs import one_record_each
from tests.fixtures.element_types import TORCH_NAMES, bytes_of, random_bits
from tests.fixtures.frozen import freeze_tensors

FILE = "model-00001-of-00001.safetensors"
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(
    lambda name: name != "__metadata__"
)
SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)
SIZES = {"num_attention_heads": 4, "num_query_groups": 2, "head_dim": 1, "vocab_size": 5}


def image(frozen: FrozenShard) -> bytes:
    return bytes(frozen.image)


def library(tensors: Mapping[str, torch.Tensor]) -> bytes:
    return save(dict(tensors), metadata={"format": "pt"})


# --- whole tensors


def mixed() -> dict[str, torch.Tensor]:
    """Every element type, a scalar, empty tensors, names outside ASCII."""
    tensors = {f"t.{name}": random_bits((3, 5), name, seed) for seed, name in enumerate(TORCH_NAMES)}
    return tensors | {
        "scalar": torch.tensor(0.25),
        "empty": torch.empty(0, 7, dtype=torch.bfloat16),
        "größe.層": random_bits((2,), "bfloat16", 99),
    }


def test_mixed_tensors_equal_the_library_s_file() -> None:
    """All element types, scalars, empty tensors and names outside ASCII give exactly the library's bytes."""
    assert freeze_tensors(FILE, mixed()).image == library(mixed())


@given(st.dictionaries(NAMES, st.tuples(SHAPES, st.sampled_from(TORCH_NAMES)), min_size=1, max_size=6))
def test_any_tensors_equal_the_library_s_file(specs: dict[str, tuple[Shape, str]]) -> None:
    """Whatever names, shapes and types there are, the frozen bytes are the library's, in any order of the
    dict.
    """
    tensors = {name: random_bits(shape, dtype, i) for i, (name, (shape, dtype)) in enumerate(specs.items())}
    expected = library(tensors)
    assert image(freeze_tensors(FILE, tensors)) == expected
    assert image(freeze_tensors(FILE, dict(reversed(tensors.items())))) == expected


def test_memory_layout_of_the_source_does_not_matter() -> None:
    """Transposed, strided, expanded and shared tensors are written as their elements are, each with its own
    copy.
    """
    base = random_bits((6, 8), "float32")
    views = {"t": base.t(), "s": base[::2, 1::3], "e": base[:1].expand(4, 8), "same": base, "again": base}
    expected = library({name: view.clone().contiguous() for name, view in views.items()})
    assert image(freeze_tensors(FILE, views)) == expected


def test_changing_the_dict_or_its_tensors_afterwards_changes_nothing(tmp_path: Path) -> None:
    """After freezing, keys added, removed or replaced and values changed in place reach neither file nor
    JSON.
    """
    tensors = mixed()
    expected = library(tensors)
    frozen = freeze_tensors(FILE, tensors)
    before = digest_shard(frozen)

    tensors["t.float32"].zero_()
    tensors["t.bfloat16"].view(torch.int16).add_(1)
    tensors["scalar"] = torch.tensor(9.0)
    tensors["added"] = torch.ones(3)
    del tensors["t.int64"]

    assert image(frozen) == expected
    record = digest_shard(frozen)
    assert record == before
    (tmp_path / file_names.SHARD_JSONS).mkdir()
    commit_shard(write_shard(frozen, tmp_path, lambda _: None), record, tmp_path)
    assert (tmp_path / FILE).read_bytes() == expected
    written = json.loads((tmp_path / file_names.SHARD_JSONS / f"{FILE}.json").read_text())
    assert ShardManifest.from_json(written) == before
    assert {tensor.name for tensor in before.tensors} == mixed().keys()


def test_a_frozen_shard_is_read_only() -> None:
    """Neither the bytes nor the fields of a frozen shard can be assigned."""
    frozen = freeze_tensors(FILE, mixed())
    assert frozen.data.readonly
    with pytest.raises(TypeError, match="read-only"):
        frozen.data[0] = 1
    with pytest.raises(AttributeError):
        frozen.file = "other"  # type: ignore[misc]
    assert len(frozen.image) == len(library(mixed()))


def test_types_without_a_name_in_the_format_are_refused() -> None:
    """A complex tensor can't be exported and is refused by its type."""
    with pytest.raises(ExportError, match="complex64 is not supported"):
        freeze_tensors(FILE, {"x": torch.zeros(2, dtype=torch.complex64)})


# --- slices


TABLE = {
    "rules": [
        {"megatron": "embedding.word_embeddings.weight", "hf": "embed", "transform": "vocabulary"},
        {
            "megatron": "decoder.layers.{layer}.qkv",
            "hf": {role: f"l.{{layer}}.{role}" for role in "qkv"},
            "transform": "split_qkv",
        },
        {
            "megatron": "decoder.layers.{layer}.experts.{expert}.glu",
            "hf": {"gate": "l.{layer}.experts.gate", "up": "l.{layer}.experts.up"},
            "transform": "split_glu",
        },
        {
            "megatron": "decoder.layers.{layer}.experts.{expert}.packed",
            "hf": "l.{layer}.experts.packed",
            "transform": "interleave_glu_transposed",
        },
        {"megatron": "decoder.layers.{layer}.turned", "hf": "l.{layer}.turned", "transform": "transpose"},
        {"megatron": "decoder.layers.{layer}.norm", "hf": "all.norms"},
        {"megatron": "plain", "hf": "plain", "unit": "head"},
        {"megatron": "forgotten", "drop": "a test of dropping"},
    ]
}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> rules.Architecture:
    """A table with every transform, stacks over experts and over layers, and a dropped tensor."""
    path = tmp_path_factory.mktemp("table") / "every.yaml"
    path.write_text(yaml.safe_dump(TABLE))
    return table_files.load(str(path))


def sources_of(draw: st.DrawFn, dtype: str) -> dict[str, torch.Tensor]:
    """Megatron tensors that fit TABLE: some layers and experts, with random inner dims."""
    num_layers, num_experts = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    rest, half = draw(shapes()), draw(st.integers(1, 3))
    found = {
        "embedding.word_embeddings.weight": (draw(st.integers(5, 8)), 3),
        "plain": draw(shapes()),
        "forgotten": (2, 2),
    }
    for layer in range(num_layers):
        at = f"decoder.layers.{layer}."
        found[at + "qkv"] = (8, *rest)
        found[at + "norm"] = (4, 2)
        found[at + "turned"] = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
        found |= {f"{at}experts.{expert}.glu": (2 * half, *rest) for expert in range(num_experts)}
        found |= {f"{at}experts.{expert}.packed": (2 * half, 3) for expert in range(num_experts)}
    return {name: random_bits(shape, dtype, i) for i, (name, shape) in enumerate(found.items())}


def mapped(sources: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What TABLE means, in torch's own words."""
    made = {"embed": sources["embedding.word_embeddings.weight"][:5], "plain": sources["plain"]}
    norms = []
    for layer in (0, 1):
        at = f"decoder.layers.{layer}."
        if at + "norm" not in sources:
            continue
        norms.append(sources[at + "norm"])
        made |= {f"l.{layer}.{role}": part for role, part in mapped_qkv(sources[at + "qkv"]).items()}
        made[f"l.{layer}.turned"] = sources[at + "turned"].T
        experts = {n: v.chunk(2) for n, v in sources.items() if n.startswith(at + "experts.")}
        pairs = [pair for name, pair in experts.items() if name.endswith(".glu")]
        packed = [pair for name, pair in experts.items() if name.endswith(".packed")]
        turns = [torch.stack(pair, dim=1).flatten(0, 1).T for pair in packed]
        made[f"l.{layer}.experts.packed"] = torch.stack(turns)
        made[f"l.{layer}.experts.gate"] = torch.stack([gate for gate, _ in pairs])
        made[f"l.{layer}.experts.up"] = torch.stack([up for _, up in pairs])
    return made | {"all.norms": torch.stack(norms)}


def plan_for(
    table: rules.Architecture,
    specs: Mapping[str, TensorSpec],
    slices: Mapping[str, tuple[Slice, ...]],
    grid: RankGrid,
    *,
    cast: str | None = None,
    max_shard_bytes: int = 1 << 40,
) -> ExportPlan:
    settled = account(
        table,
        specs,
        ModelSizes(SIZES, "", 5, 8),
        expected=Expected(None, ""),
        types=Types(None if cast is None else from_torch(cast)),
        drop_mtp=False,
    )
    return make_plan(settled, slices, grid.world_size, max_shard_bytes=max_shard_bytes, grid=grid)


def messages(shard: ShardPlan, sources: Mapping[str, torch.Tensor]) -> list[tuple[Slice, memoryview]]:
    """The shard's slices with what a rank would send of each: bytes inside a packed message."""
    found = []
    for part in (part for bucket in shard.buckets for part in bucket.parts):
        message = bytearray(b"\xaa" * part.num_bytes)
        for slice_, begin in zip(part.slices, part.offsets):
            source = sources[slice_.name]
            values = bytes_of(source[within(slice_.box, whole(tuple(source.shape)))])
            message[begin : begin + slice_.num_bytes] = values
        flat = memoryview(message)
        found += [(slice_, flat[begin:]) for slice_, begin in zip(part.slices, part.offsets)]
    return found


def cast_to(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """The tensor as another type, with one kind of NaN; as it is, where it has that type."""
    dtype: torch.dtype = getattr(torch, name)
    if tensor.dtype == dtype:
        return tensor
    values = tensor.to(dtype)
    return torch.where(values.isnan(), torch.tensor(torch.nan, dtype=dtype), values)


def assembler_of(shard: ShardPlan) -> ShardAssembler:
    """In memory that was used before."""
    image, scratch = (
        memoryview(bytearray(b"\xcc" * size)) for size in (shard.num_bytes, shard.scratch_bytes)
    )
    return ShardAssembler(shard, image, scratch)


def bring(assembler: ShardAssembler, slice_: Slice, message: memoryview, *, straight: bool) -> bool:
    """Read the slice straight to its place, if it has one and that is wanted, else paste it."""
    pieces = assembler.memory_for(slice_) if straight else None
    if pieces is None:
        assembler.paste(slice_, message)
        return False
    at = 0
    for piece in pieces:
        piece[:] = message[at : at + len(piece)]
        at += len(piece)
    assert at == slice_.num_bytes
    assembler.filled(slice_)
    return True


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_pieces_of_any_tiling_give_the_library_s_file(table: rules.Architecture, data: st.DataObject) -> None:
    """Tensors cut at random, dealt over a random grid, and pasted or read straight to their places in any
    order, end as torch's own slicing has them.
    """
    dtype = data.draw(st.sampled_from(["bfloat16", "float32", "float8_e4m3fn", "int64", "bool"]))
    cast = data.draw(st.sampled_from([None, "bfloat16", "float32"]))
    sources = data.draw(st.composite(lambda draw: sources_of(draw, dtype))())
    specs = {name: TensorSpec(tuple(t.shape), from_torch(dtype)) for name, t in sources.items()}
    slices = one_record_each({n: data.draw(tilings(s.shape)) for n, s in specs.items()}, from_torch(dtype))
    blocks = data.draw(st.lists(st.integers(1, 2), min_size=1, max_size=2).map(tuple))
    grid = RankGrid(blocks, *data.draw(st.tuples(st.integers(1, 2), st.integers(1, 2))))
    expected = mapped(sources)
    if cast is not None and from_torch(dtype).is_floating:
        expected = {name: cast_to(tensor, cast) for name, tensor in expected.items()}
    limit = data.draw(st.sampled_from([1, 100, 1 << 40]))
    found: dict[str, bytes] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accounting, "_type_findings", lambda _: [])  # geometry holds for any type
        patch.setattr(planner, "BUCKET_BYTES", data.draw(st.sampled_from([1, 16, 1 << 20])))
        plan = plan_for(table, specs, slices, grid, cast=cast, max_shard_bytes=limit)
    for shard in plan.shards:
        assembler = assembler_of(shard)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(assemble, "_LONG_RUN_BYTES", data.draw(st.sampled_from([1, 4, 1 << 10])))
            for slice_, message in data.draw(st.permutations(messages(shard, sources))):
                bring(assembler, slice_, message, straight=data.draw(st.booleans()))
        names = [place.name for place in shard.tensors]
        assert assembler.freeze().image == library({name: expected[name].contiguous() for name in names})
        found |= dict.fromkeys(names, b"")
    assert found.keys() == expected.keys()


@pytest.fixture
def shard(table: rules.Architecture) -> tuple[ShardPlan, dict[str, torch.Tensor]]:
    """A shard of one tensor that is stored in two boxes, and its source."""
    sources = {"plain": random_bits((4, 6), "bfloat16")}
    boxes = [Box((0, 0), (4, 2)), Box((0, 2), (4, 4))]
    specs = {"plain": TensorSpec((4, 6), from_torch("bfloat16"))}
    plan = plan_for(table, specs, one_record_each({"plain": boxes}, from_torch("bfloat16")), RankGrid((1,)))
    return plan.shards[0], sources


def test_a_shard_with_a_hole_or_a_double_is_not_frozen(
    shard: tuple[ShardPlan, dict[str, torch.Tensor]],
) -> None:
    """A shard where elements are missing, or came twice, is refused with the tensor and the number of
    elements.
    """
    planned, sources = shard
    first, second = messages(planned, sources)
    for slices, left in (([first], 16), ([first, second, first], -8), ([], 24)):
        assembler = assembler_of(planned)
        for slice_, message in slices:
            assembler.paste(slice_, message)
        with pytest.raises(ExportError, match="not filled exactly") as caught:
            assembler.freeze()
        assert caught.value.findings == (f"plain: {left} elements",)
        assert caught.value.where == {"file": planned.file}


def test_messages_changed_after_pasting_change_nothing(
    shard: tuple[ShardPlan, dict[str, torch.Tensor]],
) -> None:
    """A message may be used again as soon as it is pasted, and a frozen assembler takes nothing more."""
    planned, sources = shard
    assembler = assembler_of(planned)
    slices = messages(planned, sources)
    for slice_, message in slices:
        assembler.paste(slice_, message)
        message[: slice_.num_bytes] = bytes(slice_.num_bytes)
    frozen = assembler.freeze()
    assert image(frozen) == library({"plain": sources["plain"]})
    assert frozen.data.readonly
    with pytest.raises(KeyError):
        assembler.paste(*slices[0])
    assert image(frozen) == library({"plain": sources["plain"]})


@pytest.mark.parametrize(
    ("box", "straight"),
    [
        (Box((0, 0), (8, 6)), True),  # split into q, k and v: six runs of whole rows
        (Box((4, 0), (4, 6)), True),  # one group
        (Box((0, 0), (8, 3)), False),  # half of each row: eight short runs
    ],
)
def test_long_runs_are_read_straight_to_their_places(
    table: rules.Architecture, monkeypatch: pytest.MonkeyPatch, box: Box, straight: bool
) -> None:
    """What lies in long runs on both sides needs no paste; what lies in many short ones does."""
    monkeypatch.setattr(assemble, "_LONG_RUN_BYTES", 12)
    monkeypatch.setattr(assemble, "_FEW_RUNS", 1)
    name = "decoder.layers.0.qkv"
    rest = [
        each
        for each in [Box((4, 0), (4, 6)), Box((0, 0), (4, 6)), Box((0, 3), (8, 3))]
        if not _meet(each, box)
    ]
    sources = {name: random_bits((8, 6), "bfloat16")}
    specs = {name: TensorSpec((8, 6), from_torch("bfloat16"))}
    plan = plan_for(
        table, specs, one_record_each({name: [box, *rest]}, from_torch("bfloat16")), RankGrid((1,))
    )
    (planned,) = plan.shards
    assembler = assembler_of(planned)
    found = {
        slice_.box: bring(assembler, slice_, message, straight=True)
        for slice_, message in messages(planned, sources)
    }
    assert found[box] is straight
    q, k, v = (mapped_qkv(sources[name])[role] for role in "qkv")
    expected = {"l.0.q": q, "l.0.k": k, "l.0.v": v}
    assert image(assembler.freeze()) == library({n: t.contiguous() for n, t in expected.items()})


def _meet(first: Box, second: Box) -> bool:
    return all(
        a < b + n and b < a + m for a, m, b, n in zip(first.offset, first.shape, second.offset, second.shape)
    )


def mapped_qkv(source: torch.Tensor) -> dict[str, torch.Tensor]:
    """q, k and v of a tensor of two groups, in torch's own words."""
    groups = source.reshape(2, 4, *source.shape[1:])
    return {"q": groups[:, :2].flatten(0, 1), "k": groups[:, 2], "v": groups[:, 3]}
