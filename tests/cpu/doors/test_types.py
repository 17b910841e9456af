"""Claims about types at the door: a misspelt option is an error of mypy, and so of an editor."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import pp_export

ROOT = Path(pp_export.__file__).parents[1]
SETTINGS = "[mypy]\nstrict = true\nfollow_imports = silent\n[mypy-torch.*]\nfollow_imports = skip\n"
RIGHT = """
import pp_export
from pp_export.integrations.bridge import ExportBridge

report = pp_export.export_checkpoint(
    "c", reference="r", output="o", max_shard_size="1GB", iteration=3, tensor_parallel=2, dtype="bfloat16"
)
waited: pp_export.ExportReport = pp_export.export_checkpoint(
    "c", reference="r", output="o", background=True, report="r.json"
).wait(1.0)
live: pp_export.ExportReport = pp_export.export_model([], reference="r", output="o", leaders_per_stage=1)
peak: int = pp_export.plan("c", reference="r", world_size=8, pipeline_parallel=4).ranks[0].peak_bytes
stacked: bool = pp_export.inspect("c", iteration=3).stacked
ok: bool = pp_export.verify("o", subset=(1, 8)).ok
same: bool = pp_export.diff("a", "b").identical
near: pp_export.LogitComparison = pp_export.compare_logits("a", "b", tolerance=0.1, max_memory="1GB")
bridge = ExportBridge("r", verify=False, code=False)
handle: pp_export.BackgroundExport
error: pp_export.ExportError
"""
WRONG = """
import pp_export
from pp_export.integrations.bridge import ExportBridge

pp_export.export_checkpoint("c", reference="r", output="o", max_shard_sise="1GB")
pp_export.export_checkpoint("c", reference="r", output="o", dtype="int4")
pp_export.export_checkpoint("c", reference="r", output="o", verify="yes")
pp_export.export_checkpoint("c", reference="r", output="o", background=True, iteraton=3)
pp_export.export_model([], reference="r", output="o", iteration=3)
pp_export.export_model([], reference="r", output="o", leaders_per_stag=1)
pp_export.plan("c", reference="r", tensor_paralel=2)
pp_export.verify("o", quik=True)
pp_export.compare_logits("a", "b", tolerence=0.1)
pp_export.record_logits("a", None, None, topk=5)
ExportBridge("r", verfy=False)
pp_export.absent
"""


def errors_of(code: str, folder: Path) -> list[int]:
    """The lines in which mypy finds errors."""
    (folder / "snippet.py").write_text(code)
    (folder / "mypy.ini").write_text(SETTINGS)
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file",
        "mypy.ini",
        "--cache-dir",
        "cache",
        "snippet.py",
    ]
    told = subprocess.run(
        command, cwd=folder, env={"MYPYPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert told.returncode in (0, 1), told.stderr
    lines = [line for line in told.stdout.splitlines() if ": error:" in line]
    assert all(line.startswith("snippet.py:") for line in lines), told.stdout
    return sorted({int(line.split(":")[1]) for line in lines})


def test_options_are_known_to_type_checkers(tmp_path: Path) -> None:
    """Every misspelt or ill-typed option is an error in its own line, and right calls have none."""
    pytest.importorskip("mypy")
    assert errors_of(RIGHT, tmp_path) == []
    lines = WRONG.splitlines()
    expected = [n for n, line in enumerate(lines, start=1) if line.startswith(("pp_", "ExportB"))]
    assert errors_of(WRONG, tmp_path) == expected
