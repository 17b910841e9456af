"""Claims: a user's typical mistake ends at once with one error that says what to do, without a traceback and
with nothing left behind; what stdout can't take is no traceback either.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from tests.cpu.conftest import Checkpoint, Reference
from tests.fixtures.processes import ROOT


@pytest.fixture
def folders(checkpoint: Checkpoint, reference: Reference) -> dict[str, str]:
    """What the arguments below stand for."""
    return {"CHECKPOINT": str(checkpoint("qwen2", "tp2pp2")), "REFERENCE": str(reference("qwen2"))}


EXPORT = ("export", "--checkpoint", "CHECKPOINT", "--reference", "REFERENCE", "--output", "out")

MISTAKES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "a model folder for a checkpoint": (
        ("export", "--checkpoint", "REFERENCE", "--reference", "REFERENCE", "--output", "out"),
        ("is not a Megatron checkpoint", "this is a Hugging Face folder, as --reference takes it"),
    ),
    "a model folder to inspect": (("inspect", "REFERENCE"), ("this is a Hugging Face folder",)),
    "a checkpoint for a model folder": (
        ("export", "--checkpoint", "CHECKPOINT", "--reference", "CHECKPOINT", "--output", "out"),
        ("has no file config.json", "this is a Megatron checkpoint; give the Hugging Face folder"),
    ),
    "a name on the Hub": (
        ("export", "--checkpoint", "CHECKPOINT", "--reference", "Qwen/Qwen2-1.5B", "--output", "out"),
        ("pp_export downloads nothing", "hf download Qwen/Qwen2-1.5B"),
    ),
    "a checkpoint that is not there": (("inspect", "org/name"), ("does not exist", "check the path")),
    "a report in the output": (
        (*EXPORT, "--report", "out/report.json"),
        ("can't lie in the output", "beside the output"),
    ),
    "a report in no folder": ((*EXPORT, "--report", "no/report.json"), ("folder does not exist", "make it")),
    "a size without a unit": ((*EXPORT, "--max-shard-size", "5"), ("--max-shard-size is too small", "5GB")),
    "a size of no unit": ((*EXPORT, "--memory-limit", "5gigs"), ("--memory-limit can't be read", "5gigs")),
    "a class that no table serves": (
        (*EXPORT, "--architecture", "qwen9"),
        ("no architecture table serves", "pp_export families"),
    ),
    "a table that is not there": ((*EXPORT, "--architecture", "my.yaml"), ("path of a .yaml file",)),
    "stages without ranks": ((*EXPORT, "--pipeline-parallel", "4"), ("4 pipeline stages", "1 rank\n")),
    "a job that is a folder": (("export", "CHECKPOINT"), ("Is a directory", "--checkpoint")),
    "a job that says something twice": (("export", "twice.yaml"), ("'threads' stands in it twice",)),
    "a key of a side without a value": (("diff", "x", "y", "--a", "dtype"), ("--a takes KEY=VALUE",)),
    "a tolerance below zero": (("diff", "x", "y", "--atol", "-1"), ("a tolerance can't be used", "atol -1")),
    "a folder that was never there": (("diff", "gone", "gone too"), ("the folder does not exist",)),
    "a job for no reference": (
        ("init", "CHECKPOINT", "--reference", "gone"),
        ("the reference folder does not exist",),
    ),
    "verifying what is not there": (("verify", "gone"), ("the folder can't be read", "check the path")),
    "cleaning where nothing is": (("clean", "gone/too"), ("the folder does not exist",)),
    "a page that is not there": (("docs", "AccountingErr"), ("AccountingError",)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_error_that_says_what_to_do(
    mistake: str, folders: dict[str, str], tmp_path: Path
) -> None:
    """The status is 1, stderr has one error with the words, and the folder is what it was."""
    (tmp_path / "twice.yaml").write_text("checkpoint: a\noutput: b\nthreads: 1\nthreads: 2\n")
    arguments, told = MISTAKES[mistake]
    done = called(tmp_path, *(folders.get(each, each) for each in arguments))
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("error: ") == 1
    assert "could not be written" not in done.stderr
    assert all(words in done.stderr for words in told), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["twice.yaml"]


def test_a_wrong_flag_is_told_in_two_lines(tmp_path: Path) -> None:
    """Of a wrong flag is told the nearest one, and not all of the others; with --json it is a failure in JSON
    too.
    """
    done = called(tmp_path, *EXPORT, "--dtyp", "bf16")
    assert done.returncode == 2
    assert done.stderr == (
        "pp_export export: error: unknown flag --dtyp; did you mean --dtype?\n"
        "  more: pp_export export --help\n"
    )
    done = called(tmp_path, *EXPORT, "--entirely-unknown", "--json")
    assert done.returncode == 2
    assert "did you mean" not in done.stderr
    told = json.loads(done.stdout)
    assert told["error"]["what"] == "unknown flag --entirely-unknown"
    schema = json.loads(resources.files("pp_export.schemas").joinpath("failure.json").read_text())
    Draft202012Validator(schema).validate(told)


@pytest.mark.parametrize(
    "words",
    [
        ("--quiet", "export"),
        ("export", "--quiet"),
        ("export", "--log-level=error"),
        ("--quiet", "export", "--quiet"),
    ],
    ids=" ".join,
)
def test_what_is_logged_may_be_said_before_or_behind_the_command(
    folders: dict[str, str], tmp_path: Path, words: tuple[str, ...]
) -> None:
    """--quiet, --verbose and --log-level mean the same in both places."""
    at = words.index("export")
    rest = [folders.get(each, each) for each in EXPORT[1:]]
    done = called(tmp_path, *words[: at + 1], *rest, *words[at + 1 :])
    assert done.returncode == 0
    assert done.stderr == ""


def test_what_stdout_cannot_take_is_no_traceback(folders: dict[str, str], tmp_path: Path) -> None:
    """A full device is one error; who closes a pipe early hears nothing."""
    line = f'"{sys.executable}" -m pp_export inspect "$CHECKPOINT" --json'
    full = shell(f"{line} >/dev/full", folders, tmp_path)
    assert full.returncode == 1
    assert "the operating system answered: No space left on device" in full.stderr
    closed = shell(f"({line}; echo status $? >&2) | true", folders, tmp_path)
    assert "status" in closed.stderr
    for done in (full, closed):
        assert "Traceback" not in done.stderr
        assert "Exception ignored" not in done.stderr


def called(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command, as a user in `folder` types it."""
    return _ended([sys.executable, "-m", "pp_export", *arguments], {}, folder)


def shell(line: str, variables: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    """A line as bash runs it."""
    return _ended(["bash", "-c", line], variables, folder)


def _ended(command: list[str], variables: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    env = os.environ | variables | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=120
    )
