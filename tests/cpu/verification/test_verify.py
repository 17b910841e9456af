"""Claims of `pp_export.verification.verify`: every damage to a folder or a shard is found and named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pp_export.core.errors import OptionError, VerificationError
from pp_export.verification import KINDS, content, verify_folder, verify_staged_shard, verify_structure
from tests.fixtures.damage import edit, flip, in_tensor
from tests.fixtures.defects import ALL_DEFECTS, SHARD_DEFECTS
from tests.fixtures.hf_folders import (
    DOWN,
    LAST,
    MANIFEST,
    MIDDLE,
    NORM,
    SHARDS,
    as_stranger,
    found,
    seal,
    shard_manifest,
    stage,
)


def test_whole_folder_is_whole(sealed: Path) -> None:
    """A folder without a defect has no fault at any depth; every byte of every recorded file is read once."""
    result = verify_folder(sealed)
    recorded = json.loads((sealed / MANIFEST).read_bytes())["files"]
    assert result.faults == ()
    assert result.ok
    assert result.made_by_us
    assert result.notes == ("not compared with the model's definition: it was not asked for",)
    assert result.definition is None
    assert result.depth == "full"
    assert result.num_tensors == 9
    assert result.num_files == len(recorded) + 2
    assert result.num_bytes_read == sum(record["bytes"] for record in recorded.values())
    quick = verify_folder(sealed, quick=True)
    assert quick.ok
    assert quick.depth == "structure"
    assert quick.num_bytes_read == 0
    assert verify_structure(sealed) == []


@pytest.mark.parametrize("name", ALL_DEFECTS)
def test_defect_is_found(folder: Path, name: str) -> None:
    """Every single defect is found; a fault names its kind, its file, and the tensor where there is one."""
    file, tensor, kind, damage = ALL_DEFECTS[name]
    damage(folder)
    result = verify_folder(folder, threads=1)
    assert (file, tensor, kind) in found(result), "\n".join(map(str, result.faults))
    assert not result.ok
    assert {fault.kind for fault in result.faults} <= KINDS.keys()
    assert json.loads(json.dumps(result.to_json()))["ok"] is False


def test_one_defect_is_not_blamed_on_others(folder: Path) -> None:
    """One flipped bit gives exactly one fault: that tensor of that file."""
    flip(MIDDLE, in_tensor(NORM))(folder)
    assert found(verify_folder(folder)) == {(MIDDLE, NORM, "wrong-digest")}


def test_folder_of_another_maker(folder: Path) -> None:
    """A folder without our manifest is checked in structure; the result says that no values were compared."""
    result = verify_folder(as_stranger(folder))
    assert result.ok
    assert not result.made_by_us
    assert result.depth == "structure; no manifest, so values can't be checked"
    assert result.num_tensors == 9
    assert any(MANIFEST in note for note in result.notes)
    (folder / MIDDLE).unlink()
    assert (MIDDLE, None, "missing-file") in found(verify_folder(folder))


def test_subsets_are_all_files(folder: Path) -> None:
    """The n subsets read every recorded file once between them, and exactly one finds a damage."""
    full = verify_folder(folder)
    for num_subsets in (1, 2, 5, 20):
        shares = [verify_folder(folder, subset=(i + 1, num_subsets)) for i in range(num_subsets)]
        assert sum(share.num_bytes_read for share in shares) == full.num_bytes_read
    for file in [*SHARDS, "config.json", "tokenizer.json", "assets/template.jinja"]:
        edit(file, lambda data: data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])(folder)
        num_finders = 0
        for i in range(3):
            share = verify_folder(folder, subset=(i + 1, 3))
            num_finders += any(fault.file == file and fault.kind == "wrong-digest" for fault in share.faults)
        assert num_finders == 1
        assert share.depth == "subset 3/3"


def test_progress_is_told(folder: Path) -> None:
    """on_bytes hears of every byte, and what it raises ends the verification."""
    seen: list[int] = []
    assert verify_folder(folder, on_bytes=seen.append, threads=2).num_bytes_read == sum(seen) > 0

    def stop(num_bytes: int) -> None:
        raise OSError(28, "told to stop")

    with pytest.raises(OSError, match="told to stop"):
        verify_folder(folder, on_bytes=stop)
    with pytest.raises(OSError, match="told to stop"):
        verify_staged_shard(folder, stage(folder, shard_manifest(folder / SHARDS[0])), on_bytes=stop)


def test_options_that_make_no_sense(sealed: Path) -> None:
    """Wrong options and a missing folder are errors of the tree, not faults."""
    for options in (
        {"subset": (0, 3)},
        {"subset": (4, 3)},
        {"quick": True, "subset": (1, 2)},
        {"threads": 0},
    ):
        with pytest.raises(OptionError):
            verify_folder(sealed, **options)
    with pytest.raises(VerificationError):
        verify_folder(sealed / "absent")
    with pytest.raises(VerificationError):
        verify_structure(sealed / "config.json")


def test_faulty_folder_is_not_loaded(folder: Path) -> None:
    """A folder with a fault is not handed to a loader that would trust it."""
    flip(MIDDLE, in_tensor(DOWN))(folder)
    result = verify_folder(folder, load=True)
    assert found(result) == {(MIDDLE, DOWN, "wrong-digest")}
    assert any("not loaded" in note for note in result.notes)


def test_whole_shard(folder: Path) -> None:
    """A shard that equals its record has no fault, and every byte of it is read once."""
    for name in SHARDS:
        seen: list[int] = []
        assert verify_staged_shard(folder, stage(folder, shard_manifest(folder / name)), seen.append) == []
        assert sum(seen) == (folder / name).stat().st_size


def test_a_staged_shard_is_digested_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its SHA-256 was taken in memory, and fast digests tie the bytes on the disk to those: re-reading takes
    none, and still finds every single byte that changed, in the header as in the tensors.
    """
    monkeypatch.setattr(content, "sha256", None)
    file = stage(folder, shard_manifest(folder / MIDDLE))
    data = (folder / MIDDLE).read_bytes()
    assert verify_staged_shard(folder, file) == []
    for position in range(len(data)):
        (folder / MIDDLE).write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        assert verify_staged_shard(folder, file), position


