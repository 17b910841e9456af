"""Claims on what commands wait for: each imports the large libraries that it needs and no other, and says
something before it does.

An export by one process needs no torch unless it casts; a launched one does, for its store.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cpu.conftest import Checkpoint, Reference
from tests.fixtures.processes import ROOT

LARGE = ("torch", "transformers", "accelerate", "numpy", "rich", "safetensors", "isal", "asyncio", "megatron")
_SHOW = f"""
import json, os, sys
from pp_export.cli import main

class Watched:
    "What had been imported when something was first said."
    def __init__(self, stream):
        self._stream, self.first = stream, None
    def write(self, text):
        self.first = large() if self.first is None else self.first
        return self._stream.write(text)
    def __getattr__(self, name):
        return getattr(self._stream, name)

def large():
    return [name for name in {LARGE!r} if name in sys.modules]

sys.stderr = Watched(sys.stderr)
try:
    status = main(json.loads(sys.argv[1]))
except SystemExit as ended:
    status = ended.code
with open(sys.argv[2], "w") as file:
    json.dump([status, large(), sys.stderr.first], file)
"""


@dataclass(frozen=True)
class Ended:
    """A command that ended well: the large libraries it imported, those before it first said something, and
    what it said.
    """

    large: set[str]
    before_words: set[str] | None
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("imports")


def run(root: Path, *arguments: object) -> Ended:
    """Run a command in a process of its own."""
    answer = root / "answer.json"
    command = [sys.executable, "-c", _SHOW, json.dumps([str(each) for each in arguments]), str(answer)]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert answer.exists(), done.stderr[-4000:]
    status, large, first = json.loads(answer.read_text())
    answer.unlink()
    assert status == 0, done.stderr[-4000:]
    return Ended(set(large), None if first is None else set(first), done.stdout, done.stderr)


@pytest.fixture(scope="module")
def inputs(checkpoint: Checkpoint, reference: Reference) -> list[object]:
    """The flags of every export; what transformers says is in the cache."""
    flags = ["--checkpoint", checkpoint("qwen2", "tp2"), "--reference", reference("qwen2")]
    return [*flags, "--output"]


@pytest.fixture(scope="module")
def exported(root: Path, inputs: list[object]) -> tuple[Path, Ended]:
    """An export by one process, without a launcher. Nothing is in the cache before."""
    folder = root / "export"
    return folder, run(root, "export", *inputs, folder)


def test_help_imports_nothing(root: Path) -> None:
    """The help of the program and of an export is there without any large library."""
    for arguments in (["--help"], ["export", "--help"]):
        assert run(root, *arguments).large == set()


def test_an_export_by_one_process_needs_no_torch(exported: tuple[Path, Ended]) -> None:
    """Bytes are read, checked, pasted, hashed and written with numpy; transformers is in the child only."""
    assert exported[1].large == {"numpy", "rich", "safetensors", "isal"}


def test_plan_reads_metadata_only(root: Path, inputs: list[object], exported: tuple[Path, Ended]) -> None:
    """A plan needs neither what reads tensors nor, as JSON, what shows tables; its definition is the cached
    one of the export before.
    """
    shown, as_json = (run(root, "plan", *inputs, root / "x", *more) for more in ((), ("--json",)))
    assert as_json.large == {"safetensors"}
    assert shown.large == {"safetensors", "rich"}
    report = json.loads(as_json.stdout)
    assert report["expected_cached"] is True
    assert report["expected_from"] == "the model's own definition (transformers)"
    assert "from the cache" in shown.stdout


def test_diff_needs_no_torch(root: Path, exported: tuple[Path, Ended]) -> None:
    """Values are compared with numpy."""
    assert run(root, "diff", exported[0], exported[0], "--json").large <= {"numpy"}


def test_inspect_and_verify_need_no_torch(
    root: Path, checkpoint: Checkpoint, exported: tuple[Path, Ended]
) -> None:
    """Both show a table and import nothing else that is large."""
    assert run(root, "inspect", checkpoint("qwen2", "tp2")).large == {"rich"}
    assert run(root, "inspect", checkpoint("qwen2", "tp2"), "--json").large == set()
    assert run(root, "verify", exported[0]).large == {"rich"}
    assert run(root, "verify", exported[0], "--json").large == set()


def test_something_is_said_before_anything_is_imported(
    root: Path, inputs: list[object], checkpoint: Checkpoint, exported: tuple[Path, Ended]
) -> None:
    """The first line on stderr names what is read, before any large library is there; stdout is JSON alone
    where that was asked for.
    """
    assert exported[1].before_words == set()
    assert exported[1].stderr.startswith(f"exporting {inputs[1]} to {exported[0]}\n")
    for arguments, first in (
        (["plan", *inputs, root / "x"], f"planning the export of {inputs[1]}"),
        (["inspect", inputs[1]], f"reading the metadata of {inputs[1]}"),
        (["verify", exported[0], "--quick"], f"verifying {exported[0]}"),
        (["diff", exported[0], exported[0]], f"comparing {exported[0]} with {exported[0]}"),
    ):
        ended = run(root, *arguments, "--json")
        assert ended.before_words == set()
        assert ended.stderr.splitlines()[0] == first
        assert isinstance(json.loads(ended.stdout), dict)
