"""Claims of `pp_export.write_consolidate_script`: the script that lies with a save makes the model of it,
wherever both have moved, and takes what the environment says.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pp_export
from pp_export.core.errors import ExportError
from tests.cpu.conftest import RankSaves
from tests.fixtures.processes import ROOT
from tests.fixtures.releases import transformers_5
from tests.fixtures.write_rank_shards import tensors_of

pytestmark = transformers_5


def run(script: Path, *flags: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The script as users start it, from some other folder."""
    known = {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [str(script), *flags],
        cwd="/",
        env=os.environ | known | env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_it_makes_the_model_wherever_it_lies(rank_saves: RankSaves, tmp_path: Path) -> None:
    """Beside the moved folder, whose name has a space; what the environment and flags say holds."""
    folder = Path(shutil.copytree(rank_saves.save("qwen2", "verl"), tmp_path / "actor"))
    script = pp_export.write_consolidate_script(folder)
    assert os.access(script, os.X_OK)
    assert "--input-ranks 4" in script.read_text()
    moved = tmp_path / "moved here"
    folder.rename(moved)
    done = run(moved / script.name)
    assert done.returncode == 0, done.stderr
    true = tensors_of(rank_saves.source("qwen2"))
    made = tensors_of(tmp_path / "moved here-hf")
    assert all(torch.equal(made[name], value) for name, value in true.items())

    output, report = tmp_path / "other", tmp_path / "report.json"
    env = {"OUTPUT": str(output), "DTYPE": "bfloat16", "PROCESSES": "2", "THREADS": "1"}
    done = run(moved / script.name, "--report", str(report), **env)
    assert done.returncode == 0, done.stderr
    said = json.loads(report.read_text())
    assert len(said["peak_anonymous_bytes"]) == 2
    assert said["options"]["threads"] == 1
    assert said["options"]["resume"]
    assert {value.dtype for value in tensors_of(output).values()} == {torch.bfloat16}


def test_it_insists_on_the_ranks_that_there_were(rank_saves: RankSaves, tmp_path: Path) -> None:
    """A file that is lost later is missed, also where nobody else could tell; the reference is the one that
    was named, or what the environment says.
    """
    folder = Path(shutil.copytree(rank_saves.save("qwen2", "hf"), tmp_path / "it's here"))
    script = pp_export.write_consolidate_script(folder, reference=rank_saves.source("qwen2"))
    for path in folder.glob("shard-00004-*"):
        path.unlink()
    done = run(script)
    assert done.returncode == 1
    assert "rank 3 of 4 has no file here" in done.stderr
    done = run(script, REFERENCE=str(tmp_path / "nowhere"))
    assert "the reference folder does not exist" in done.stderr
    assert not (tmp_path / "it's here-hf").exists()


def test_it_may_be_written_before_the_ranks_have_saved(tmp_path: Path) -> None:
    """Then it says nothing of their number, unless it is told. There must be a folder."""
    assert "--input-ranks" not in pp_export.write_consolidate_script(tmp_path).read_text()
    assert "--input-ranks 8" in pp_export.write_consolidate_script(tmp_path, ranks=8).read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["consolidate.sh"]
    with pytest.raises(ExportError, match="no folder to put the script into"):
        pp_export.write_consolidate_script(tmp_path / "absent")