@pytest.mark.parametrize("name", SHARD_DEFECTS)
def test_damaged_shard(folder: Path, name: str) -> None:
    """What is wrong with a shard or with its record is found by a rank that has only these two."""
    _, tensor, _, damage = ALL_DEFECTS[name]
    record = shard_manifest(folder / MIDDLE)
    damage(folder)
    if name.startswith("manifest"):
        record = json.loads((folder / MANIFEST).read_bytes())["shards"][1]
    faults = verify_staged_shard(folder, stage(folder, record, MIDDLE))
    assert {fault.file for fault in faults} == {MIDDLE}
    assert tensor is None or tensor in {fault.tensor for fault in faults}


@pytest.mark.parametrize("size", [0, 5, 100, -1])
def test_cut_shard_names_what_is_cut(folder: Path, size: int) -> None:
    """A truncated shard has a wrong size, and what is cut is named."""
    record, path = shard_manifest(folder / MIDDLE), folder / MIDDLE
    path.write_bytes(path.read_bytes()[:size])
    faults = verify_staged_shard(folder, stage(folder, record))
    assert "wrong-size" in {fault.kind for fault in faults}
    assert record["tensors"][-1]["name"] in {fault.tensor for fault in faults}


def test_pipe_under_a_shard_name_does_not_block(folder: Path) -> None:
    """A pipe in the place of a shard is a fault at once; nobody waits for a writer."""
    record = shard_manifest(folder / MIDDLE)
    (folder / MIDDLE).unlink()
    os.mkfifo(folder / MIDDLE)
    assert {fault.kind for fault in verify_staged_shard(folder, stage(folder, record))} == {"unreadable-file"}


def test_swapped_shards_are_found(folder: Path) -> None:
    """Two shard files under each other's names are both faulty."""
    records = [shard_manifest(folder / name) for name in SHARDS]
    (folder / SHARDS[0]).rename(folder / "x")
    (folder / LAST).rename(folder / SHARDS[0])
    (folder / "x").rename(folder / LAST)
    assert verify_staged_shard(folder, stage(folder, records[0]))
    assert verify_staged_shard(folder, stage(folder, records[2]))
    assert {SHARDS[0], LAST} <= {fault.file for fault in verify_folder(folder).faults}


def test_a_forgery_that_fits_is_not_found(folder: Path) -> None:
    """Whoever changes a weight and all records with it passes, as docs/verify.md says: that takes a
    signature.
    """
    flip(MIDDLE, in_tensor(DOWN))(folder)
    assert not verify_folder(folder).ok
    seal(folder)
    assert verify_folder(folder).ok
