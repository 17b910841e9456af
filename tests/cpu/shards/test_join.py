"""Claims of `pp_export.shards.join` and of ranges in `pp_export.shards.write`: a file that is written in
ranges is the file that one leader writes, with the same record, and only if all ranges are those that were
planned.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pp_export.core import file_names
from pp_export.core.errors import VerificationError
from pp_export.disk import shared_file
from pp_export.planning.file_layout import FileLayout
from pp_export.planning.shard_plan import ShardPlan
from pp_export.shards.assemble import FrozenShard
from pp_export.shards.join import join_file, read_manifest
from pp_export.shards.manifests import RangeManifest, ShardManifest
from pp_export.shards.write import commit_shard, digest_shard, write_shard
from pp_export.verification import digest_staged_shard, verify_staged_shard
from tests.fixtures.frozen import freeze_tensors, shard_of

FILE = "model-00001-of-00002.safetensors"
BLOCK_BYTES = 4096
CUTS = ((1, 2, 3), (2,), (1, 4), (3, 4, 5))
"""The tensors, in file order, with which ranges begin."""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_file, "BLOCK_BYTES", BLOCK_BYTES)


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    (tmp_path / file_names.SHARD_JSONS).mkdir()
    return tmp_path


def frozen_file() -> FrozenShard:
    """A file with tensors of two types, some smaller than a block, some of many, one with NaNs."""
    random = torch.Generator().manual_seed(0)
    tensors = {
        "a": torch.randn(3, 5, generator=random),
        "b": torch.randn(50, 70, generator=random).to(torch.bfloat16),
        "c": torch.randn(2, generator=random).to(torch.bfloat16),
        "d": torch.randn(9000, generator=random).to(torch.bfloat16),
        "e": torch.full((7,), torch.nan).to(torch.bfloat16),
        "f": torch.randn(3000, generator=random).to(torch.bfloat16),
    }
    return freeze_tensors(FILE, tensors)


def cut(frozen: FrozenShard, begins: tuple[int, ...]) -> list[FrozenShard]:
    """The same file as the frozen ranges that several leaders have."""
    layout = FileLayout(FILE, frozen.range.tensors)
    bounds = (0, *begins, len(layout.tensors))
    found = []
    for number, (begin, end) in enumerate(itertools.pairwise(bounds)):
        range_ = layout.range(number, len(bounds) - 1, layout.tensors[begin:end])
        names = {place.name for place in range_.tensors}
        counts = {name: count for name, count in frozen.not_finite.items() if name in names}
        found.append(FrozenShard(range_, frozen.image[range_.begin : range_.end], counts))
    return found


def plans_of(ranges: list[FrozenShard]) -> list[ShardPlan]:
    plan = shard_of(FILE, {place.name: place.spec for each in ranges for place in each.range.tensors})
    return [replace(plan, range=each.range) for each in ranges]


def write_all(ranges: list[FrozenShard], staging: Path) -> list[ShardPlan]:
    """Write and commit the ranges; their plans."""
    for each in reversed(ranges):
        counted: list[int] = []
        commit_shard(write_shard(each, staging, counted.append), digest_shard(each), staging)
        assert sum(counted) == len(each.image)
    return plans_of(ranges)


@pytest.mark.parametrize("begins", CUTS, ids=str)
def test_a_joined_file_is_that_of_one_leader(staging: Path, begins: tuple[int, ...]) -> None:
    """Bytes and record are those of the whole file but for its SHA-256, which reading it back gives."""
    frozen = frozen_file()
    whole = digest_shard(frozen)
    assert isinstance(whole, ShardManifest)
    joined = join_file(staging, write_all(cut(frozen, begins), staging))
    assert (staging / FILE).read_bytes() == frozen.image
    assert joined == replace(whole, sha256="")
    assert joined.not_finite == {"e": 7}
    assert read_manifest(staging, FILE) == joined
    assert digest_staged_shard(staging, FILE) == (whole.sha256, [])
    assert [path.name for path in staging.iterdir() if path.name.startswith(".")] == [file_names.SHARD_JSONS]


def test_a_range_record_survives_its_json() -> None:
    """A range's record is read as it was written, edges included, and strangers to the format are refused."""
    for each in cut(frozen_file(), (1, 3)):
        record = digest_shard(each)
        assert isinstance(record, RangeManifest)
        value = json.loads(json.dumps(record.to_json()))
        assert RangeManifest.from_json(value) == record
        first, last = shared_file.whole_blocks(record.begin, record.end)
        assert record.head == each.image[: first - record.begin]
        assert record.tail == each.image[last - record.begin :]
        for broken in (
            {**value, "more": 1},
            {**value, "head": "?"},
            {k: v for k, v in value.items() if k != "end"},
        ):
            with pytest.raises((ValueError, TypeError, KeyError)):
                RangeManifest.from_json(broken)


