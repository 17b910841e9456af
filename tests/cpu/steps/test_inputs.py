"""Claims of `pp_export.steps.inputs`: all ranks export the same by the same table, or none does; and the
plan's fingerprint tells everything apart that makes other bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed import HashStore  # type: ignore[attr-defined]

from pp_export.architecture import table_files
from pp_export.checkpoint.catalog import Catalog, Description, StoredBox, StoredItem, StoredTensor
from pp_export.core.errors import ExportError
from pp_export.core.version import VERSION
from pp_export.distributed import heartbeat
from pp_export.distributed.world import World
from pp_export.options.kinds import TargetOptions
from pp_export.planning import part_image
from pp_export.planning.export_plan import ExportPlan
from pp_export.planning.proof import ProvedPart
from pp_export.planning.rank_plan import RankPlan
from pp_export.reference.definition_cache import Answer
from pp_export.reference.reference_folder import Reference
from pp_export.steps import failure, inputs
from pp_export.steps.inputs import (
    ExportInputs,
    OwnPart,
    Whole,
    agree_on_plan,
    describe,
    make_whole,
    plan_export,
    read_inputs,
)
from pp_export.steps.target import Target
from tests.fixtures.boxes import whole
from tests.fixtures.catalogs import ToyDecoder
from tests.fixtures.worlds import NUM_RANKS, error_of, on_all

TOY = ToyDecoder(num_layers=2)
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": TOY.hidden,
    "num_attention_heads": TOY.heads,
    "num_key_value_heads": TOY.groups,
    "head_dim": TOY.head_dim,
    "num_hidden_layers": 2,
    "vocab_size": TOY.vocab,
}
GLU = "decoder.layers.{layer}.mlp.linear_fc1.weight"
GATE_UP = {role: f"model.layers.{{layer}}.mlp.{role}_proj.weight" for role in ("gate", "up")}
SWAPPED = {"gate": GATE_UP["up"], "up": GATE_UP["gate"]}


class ToySource:
    """A source that rank 0 can describe; nothing is ever read of it."""

    folders: Sequence[Path] = ()
    is_shared = True
    device = None

    def check(self) -> None: ...

    def announce(self) -> bytes:
        return b""

    def describe(self, announced: Sequence[bytes]) -> Catalog:
        specs = TOY.specs()
        tensors = tuple(
            StoredTensor(name, spec.shape, spec.dtype, (StoredBox(whole(spec.shape), number),))
            for number, (name, spec) in enumerate(specs.items())
        )
        items = tuple(StoredItem(0, 0, spec.num_bytes, 0) for spec in specs.values())
        about = Description("folder", "toy", "a test", None, None, {}, {})
        return Catalog(about, ("file",), items, tensors)

    def open(self, catalog: Catalog) -> Any:
        raise AssertionError("nothing is to be read")


class Pending:
    """Stands in for `PendingInputs`: nobody is asked what the model's definition is."""

    def __init__(self, options: TargetOptions, meanwhile: Callable[[], object] = lambda: None) -> None:
        self.architecture = table_files.load(options.architecture or "qwen2")
        self.reference, self._meanwhile = Reference(options.reference, CONFIG, (), (), None), meanwhile
        self.question = CONFIG

    def check(self) -> None: ...

    def hear(self, catalog: object) -> None: ...

    def known(self, question: Mapping[str, Any]) -> Answer:
        self._meanwhile()
        return Answer(None)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 gives a sign of life more often than every second, and nobody is waited for long."""
    monkeypatch.setattr(heartbeat, "_BEAT_SECONDS", 0.02)
    monkeypatch.setattr(failure, "GRACE_SECONDS", 0.6)


def options_for(folder: Path, **options: Any) -> TargetOptions:
    return TargetOptions(reference=folder, output=folder / "out", **options)


def write_table(path: Path, hf: dict[str, str]) -> Path:
    row = {"megatron": GLU, "hf": hf, "transform": "split_glu"}
    path.write_text(yaml.safe_dump({"extends": "qwen2", "rules": [row]}))
    return path


def described(world: World, options: TargetOptions, pending: Any = None) -> ExportInputs | None:
    known: Any = pending or Pending(options)
    return describe(ToySource(), Target.of(options, world.run_id), options, world, known)


def plan_together(world: World, options: TargetOptions, pending: Any = None) -> tuple[OwnPart, Whole | None]:
    """What this rank gets of the plan, and on rank 0 the whole."""
    whole = make_whole(described(world, options, pending), options, world)
    return agree_on_plan(whole, options, world), whole


def plan_of(options: TargetOptions) -> ExportPlan:
    pending: Any = Pending(options)
    return plan_export(read_inputs(ToySource(), options, pending), options, 2)


def plan_by(table: Path) -> ExportPlan:
    return plan_of(options_for(table.parent, architecture=str(table)))


def test_every_rank_works_by_the_table_that_rank_0_read(tmp_path: Path) -> None:
    """A table that only rank 0 can see is enough: the others get their parts of the plan that it decides."""
    table = write_table(tmp_path / "table.yaml", SWAPPED)
    options = options_for(tmp_path, architecture=str(table))

    def act(world: World) -> tuple[RankPlan, str]:
        pending: Any = Pending(options, table.unlink) if world.rank == 0 else None
        own, _ = plan_together(world, options, pending)
        return own.plan, own.plan.fingerprint

    answers = on_all(act, HashStore())
    assert len({fingerprint for _, fingerprint in answers}) == 1
    assert not table.exists()
    placements = {
        placement.name: placement.view.offset
        for part, _ in answers
        for shard in part.led
        for placement in shard.placements.get(GLU.format(layer=1), ())
    }
    up, gate = (SWAPPED[role].format(layer=1) for role in ("gate", "up"))
    assert placements[up] == 0 < placements[gate]


def test_a_rank_that_sees_another_table_ends_all(tmp_path: Path) -> None:
    """Where a rank's own file of that name means something else, nobody exports, and the error names the
    file.
    """
    table = write_table(tmp_path / "table.yaml", GATE_UP)
    options = options_for(tmp_path, architecture=str(table))

    def act(world: World) -> ExportError:
        pending: Any = Pending(options, lambda: write_table(table, SWAPPED)) if world.rank == 0 else None
        return error_of(world, lambda world: described(world, options, pending))

    for error in on_all(act, HashStore()):
        assert error.what == "this rank has another architecture table than rank 0"
        assert error.where["table"] == str(table)


def test_a_rank_of_another_version_ends_all(tmp_path: Path) -> None:
    """A rank whose package says another version can't take part, and both versions are named."""

    def act(world: World) -> ExportError:
        def join(world: World) -> object:
            if world.rank == 1:
                world.control.same({"the version of pp_export": "0.0.1"})
            return described(world, options_for(tmp_path))

        return error_of(world, join)

    for error in on_all(act, HashStore()):
        assert error.what == "the ranks disagree on the version of pp_export"
        assert (error.got, error.expected) == ("0.0.1", f"{VERSION} (rank 0)")


