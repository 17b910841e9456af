"""Claims: the pipelines of docs/ci.md do what the page says, as far as they are shell: run here step by step,
as the services run them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cpu.conftest import Checkpoint, Reference
from tests.fixtures.processes import ROOT

PAGE = (ROOT / "docs" / "ci.md").read_text()
PIPELINES: list[dict[Any, Any]] = [
    yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
]


def github(steps: list[dict[str, Any]], folder: Path, env: dict[str, str]) -> tuple[list[str], str]:
    """The names of the steps that failed, and all that was printed. Those for failures run after one only;
    nothing is installed, and nothing is uploaded.
    """
    failed: list[str] = []
    printed = ""
    for step in steps:
        if step["name"] == "install" or "run" not in step or bool(failed) != (step.get("if") == "failure()"):
            continue
        ended = shell(step["run"], folder, env)
        printed += ended.stdout + ended.stderr
        failed += [step["name"]] * (ended.returncode != 0)
    return failed, printed


def shell(script: str, folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    own = {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", script],
        cwd=folder,
        env=os.environ | own | env,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture
def env(checkpoint: Checkpoint, reference: Reference, tmp_path: Path) -> dict[str, str]:
    """What a user edits at the top."""
    paths = {"CHECKPOINT": checkpoint("qwen2", "tp2pp2"), "REFERENCE": reference("qwen2")}
    return {name: str(path) for name, path in paths.items()} | {"OUTPUT": str(tmp_path / "export")}


def test_github_exports_and_verifies(tmp_path: Path, env: dict[str, str]) -> None:
    """All steps succeed; the folder and both reports are there, under the names that are uploaded."""
    assert github(PIPELINES[0]["jobs"]["export"]["steps"], tmp_path, env)[0] == []
    assert json.loads((tmp_path / "report.json").read_text())["status"] == "ok"
    assert json.loads((tmp_path / "verify.json").read_text())["ok"]
    assert Path(env["OUTPUT"], "config.json").is_file()


def test_github_says_what_failed(tmp_path: Path, env: dict[str, str]) -> None:
    """A failed export is an annotation that names the fault and the file; no folder is made."""
    (tmp_path / "reference").mkdir()
    (tmp_path / "reference" / "config.json").write_text("{")
    broken = {**env, "REFERENCE": str(tmp_path / "reference")}
    failed, printed = github(PIPELINES[0]["jobs"]["export"]["steps"], tmp_path, broken)
    assert failed == ["export"]
    [annotation] = [line for line in printed.splitlines() if line.startswith("::error title=pp_export::")]
    assert str(tmp_path / "reference" / "config.json") in annotation
    assert not Path(env["OUTPUT"]).exists()


def test_github_says_what_a_folder_lacks(tmp_path: Path, env: dict[str, str]) -> None:
    """A folder that was damaged between the steps fails the second one, and each fault is an annotation."""
    export, verify, *others = PIPELINES[0]["jobs"]["export"]["steps"][1:]
    damage = {"name": "damage", "run": 'truncate -s -1 "$OUTPUT"/model-00001-of-*.safetensors'}
    failed, printed = github([export, damage, verify, *others], tmp_path, env)
    assert failed == ["verify"]
    assert "::error title=pp_export::wrong-size: model-00001-of-" in printed


def test_gitlab_exports_and_verifies(tmp_path: Path, env: dict[str, str]) -> None:
    """The script succeeds, and its artifacts are there."""
    job = PIPELINES[1]["export"]
    for line in job["script"]:
        assert shell(line, tmp_path, env).returncode == 0
    assert all((tmp_path / name).is_file() for name in job["artifacts"]["paths"])
