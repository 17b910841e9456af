"""Claims: docs/tutorial.md does what it says. Its commands are run here one after another, in one folder, as
a reader types them; only the packages and the server are left to the reader. `make tutorial` installs the
packages too.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from pp_export import shipped
from tests.cpu.conftest import Checkpoint, Reference
from tests.fixtures.processes import ROOT
from tests.fixtures.tutorial import BLOCKS, PAGE, commands, installation, run, variables


def test_only_installations_and_the_server_are_left_to_the_reader() -> None:
    """What isn't run below installs something or asks the server."""
    left = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines() if line[0] != " "]
    assert {line.split()[0] for line in left} == {"pip", "vllm", "curl"}
    assert len(BLOCKS) == PAGE.count("```") // 2
    assert installation(Path("/dist/a.whl")) == "pip install torch==2.13.0 '/dist/a.whl'"


def test_every_command_works(checkpoint: Checkpoint, reference: Reference, tmp_path: Path) -> None:
    """All of them succeed, with the reader's own folders for those of the page; the folder is exported,
    and what is printed to files is what was asked for.
    """
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pp_export").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pp_export "$@"\n')
    (tmp_path / "bin" / "pp_export").chmod(0o755)
    own = {
        "CHECKPOINT": str(checkpoint("qwen2", "tp2pp2")),
        "REFERENCE": str(reference("qwen2")),
        "OUTPUT": str(tmp_path / "my_run"),
    }
    assert variables() == own.keys()
    path = os.pathsep.join([str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    env = os.environ | own | {"PYTHONPATH": str(ROOT), "PATH": path, "HF_HUB_OFFLINE": "1"}
    printed = []
    for text in commands():
        ended = run(text, tmp_path, env, capture=True)
        assert ended.returncode == 0, (text, ended.stderr)
        printed.append(ended.stdout)
    assert json.loads((tmp_path / "report.json").read_text())["output"] == own["OUTPUT"]
    assert any(text.startswith("ok ") for text in printed)
    assert (tmp_path / "job.sbatch").read_text() == shipped.template("slurm-many-nodes")
    assert (tmp_path / "job.yaml").read_text() == shipped.template("job-several-nodes")
