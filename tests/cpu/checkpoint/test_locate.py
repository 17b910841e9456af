"""Claims of `pp_export.checkpoint.locate` and `formats`: the folder that is meant is found, and what it isn't
is said.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pp_export.checkpoint import locate
from pp_export.checkpoint.dcp.format import DcpFormat
from pp_export.checkpoint.formats import describe_checkpoint, format_of, is_checkpoint, is_finished
from pp_export.checkpoint.legacy.format import LegacyFormat
from pp_export.checkpoint.locate import TRACKER, iteration_of
from pp_export.core.errors import CheckpointError

TORCH_DIST = json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1})


def iteration_folder(checkpoint: Path, iteration: int | None) -> Path:
    return locate.iteration_folder(checkpoint, iteration, is_checkpoint)


def finished(folder: Path) -> Path:
    """A folder with the marks of a finished torch_dist save."""
    folder.mkdir(parents=True)
    (folder / ".metadata").write_bytes(b"...")
    (folder / "metadata.json").write_text(TORCH_DIST)
    (folder / "__0_0.distcp").write_bytes(b"...")
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkpoint of iterations 10 and 20 and a release, whose tracker says 10."""
    for name in ("iter_0000010", "iter_0000020", "release"):
        finished(tmp_path / "ckpt" / name)
    (tmp_path / "ckpt" / TRACKER).write_text("10\n")
    return tmp_path / "ckpt"


def test_the_tracker_file_says_which_iteration(root: Path) -> None:
    """Given the root, the folder that the tracker names is read: a number, with or without blanks, or
    release.
    """
    assert iteration_folder(root, None) == root / "iter_0000010"
    for text, name in (("20", "iter_0000020"), (" 20 \n", "iter_0000020"), ("release", "release")):
        (root / TRACKER).write_text(text)
        assert iteration_folder(root, None) == root / name
    long = finished(root / "iter_12345678")
    (root / TRACKER).write_text("12345678")
    assert iteration_folder(root, None) == long


def test_an_iteration_that_is_asked_for_goes_before_the_tracker(root: Path) -> None:
    """--iteration chooses among the folders, also where there is no tracker."""
    assert iteration_folder(root, 20) == root / "iter_0000020"
    (root / TRACKER).unlink()
    assert iteration_folder(root, 20) == root / "iter_0000020"


def test_a_missing_iteration_lists_those_that_are_there(root: Path) -> None:
    """A folder that isn't there is refused with those that are, whoever named it."""
    (root / TRACKER).write_text("15")
    for iteration, name in ((30, "iter_0000030"), (None, "iter_0000015")):
        with pytest.raises(CheckpointError, match=f"has no folder {name}") as caught:
            iteration_folder(root, iteration)
        assert caught.value.got == "iter_0000010, iter_0000020, release"
        assert "--iteration" in str(caught.value.advice)


def test_an_iteration_folder_may_be_given_itself(root: Path) -> None:
    """An iteration folder, or any folder with a checkpoint's marks, is taken as it is."""
    assert iteration_folder(root / "iter_0000020", None) == root / "iter_0000020"
    assert iteration_folder(root / "iter_0000020", 20) == root / "iter_0000020"
    other = finished(root.parent / "weights")
    assert iteration_folder(other, None) == other


def test_a_folder_of_another_iteration_is_refused(root: Path) -> None:
    """--iteration that contradicts the iteration folder is refused, naming both."""
    with pytest.raises(CheckpointError, match="different iterations") as caught:
        iteration_folder(root / "iter_0000020", 10)
    assert (caught.value.expected, caught.value.got) == ("10", "20")


@pytest.mark.parametrize("text", ["", "ten", "-10", "1.5", "²", "../../etc", "10 20"])
def test_a_tracker_that_names_no_iteration_is_refused(root: Path, text: str) -> None:
    """A tracker file with anything but a number or `release` is refused with what it says."""
    (root / TRACKER).write_text(text)
    with pytest.raises(CheckpointError, match="names no iteration") as caught:
        iteration_folder(root, None)
    assert caught.value.where == {"file": str(root / TRACKER)}


def test_a_tracker_that_is_no_text_is_refused(root: Path) -> None:
    """A tracker file that isn't UTF-8 is refused like one that names nothing."""
    (root / TRACKER).write_bytes(b"\xff\xfe10")
    with pytest.raises(CheckpointError, match="names no iteration"):
        iteration_folder(root, None)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    """A missing folder, a file and an empty folder are refused, saying what to give instead."""
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for name, words in (("absent", "does not exist"), ("file", "is a file, not a folder")):
        with pytest.raises(CheckpointError, match=words):
            iteration_folder(tmp_path / name, None)
    with pytest.raises(CheckpointError, match=TRACKER) as caught:
        iteration_folder(tmp_path / "empty", None)
    assert "iter_*" in str(caught.value.advice)
    with pytest.raises(CheckpointError, match="holds no Megatron checkpoint"):
        format_of(tmp_path / "empty")


def test_iteration_numbers_come_from_folder_names() -> None:
    """Only names of the form that Megatron gives carry a number."""
    names = ("iter_0000010", "iter_12345678", "release", "iter_10", "iter_00000x0", "weights")
    assert [iteration_of(Path(name)) for name in names] == [10, 12345678, None, None, None, None]


def test_an_unfinished_save_is_refused(root: Path) -> None:
    """Data without `.metadata`, which is written last, is an unfinished save and is found as such."""
    folder = root / "iter_0000010"
    (folder / ".metadata").unlink()
    for given in (root, folder):
        assert iteration_folder(given, None) == folder
    with pytest.raises(CheckpointError, match="the save is unfinished") as caught:
        describe_checkpoint(folder, None)
    assert caught.value.where == {"folder": str(folder)}
    assert "earlier iteration" in str(caught.value.advice)


