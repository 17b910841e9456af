"""Claims of what a user asks for first: a job file to begin with, and completion in the shell."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pp_export.core import plain_yaml
from pp_export.options.kinds import ExportOptions
from tests.cpu.conftest import Checkpoint, Reference
from tests.fixtures.exports import export_here, files_of
from tests.fixtures.processes import run_python


def test_the_first_job_exports_what_it_was_made_for(
    checkpoint: Checkpoint, reference: Reference, tmp_path: Path
) -> None:
    """As it is printed, the job file exports the checkpoint, with the bytes that flags give; every option
    stands in it once, those that nobody has to set as comments that hold the defaults.
    """
    folder, model = tmp_path / "run", reference("qwen2")
    shutil.copytree(checkpoint("qwen2", "tp2"), folder)
    command = ["-m", "pp_export", "init", str(folder), f"--reference={model}"]
    printed = run_python(command, tmp_path / "init").checked()
    job = tmp_path / "job.yaml"
    job.write_text(printed.stdout)
    run_python(["-m", "pp_export", "export", str(job)], tmp_path / "export").checked()
    export_here(checkpoint=folder, reference=model, output=tmp_path / "other")
    written = plain_yaml.parse(printed.stdout.encode())
    assert written["iteration"] == 10
    assert files_of(Path(written["output"])).keys() == files_of(tmp_path / "other").keys()
    weights = {
        name: data for name, data in files_of(tmp_path / "other").items() if name.endswith(".safetensors")
    }
    assert weights.items() <= files_of(Path(written["output"])).items()
    assert Path(written["report"]).exists()

    whole = "\n".join(line.removeprefix("# ") for line in printed.stdout.splitlines())
    lines = [line for line in whole.splitlines() if line.partition(":")[0] in _names()]
    assert sorted(line.partition(":")[0] for line in lines) == sorted(_names())
    values = plain_yaml.parse("\n".join(lines).encode())
    for option in dataclasses.fields(ExportOptions):
        if option.name not in written:
            assert values[option.name] == option.default, option.name
    assert max(map(len, printed.stdout.splitlines())) <= 110


def _names() -> set[str]:
    return {option.name for option in dataclasses.fields(ExportOptions)}


def test_without_a_reference_the_job_says_what_is_missing(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The file names the other way, and is refused until somebody has chosen."""
    command = ["-m", "pp_export", "init", str(checkpoint("qwen2", "tp2"))]
    printed = run_python(command, tmp_path / "init").checked()
    assert "# architecture: Qwen2ForCausalLM" in printed.stdout
    job = tmp_path / "job.yaml"
    job.write_text(printed.stdout)
    done = run_python(["-m", "pp_export", "export", str(job)], tmp_path / "export")
    assert done.status == 1
    assert "neither --reference nor --architecture is given" in done.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_and_flags(tmp_path: Path) -> None:
    """What `completion bash` prints makes bash complete, in bash itself."""
    program = """
eval "$(pp_export completion bash)"
ask() { COMP_LINE="$*" COMP_POINT=${#COMP_LINE} COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_TYPE=9
  COMPREPLY=(); _python_argcomplete pp_export; echo "${COMPREPLY[@]}"; }
ask pp_export ver
ask pp_export verify --qu
"""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", program], capture_output=True, text=True, check=True, env=environment, timeout=120
    )
    assert [line.strip() for line in done.stdout.splitlines()] == ["verify", "--quick"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_theirs(shell: str, tmp_path: Path) -> None:
    """A script that names the program."""
    done = run_python(["-m", "pp_export", "completion", shell], tmp_path).checked()
    assert "pp_export" in done.stdout