def at(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(record: dict[str, Any]) -> None:
        *parents, last = path
        for name in parents:
            record = record[name]
        record[last] = value

    return change


def drop_tensor(record: dict[str, Any]) -> None:
    record["tensors"].pop()


@pytest.mark.parametrize(
    "change",
    [
        at("begin", value=0),
        at("end", value=10**6),
        at("number", value=0),
        at("file", value="model-00002-of-00002.safetensors"),
        at("tail", value=""),
        at("head", value="AAAA"),
        drop_tensor,
    ],
    ids=["overlap", "too long", "another number", "another file", "no tail", "another head", "no tensor"],
)
def test_a_range_that_was_not_planned_is_named(
    staging: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    """A record that overlaps another, or says other bytes or tensors than planned, is refused by its name and
    nothing gets the file's name.
    """
    plans = write_all(cut(frozen_file(), (1, 3)), staging)
    path = staging / file_names.range_json(FILE, 1)
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(VerificationError, match="not the one that was planned") as caught:
        join_file(staging, plans)
    assert caught.value.where["file"] == str(path)
    assert caught.value.findings
    assert not (staging / FILE).exists()


@pytest.mark.parametrize(
    "damage", [Path.unlink, lambda path: path.write_text("{"), lambda path: path.write_text("{}")]
)
def test_a_range_without_its_json_is_named(staging: Path, damage: Callable[[Path], object]) -> None:
    """A range whose JSON is missing or cut off is not committed, and the error says which."""
    plans = write_all(cut(frozen_file(), (1, 3)), staging)
    path = staging / file_names.range_json(FILE, 2)
    damage(path)
    with pytest.raises(VerificationError, match="can't be read") as caught:
        join_file(staging, plans)
    assert caught.value.where["file"] == str(path)
    assert not (staging / FILE).exists()


def test_every_damaged_byte_is_found_and_named(staging: Path) -> None:
    """In reading back, a byte that changed is found by the digest of the planned header or of its tensor,
    which was taken in memory.
    """
    frozen = frozen_file()
    join_file(staging, write_all(cut(frozen, (1, 3)), staging))
    header, path = frozen.range.header, staging / FILE
    for place in frozen.range.tensors:
        for position in (place.begin, place.end - 1):
            data = bytearray(frozen.image)
            data[len(header) + position] ^= 4
            path.write_bytes(data)
            _, faults = digest_staged_shard(staging, FILE)
            assert [(fault.kind, fault.file, fault.tensor) for fault in faults] == [
                ("wrong-digest", FILE, place.name)
            ]
    for position in (3, 9, header.index(b'"pt"') + 1, len(header) - 1):
        data = bytearray(frozen.image)
        data[position] ^= 4
        path.write_bytes(data)
        _, faults = digest_staged_shard(staging, FILE)
        assert ("wrong-digest", FILE, None) in [(fault.kind, fault.file, fault.tensor) for fault in faults]
    path.write_bytes(frozen.image[:-1])
    kinds = {fault.kind for fault in digest_staged_shard(staging, FILE)[1]}
    assert {"wrong-size", "wrong-digest"} <= kinds


def test_a_record_that_can_not_prove_the_file_is_refused(staging: Path) -> None:
    """Tensors that leave a gap, in front or between, and a header of another digest prove nothing."""
    join_file(staging, write_all(cut(frozen_file(), (1, 3)), staging))
    path = staging / file_names.shard_json(FILE)
    record = json.loads(path.read_text())
    for tensors in (record["tensors"][1:], [*record["tensors"][:2], *record["tensors"][3:]]):
        path.write_text(json.dumps(record | {"tensors": tensors}))
        for check in (digest_staged_shard(staging, FILE)[1], verify_staged_shard(staging, FILE)):
            assert "bad-manifest" in {fault.kind for fault in check}
    path.write_text(json.dumps(record | {"header_xxh3_128": "0" * 32}))
    _, faults = digest_staged_shard(staging, FILE)
    assert [(fault.kind, fault.tensor) for fault in faults] == [("wrong-digest", None)]
