"""Claims: docs/tutorial.md does what it says. Its commands are run here one after another, in one folder, as
a reader types them; only the packages and the server are left to the reader.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from pp_export import shipped
from tests.cpu.conftest import Checkpoint, Reference
from tests.fixtures.processes import ROOT

PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(bash|sh|text)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def test_only_installations_and_the_server_are_left_to_the_reader() -> None:
    """What isn't run below installs something or asks the server."""
    left = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines() if line[0] != " "]
    assert {line.split()[0] for line in left} == {"pip", "vllm", "curl"}
    assert len(BLOCKS) == PAGE.count("```") // 2


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
    path = os.pathsep.join([str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    env = os.environ | own | {"PYTHONPATH": str(ROOT), "PATH": path, "HF_HUB_OFFLINE": "1"}
    printed = []
    for text in (text for kind, text in BLOCKS if kind == "bash"):
        if text.startswith("export CHECKPOINT="):
            assert set(re.findall(r"(\w+)=", text)) == own.keys()
            continue
        ended = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", text],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )
        assert ended.returncode == 0, (text, ended.stderr)
        printed.append(ended.stdout)
    assert json.loads((tmp_path / "report.json").read_text())["output"] == own["OUTPUT"]
    assert any(text.startswith("ok ") for text in printed)
    assert (tmp_path / "job.sbatch").read_text() == shipped.template("slurm-many-nodes")
    assert (tmp_path / "job.yaml").read_text() == shipped.template("job-several-nodes")
