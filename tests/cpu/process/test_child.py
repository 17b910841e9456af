"""Claims of `pp_export.process.child`: what a child process of ours knows of the job around it, and what
it can import.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import pp_export
from pp_export.process import child
from tests.fixtures.releases import python_3_11

LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def test_no_child_is_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launcher variables are left out, so that no child joins the job's ranks; the rest is inherited."""
    for name in LAUNCHER:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("TMPDIR", "/somewhere")
    found = child.environment()
    assert not set(LAUNCHER) & found.keys()
    assert found["TMPDIR"] == "/somewhere"
    assert os.environ["RANK"] == "1"


def test_a_child_is_offline_and_has_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the job set, a child asks no network, sees no GPU, and takes one core."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    found = child.environment()
    assert (found["HF_HUB_OFFLINE"], found["TRANSFORMERS_OFFLINE"]) == ("1", "1")
    assert (found["CUDA_VISIBLE_DEVICES"], found["OMP_NUM_THREADS"]) == ("", "1")


@python_3_11
def test_a_child_imports_what_its_parent_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries of the parent's path are there in order and absolute; the working directory is not searched."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "mine.py").write_text("")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "stranger.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", "lib", *sys.path])
    entries = child.environment()["PYTHONPATH"].split(os.pathsep)
    assert entries[0] == str(tmp_path / "lib")
    assert entries[-1] == child.PACKAGE_PARENT
    assert all(map(os.path.isabs, entries))
    code = (
        "import json; from importlib.util import find_spec;"
        "print(json.dumps([bool(find_spec(name)) for name in ('mine', 'pp_export', 'stranger')]))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code],
        cwd=elsewhere,
        env=child.environment(),
        check=True,
        capture_output=True,
    )
    assert json.loads(answer.stdout) == [True, True, False]


def test_the_package_is_found_without_being_installed() -> None:
    """The folder that children work in is the one above the package."""
    assert Path(child.PACKAGE_PARENT) / "pp_export" == Path(pp_export.__file__).resolve().parent