@pytest.mark.parametrize("other", [{"dtype": "float32"}, {"stall_seconds": 7.0}], ids=["what", "how"])
def test_a_rank_with_other_options_ends_all(tmp_path: Path, other: dict[str, Any]) -> None:
    """Ranks with different options, of whatever kind, don't export together."""

    def act(world: World) -> ExportError:
        options = options_for(tmp_path, **(other if world.rank == 1 else {}))
        return error_of(world, lambda world: described(world, options))

    (name,) = other
    for error in on_all(act, HashStore()):
        assert error.what == "the ranks disagree on the options"
        assert error.where["rank"] == "1"
        assert name.replace("_", "-") in str(error.got)


@pytest.mark.parametrize("change", ["order", "byte", "rank"])
def test_a_rank_with_a_changed_part_ends_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: str
) -> None:
    """A rank whose part is not of the plan of rank 0 can't take part, and the error names it: where its
    shards come in another order, a byte is another one, or it got the part of another rank.
    """
    options = options_for(tmp_path, max_shard_size="1KB")
    image_of = ExportPlan.image_of

    def changed(plan: ExportPlan, rank: int) -> bytes:
        if rank != 1:
            return image_of(plan, rank)
        if change == "rank":
            return image_of(plan, 2)
        proved = ProvedPart.from_bytes(image_of(plan, rank))
        if change == "byte":
            body = proved.body.replace(b"bfloat16", b"float16_", 1)
            assert body != proved.body
        else:
            part = plan.part_of(rank)
            body = part_image.to_bytes(replace(part, led=tuple(reversed(part.led))))
        return replace(proved, body=body).to_bytes()

    monkeypatch.setattr(ExportPlan, "image_of", changed)

    def act(world: World) -> ExportError:
        def join(world: World) -> None:
            plan_together(world, options)

        return error_of(world, join)

    for error in on_all(act, HashStore()):
        assert error.what == "the ranks disagree on the plan"
        assert error.where["rank"] == "1"