def test_a_save_without_its_last_file_is_refused(root: Path) -> None:
    """`metadata.json` is written last of all; without it a save by megatron-core is unfinished, and one
    without megatron-core's files is plain DCP.
    """
    (root / "iter_0000010" / "metadata.json").unlink()
    assert isinstance(format_of(root / "iter_0000010"), DcpFormat)
    (root / "iter_0000010" / "common.pt").write_bytes(b"...")
    with pytest.raises(CheckpointError, match=r"no metadata\.json: the save is unfinished"):
        describe_checkpoint(root / "iter_0000010", None)
    (root / "iter_0000020" / ".metadata").unlink()
    (root / "iter_0000020" / "__0_0.distcp").unlink()
    with pytest.raises(CheckpointError, match=r"metadata\.json but no \.metadata"):
        describe_checkpoint(root / "iter_0000020", None)


def test_other_formats_are_refused_by_their_name(root: Path) -> None:
    """zarr, other backends, adapters and ModelOpt checkpoints are refused as what they are."""
    zarr, adapter, modelopt = (root / name for name in ("iter_0000010", "iter_0000020", "release"))
    (zarr / "metadata.json").write_text(json.dumps({"sharded_backend": "zarr", "sharded_backend_version": 1}))
    with pytest.raises(CheckpointError, match="stored as zarr arrays") as caught:
        describe_checkpoint(zarr, None)
    assert "0.15" in str(caught.value.advice)
    (zarr / "metadata.json").write_text(json.dumps({"sharded_backend": "other"}))
    with pytest.raises(CheckpointError, match="backend can't be read") as caught:
        describe_checkpoint(zarr, None)
    assert (caught.value.expected, caught.value.got) == ("torch_dist", "other")
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"an adapter \(LoRA\)"):
        describe_checkpoint(adapter, None)
    (modelopt / "modelopt_state").mkdir()
    with pytest.raises(CheckpointError, match="ModelOpt"):
        describe_checkpoint(modelopt, None)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '"torch_dist"', "null"])
def test_a_damaged_metadata_json_is_refused(root: Path, text: str) -> None:
    """A `metadata.json` that is no JSON or lacks the backend is refused by name."""
    path = root / "iter_0000010" / "metadata.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r"metadata\.json can't be read") as caught:
        describe_checkpoint(path.parent, None)
    assert caught.value.where == {"file": str(path)}


def test_a_finished_save_is_accepted(root: Path) -> None:
    """The marks of a finished save are enough, whatever else lies there; legacy folders are known by name."""
    (root / "release" / "mp_rank_00_001").mkdir()
    assert isinstance(format_of(root / "release"), LegacyFormat)
    (root / "iter_0000010" / "tokenizer").mkdir()
    (root / "iter_0000010" / "metadata.json").write_text(TORCH_DIST[:-1] + ', "new_field": 1}')
    assert isinstance(format_of(root / "iter_0000010"), DcpFormat)


def test_folders_of_nemo_and_single_iterations_are_found(tmp_path: Path) -> None:
    """NeMo 2 keeps the weights in a folder of their own; a legacy iteration folder may be given itself."""
    weights = finished(tmp_path / "nemo" / "weights")
    (tmp_path / "nemo" / "context").mkdir()
    assert iteration_folder(tmp_path / "nemo", None) == weights
    (tmp_path / "iter_0000030" / "mp_rank_00").mkdir(parents=True)
    assert iteration_folder(tmp_path / "iter_0000030", None) == tmp_path / "iter_0000030"


def test_iterations_are_listed_in_order(root: Path) -> None:
    """All numbered folders, finished or not, and what the tracker names; a root that isn't there has none."""
    finished(root / "iter_12345678")
    (root / "iter_0000005").mkdir()
    (root / "iter_5").mkdir()
    assert locate.iterations(root) == [5, 10, 20, 12345678]
    assert locate.latest(root) == 10
    for text in ("release", None):
        (root / TRACKER).write_text(text) if text else (root / TRACKER).unlink()
        assert locate.latest(root) is None
    assert locate.iterations(root / "absent") == []
    with pytest.raises(CheckpointError, match="can't be read"):
        locate.iterations(root / "iter_0000010" / ".metadata")


def test_a_save_is_finished_when_its_last_file_is_there(root: Path) -> None:
    """megatron-core writes metadata.json last, plain DCP .metadata; a folder without either, or none at all,
    is not finished.
    """
    folder = root / "iter_0000020"
    assert is_finished(root, 20)
    (folder / "common.pt").touch()
    (folder / "metadata.json").unlink()
    assert not is_finished(root, 20)
    (folder / "common.pt").unlink()
    assert is_finished(root, 20)
    (folder / ".metadata").unlink()
    assert not is_finished(root, 20)
    assert not is_finished(root, 30)


def test_a_legacy_save_is_finished_when_the_tracker_says_so(root: Path) -> None:
    """Nothing in its folder tells, and the tracker file is written after all ranks' files."""
    for number in (30, 40):
        (root / f"iter_00000{number}" / "mp_rank_00").mkdir(parents=True)
    (root / TRACKER).write_text("30")
    assert is_finished(root, 30)
    assert not is_finished(root, 40)
    for text in ("", "release"):
        (root / TRACKER).write_text(text)
        assert not is_finished(root, 30)
