"""Claims of `pp_export.disk.litter` and `pp_export.disk.owner`: what killed runs have left is named with its
owner, put right, and removed only where the run is proved to be dead and the folder its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pp_export import cli
from pp_export.core.errors import TargetError
from pp_export.disk import folders, litter, owner
from pp_export.disk.folders import record_beside, set_aside
from pp_export.disk.owner import Life
from tests.fixtures.staged import Staged, model, write

TARGET = "my run"


def left_by(root: Path, run_id: str = "a1", **changes: Any) -> Path:
    """A staging folder as a run on this host leaves it that is killed; the record may say something else."""
    staging = folders.staging_path(root / TARGET, run_id)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    owner.claim(staging, run_id, [])
    folders.make_folder(staging)
    write(staging, {"model-00001-of-00002.safetensors": b"part"})
    record = record_beside(staging)
    record.write_text(json.dumps(json.loads(record.read_text()) | {"pid": ended.pid} | changes))
    return staging


def only(root: Path) -> litter.Leftover:
    (found,) = litter.leftovers_of(root / TARGET)
    return found


def test_what_is_left_is_named_with_owner_and_age(tmp_path: Path) -> None:
    """Its path, who made it, when, and why that one is known to be gone; once, though record and folder are
    two.
    """
    staging = left_by(tmp_path, began=time.time() - 3 * 86400)
    left = only(tmp_path)
    assert left.path == staging
    assert left.owner is not None
    assert str(left) == f"{staging}: left by a run that began 3 days ago, of {left.owner}"
    assert f"process {left.owner.pid}" in str(left)
    assert left.life() == (Life.DEAD, f"process {left.owner.pid} of this host is gone")
    assert litter.leftovers_of(tmp_path / TARGET, "a1") == [], "the run itself leaves nothing"
    assert litter.leftovers_of(tmp_path / "another") == []


def test_a_run_that_lives_is_no_litter(tmp_path: Path) -> None:
    """Its process is known by number and starting time: another process of that number is another."""
    staging = folders.staging_path(tmp_path / TARGET, "a1")
    owner.claim(staging, "a1", [])
    folders.make_folder(staging)
    assert only(tmp_path).life() == (Life.ALIVE, f"process {os.getpid()} runs on this host")
    assert [each.is_removed for each in litter.remove(tmp_path)] == [False]
    assert staging.is_dir()
    record = record_beside(staging)
    record.write_text(json.dumps(json.loads(record.read_text()) | {"pid_started": "1"}))
    assert only(tmp_path).life()[0] is Life.DEAD


@pytest.mark.parametrize(
    ("changes", "life"),
    [
        ({"boot": "another"}, Life.DEAD),
        ({"boot": "another", "machine": "another"}, Life.UNKNOWN),
        ({"boot": "another", "host": "localhost"}, Life.UNKNOWN),
        ({"pids": "a container's"}, Life.UNKNOWN),
        ({"host": "node7", "machine": "another", "boot": "another"}, Life.UNKNOWN),
    ],
)
def test_what_cannot_be_proved_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], life: Life
) -> None:
    """A host that was started again is proof; another host, or the process numbers of a container, are none:
    what is there is kept, and a line to remove it is given.
    """
    here = {"host": "node1", "machine": "m1", "boot": "b1", "pids": "p1"}
    monkeypatch.setattr(owner, "_here", lambda: here)
    staging = left_by(tmp_path, **changes)
    assert only(tmp_path).life(ask_slurm=True)[0] is life
    (removal,) = litter.remove(tmp_path)
    assert removal.is_removed == (life is Life.DEAD)
    assert staging.exists() != removal.is_removed
    assert removal.command == f"rm -r -- '{staging}'"


SLURM = {"slurm_job": "12", "slurm_cluster": "town", "host": "node7", "boot": "another", "machine": "another"}


@pytest.mark.parametrize(
    ("cluster", "squeue", "life"),
    [
        ("town", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", Life.DEAD),
        ("town", "echo COMPLETED", Life.DEAD),
        ("town", "echo PENDING", Life.DEAD),
        ("town", "echo RUNNING", Life.ALIVE),
        ("town", "echo COMPLETING", Life.ALIVE),
        ("town", "echo 'no connection' >&2; exit 1", Life.UNKNOWN),
        ("another", "exit 1", Life.UNKNOWN),
    ],
)
def test_slurm_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: str, squeue: str, life: Life
) -> None:
    """A job that its own cluster doesn't know any more, or doesn't run, is dead; one that can't be asked
    about is unknown.
    """
    for name, text in (("squeue", squeue), ("scontrol", f"echo 'ClusterName             = {cluster}'")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    left_by(tmp_path, **SLURM)
    assert only(tmp_path).life(ask_slurm=True)[0] is life
    assert only(tmp_path).life()[0] is Life.UNKNOWN, "nobody is asked at the start of an export"


def test_a_job_that_was_started_again_is_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm starts a job again only when its processes have ended."""
    left_by(tmp_path, **SLURM)
    for name, value in (("JOB_ID", "12"), ("CLUSTER_NAME", "town"), ("RESTART_COUNT", "1")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert only(tmp_path).life()[0] is Life.DEAD
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    assert only(tmp_path).life()[0] is Life.UNKNOWN


@pytest.mark.parametrize("record", [None, b"", b"{}", b"[" * 100_000, b'{"run_id": "another"}'])
def test_nothing_is_removed_on_the_word_of_a_name(tmp_path: Path, record: bytes | None) -> None:
    """A folder without a record of its own run is somebody's, whatever it is called; so is a link."""
    staging = left_by(tmp_path)
    if record is None:
        record_beside(staging).unlink()
    else:
        record_beside(staging).write_bytes(record)
    link = folders.staging_path(tmp_path / TARGET, "b2")
    link.symlink_to(staging)
    for name in (
        ".my run.pp_export-",
        ".my run.pp_export-xyz",
        "my run.pp_export-a1",
        ".my run.pp_export-a1-odd",
    ):
        (tmp_path / name).mkdir()
    before = sorted(os.listdir(tmp_path))
    assert [each.leftover.path for each in litter.remove(tmp_path)] == [staging]
    assert sorted(os.listdir(tmp_path)) == before


def test_the_command_removes_and_says_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`pp_export clean` takes the folder of the outputs, or one output; a dry run removes nothing."""
    staging = left_by(tmp_path)
    assert cli.main(["clean", str(tmp_path), "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith(f"would be removed: {staging}: left by")
    assert staging.is_dir()
    assert cli.main(["clean", str(tmp_path / TARGET)]) == 0
    assert capsys.readouterr().out.startswith(f"removed: {staging}")
    assert os.listdir(tmp_path) == []
    assert cli.main(["clean", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"killed exports have left nothing in {tmp_path}, or beside it\n"
    assert cli.main(["clean", str(tmp_path / "never")]) == 0
    assert "which does not exist" in capsys.readouterr().out
    assert cli.main(["clean", str(tmp_path / "never" / "there")]) == 1


def test_an_older_export_that_was_set_aside_comes_back(tmp_path: Path) -> None:
    """Where a run was killed between two renames, the older export gets its name again, and what the run
    left is removed.
    """
    staging = left_by(tmp_path)
    write(set_aside(staging), model("old", 2))
    (done,) = litter.put_right(tmp_path / TARGET)
    assert "has its name again" in done
    assert (tmp_path / TARGET / "config.json").read_bytes() == b"old"
    assert all(each.is_removed for each in litter.remove(tmp_path))
    assert os.listdir(tmp_path) == [TARGET]


def test_a_run_that_is_publishing_is_not_disturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes while another run's process changes names is told so, and undoes nothing."""
    case = Staged(tmp_path / "root", "beside, overwrite")
    case.prepare()

    class StoppedHere(BaseException):
        pass

    def stop(*_: object, **__: object) -> None:
        raise StoppedHere

    with monkeypatch.context() as patch:
        patch.setattr("pp_export.disk.beside._move", stop)
        patch.setattr("pp_export.disk.beside._undo_after", stop)
        with pytest.raises(StoppedHere):
            case.publish("a1")
    before = sorted(os.listdir(case.target))
    with pytest.raises(TargetError, match="is being published there at this moment"):
        litter.put_right(case.target, "b2")
    assert sorted(os.listdir(case.target)) == before


@pytest.mark.parametrize("name", ["x" * 222, "x" * 223, "é" * 112, "x" * 256])
def test_names_that_are_too_long_are_refused_at_the_start(tmp_path: Path, name: str) -> None:
    """Whatever a run needs beside the output fits, or the error says how long a name may be; nothing raises
    in the cleaning up either.
    """
    staging = folders.staging_path(tmp_path / name, f"{time.time_ns():x}")
    if len(name.encode()) <= 222:
        folders.check_names(staging)
        owner.claim(staging, "a1", [])
        folders.make_folder(staging)
        folders.discard_folder(staging)
        assert os.listdir(tmp_path) == []
        return
    with pytest.raises(TargetError, match="the output's name is too long") as caught:
        folders.check_names(staging)
    assert caught.value.expected == "a name of at most 222 bytes"
    folders.discard_folder(staging)


def test_a_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    """Also where each name of it is short enough."""
    deep = tmp_path.joinpath(*["d" * 200] * 20)
    with pytest.raises(TargetError, match="the output's path is too long"):
        folders.check_names(folders.staging_path(deep / "x", "a1"))