def test_a_rank_gets_its_own_part_and_no_other(tmp_path: Path) -> None:
    """What a rank decodes is what rank 0 planned for it, with the items of the catalog that it reads, which
    its slices name by their new numbers.
    """
    options = options_for(tmp_path)

    def act(world: World) -> tuple[OwnPart, Whole | None]:
        return plan_together(world, options)

    answers = on_all(act, HashStore())
    _, whole = answers[0]
    assert whole is not None
    assert [other for _, other in answers[1:]] == [None] * (NUM_RANKS - 1)
    for rank, (own, _) in enumerate(answers):
        planned, catalog = whole.plan.part_of(rank), whole.inputs.catalog
        assert planned.items
        assert (own.plan.led == planned.led) == (rank == 0)
        assert own.plan.fingerprint == whole.plan.fingerprint
        assert [shard.range for shard in own.plan.led] == [shard.range for shard in planned.led]
        assert [shard.placements for shard in own.plan.led] == [shard.placements for shard in planned.led]
        read, meant = ([s for part in one.parts for s in part.slices] for one in (own.plan, planned))
        assert [s._replace(item=0) for s in read] == [s._replace(item=0) for s in meant]
        for got, original in zip(read, meant):
            assert own.catalog.key_of_item[got.item] == catalog.key_of_item[original.item]
        if rank:
            assert len(own.catalog.stored_items) == len(planned.items) < len(catalog.stored_items)


def test_the_fingerprint_covers_what_decides_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Gate and up swapped, a part transformed otherwise, a cast, another limit, another version of the
    package: each gives a fingerprint of its own. How an export is made gives none.
    """
    plain = write_table(tmp_path / "plain.yaml", GATE_UP)
    swapped = write_table(tmp_path / "swapped.yaml", SWAPPED)
    base = plan_of(options_for(tmp_path, architecture=str(plain)))
    how = options_for(tmp_path, architecture=str(plain), verify=False, stall_seconds=5.0, backend="gloo")
    assert plan_of(how).fingerprint == base.fingerprint
    found = {base.fingerprint}
    for other in (
        {"architecture": str(swapped)},
        {"architecture": str(plain), "dtype": "float32"},
        {"architecture": str(plain), "max_shard_size": "1KB"},
        {"architecture": str(plain), "contents": "weights"},
    ):
        found.add(plan_of(options_for(tmp_path, **other)).fingerprint)
    monkeypatch.setattr(inputs, "VERSION", "another")
    found.add(plan_of(options_for(tmp_path, architecture=str(plain))).fingerprint)
    assert len(found) == 6


def test_a_table_is_its_content_not_its_file(tmp_path: Path) -> None:
    """The same table in another folder gives the same fingerprint."""
    (tmp_path / "other").mkdir()
    tables = [write_table(folder / "table.yaml", GATE_UP) for folder in (tmp_path, tmp_path / "other")]
    assert len({plan_by(table).fingerprint for table in tables}) == 1


def test_swapped_placements_alone_change_the_fingerprint(tmp_path: Path) -> None:
    """Without the basis too: where every view goes is in the fingerprint, not only the table that said so."""
    plans = [plan_by(write_table(tmp_path / "table.yaml", hf)) for hf in (GATE_UP, SWAPPED)]
    assert len({replace(plan, basis="").fingerprint for plan in plans}) == 2
