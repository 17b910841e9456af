"""Claims of `pp_export.checkpoint.dcp` about the whole of a folder: nothing in it shares bytes, nothing that
it promises is gone, and what is only of the optimizer may be lost.
"""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

from pp_export.checkpoint.dcp.metadata import StoredEntries
from pp_export.checkpoint.dcp.places import check_places
from pp_export.checkpoint.formats import describe_checkpoint
from pp_export.core.errors import CheckpointError
from pp_export.torch_file import unpickler
from tests.fixtures.stored import edit_metadata, refused, write_plain, write_stored

GOLDEN = Path(__file__).parents[2] / "golden"
WEIGHT, OTHER, MOMENT, RANDOM = (
    "a.weight",
    "b.weight",
    "optimizer.state.exp_avg.a.weight",
    "rng_state/shard_0_1",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two weights, a tensor of the optimizer and an object."""
    state = {WEIGHT: torch.ones(3), OTHER: torch.ones(4), MOMENT: torch.ones(5), RANDOM: [1, 2]}
    folder = write_plain(tmp_path / "iter_0000010", state)
    assert describe_checkpoint(folder, None).description.notes == ()
    return folder


def place_of(metadata: Metadata, key: str) -> MetadataIndex:
    found: list[MetadataIndex] = [index for index in metadata.storage_data if index.fqn == key]
    return found[0]


@pytest.mark.parametrize(
    ("moved", "onto"),
    [(WEIGHT, MOMENT), (MOMENT, OTHER), (RANDOM, WEIGHT), (MOMENT, RANDOM), (WEIGHT, OTHER)],
)
@pytest.mark.parametrize("by", [0, 1, -1])
def test_no_two_items_share_a_byte(folder: Path, moved: str, onto: str, by: int) -> None:
    """Weights, the optimizer's and objects: where one begins within another, both and the file are named."""

    def change(metadata: Metadata) -> None:
        there = metadata.storage_data[place_of(metadata, onto)]
        own = metadata.storage_data[place_of(metadata, moved)]
        shift = {0: 0, 1: there.length - 1, -1: 1 - own.length}[by]
        own.offset = max(0, there.offset + shift)

    edit_metadata(folder, change)
    error = refused(folder, "not what .metadata says")
    assert any({moved, onto} <= set(finding.split()) for finding in error.findings)
    assert all(finding.startswith("__0_0.distcp") for finding in error.findings)
    assert "damaged or of another save" in str(error.advice)


def test_a_long_item_is_seen_over_several(folder: Path) -> None:
    """An item that reaches over others is found with each of them, not with the next one alone."""

    def change(metadata: Metadata) -> None:
        first = min(metadata.storage_data.values(), key=lambda info: info.offset)
        first.length = 1 << 40

    edit_metadata(folder, change)
    error = refused(folder, "not what .metadata says")
    assert sum("are stored in the same bytes" in finding for finding in error.findings) == 3


def test_brute_force_agrees(tmp_path: Path) -> None:
    """Of random intervals, those that share bytes are found exactly where comparing all pairs finds some."""
    chance = random.Random(0)
    (tmp_path / "a.distcp").write_bytes(bytes(1000))
    num_found = 0
    for _ in range(300):
        spans = [(chance.randrange(60), chance.randrange(8)) for _ in range(chance.randrange(1, 8))]
        infos = {
            (f"k{number}", None): SimpleNamespace(relative_path="a.distcp", offset=begin, length=length)
            for number, (begin, length) in enumerate(spans)
        }
        shares = any(
            set(range(a, a + n)) & set(range(b, b + m))
            for i, (a, n) in enumerate(spans)
            for b, m in spans[:i]
        )
        num_found += shares
        if shares:
            with pytest.raises(CheckpointError):
                check_places(tmp_path, infos, ())
        else:
            assert check_places(tmp_path, infos, ()) == ()
    assert 50 < num_found < 250


def test_many_items_are_checked_in_little_time(tmp_path: Path) -> None:
    """A hundred thousand items take no second, and of as many overlaps a hundred are listed."""
    (tmp_path / "a.distcp").write_bytes(b"")
    os.truncate(tmp_path / "a.distcp", 10**7)
    infos = {
        (f"k{number}", None): SimpleNamespace(relative_path="a.distcp", offset=10 * number, length=10)
        for number in range(100_000)
    }
    began = time.process_time()
    assert check_places(tmp_path, infos, ()) == ()
    assert time.process_time() - began < 5
    for info in infos.values():
        info.length = 11
    with pytest.raises(CheckpointError) as caught:
        check_places(tmp_path, infos, ())
    assert len(caught.value.findings) == 101
    assert caught.value.findings[-1] == "a.distcp: 99899 more items share bytes"


@pytest.mark.parametrize("change", [{"offset": -5}, {"length": -1}, {"offset": 1 << 63}])
def test_impossible_places_are_refused(folder: Path, change: dict[str, int]) -> None:
    """Places before a file's begin, or beyond what numbers hold, are damage, also of the optimizer's."""

    def move(metadata: Metadata) -> None:
        vars(metadata.storage_data[place_of(metadata, MOMENT)]).update(change)

    edit_metadata(folder, move)
    refused(folder, "not what torch writes")


def test_a_file_name_of_the_optimizer_s_is_checked_too(folder: Path) -> None:
    """No item may be in a file that leaves the checkpoint, whether it is read or not."""

    def move(metadata: Metadata) -> None:
        metadata.storage_data[place_of(metadata, MOMENT)].relative_path = "../x.distcp"

    edit_metadata(folder, move)
    refused(folder, "outside the checkpoint")


def test_what_only_the_optimizer_lacks_is_noted(folder: Path) -> None:
    """A file that is missing or cut off where no weight lies does not stop the export; a note tells it."""

    def move(metadata: Metadata) -> None:
        metadata.storage_data[place_of(metadata, MOMENT)].offset = 1 << 20
        metadata.storage_data[place_of(metadata, RANDOM)].relative_path = "__7_0.distcp"

    edit_metadata(folder, move)
    size = (folder / "__0_0.distcp").stat().st_size
    rest = "; what it lacks is no weight, but the run can't be resumed from this copy"
    assert describe_checkpoint(folder, None).description.notes == (
        f"__0_0.distcp is truncated: {size} bytes{rest}",
        f"__7_0.distcp is missing{rest}",
    )
    edit_metadata(
        folder, lambda metadata: vars(metadata.storage_data[place_of(metadata, OTHER)]).update(offset=1 << 21)
    )
    assert refused(folder, "missing, truncated").findings[0].startswith("__0_0.distcp is truncated")


def test_no_release_stores_items_in_one_place() -> None:
    """In every golden checkpoint all items of `.metadata` have bytes of their own."""
    folders = [path.parent for path in sorted(GOLDEN.glob("*/*/.metadata"))]
    assert len(folders) >= 17
    for folder in folders:
        stored = StoredEntries(unpickler.load((folder / ".metadata").read_bytes(), ""))
        assert len(stored.infos) > len(stored.tensors)
        assert check_places(folder, stored.infos, stored.tensors) == ()


# --- the state that all ranks share


def test_a_common_state_that_is_promised_and_gone_is_refused(tmp_path: Path) -> None:
    """metadata.json says that there is a common.pt: without it the copy is not whole, whatever else is."""
    folder = write_stored(tmp_path / "iter_0000010", {WEIGHT: torch.ones(3)}, {"num_layers": 1})
    (folder / "common.pt").unlink()
    (folder / "run_config.yaml").write_text("model: {num_layers: 1}")
    error = refused(folder, r"has lost its common\.pt")
    assert error.where == {"folder": str(folder)}
    assert "common_backend: torch" in str(error.expected)
    assert "copy the folder again" in str(error.advice)


def test_a_common_state_that_is_an_item_keeps_the_promise(tmp_path: Path) -> None:
    """megatron-core 0.19 promises no common.pt; and where an item has the state, nothing is lost."""
    state = {WEIGHT: torch.ones(3), "common_state/shard_0_1": [{"iteration": 10}]}
    folder = write_plain(tmp_path / "iter_0000010", state)
    for promised in ({}, {"common_backend": "torch"}, {"common_backend": None}):
        (folder / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist", **promised}))
        assert describe_checkpoint(folder, None).description.args is None
    plain = write_plain(tmp_path / "iter_0000020", {WEIGHT: torch.ones(3)})
    (plain / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist"}))
    assert describe_checkpoint(plain, None).description.args is None
