"""Claims: a filesystem fault of one rank of several ends all of them, the output is what it was or is proved,
one report says which, and the next export has the right bytes. Sampled; one process is tried at every call.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import pp_export
from tests.cpu.conftest import Checkpoint, Reference
from tests.fixtures.exports import RememberedDefinition, export_here, files_of
from tests.fixtures.processes import is_alive, run_python, torchrun

TIMEOUT_S = 90
GRID = ("--pipeline-parallel", "1", "--tensor-parallel", "2", "--leaders-per-stage", "all")
MODES: dict[str, tuple[str, ...]] = {
    "overwrite": ("--overwrite",),
    "model": ("--overwrite", "--contents", "model"),
}
# Ranks, mode, and which call of which rank meets what: of rank 1, whose calls are for shards alone, the first
# ones, and of rank 0 those of making folders, of shards, and at the end.
SAMPLES = (
    (2, "overwrite", "ENOSPC:2@1"),
    (2, "overwrite", "EIO:7@1"),
    (2, "model", "ESTALE:30:sticky@1"),
    (2, "model", "short write:5@1"),
    (2, "overwrite", "SIGKILL:12@1"),
    (2, "overwrite", "EDQUOT:40@0"),
    (2, "model", "lost reply:90@0"),
    (2, "model", "SIGKILL:120@0"),
    (2, "overwrite", "slow disk:8@1"),
    (2, "overwrite", "slow disk:60@0"),
    (4, "overwrite", "EIO:3@3"),
    (4, "model", "SIGKILL:6@2"),
)


@pytest.fixture
def inputs(checkpoint: Checkpoint, reference: Reference) -> dict[str, Any]:
    return {"checkpoint": checkpoint("qwen2", "tp2pp2"), "reference": reference("qwen2")}


@pytest.mark.parametrize(("num_ranks", "mode", "fault"), SAMPLES, ids=str)
def test_a_fault_of_one_rank(
    inputs: dict[str, Any], tmp_path: Path, num_ranks: int, mode: str, fault: str
) -> None:
    """Whatever rank meets it: all end in time, no process stays, the report is right, a rerun is whole."""
    state, target = tmp_path / "state", tmp_path / "parent" / "export"
    state.mkdir()
    target.parent.mkdir()
    export_here(**inputs, output=target, max_shard_size="100KB")
    if mode == "model":
        (target / "notes.txt").write_text("theirs")
    before = files_of(target)
    RememberedDefinition.write(state / "answers.json")
    words = [f"--{name}={value}" for name, value in inputs.items()]
    words += [f"--output={target}", f"--report={tmp_path / 'report.json'}", *GRID, *MODES[mode]]
    words += ["--stall-seconds=5"] if fault.startswith("slow") else []  # less than the disk takes
    command = ("-m", "tests.fixtures.faulty", str(state), f"disk:{fault}", "export", *words)
    ended = run_python(torchrun(num_ranks, *command), tmp_path / "output", timeout_s=TIMEOUT_S)

    assert not any(is_alive(int((state / str(rank)).read_text())) for rank in range(num_ranks))
    report = json.loads((tmp_path / "report.json").read_text())
    found = files_of(target)
    assert report["status"] == ("ok" if ended.status == 0 else "failed")
    assert report["status"] == "failed" or not fault.startswith("slow")
    if report["status"] == "ok":
        assert found != before
        assert pp_export.verify(target).ok
    else:
        assert found == before
        assert not fault.startswith("slow") or "no progress for 5 s" in report["error"]["what"]
        assert "may be a defect" not in json.dumps(report["error"])
    if not fault.startswith("SIGKILL"):
        assert os.listdir(target.parent) == ["export"]

    contents = {"contents": "model"} if mode == "model" else {}
    export_here(**inputs, output=target, overwrite=True, **contents)
    assert pp_export.verify(target).ok
    assert os.listdir(target.parent) == ["export"]
