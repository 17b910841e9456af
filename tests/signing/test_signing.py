"""Claims: the commands of docs/verify.md sign an export and see whatever changes in it afterwards.

`make test-signing` installs OpenSSF's model-signing and runs this; see `requirements.txt`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fixtures import toy_qwen2
from tests.fixtures.exports import export_here
from tests.fixtures.processes import ROOT

pytestmark = pytest.mark.skipif(shutil.which("model_signing") is None, reason="model-signing isn't installed")
PLACE = "/exports/my_run"


def documented() -> list[str]:
    """The commands of the page, without the one that installs."""
    page = (ROOT / "docs" / "verify.md").read_text(encoding="utf-8")
    block = re.search(r"```\npip install model-signing[^\n]*\n(.*?)```", page, re.DOTALL)
    assert block is not None
    lines = (line.partition("#")[0].strip() for line in block[1].splitlines())
    return [line.replace("pp_export ", f"{sys.executable} -m pp_export ") for line in lines if line]


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the keys and an export, `my_run`, signed as the page says."""
    root = tmp_path_factory.mktemp("signed")
    export_here(
        checkpoint=toy_qwen2.write_checkpoint(root / "checkpoint"),
        reference=toy_qwen2.write_reference(root / "reference"),
        output=root / "my_run",
    )
    for command in documented():
        ended = run(command, root)
        assert ended.returncode == 0, (command, ended.stdout, ended.stderr)
    return root


def run(command: str, root: Path) -> subprocess.CompletedProcess[str]:
    """A line of the page, on the folder in `root`."""
    line = command.replace(PLACE, str(root / "my_run"))
    return subprocess.run(
        line, check=False, shell=True, cwd=root, env=None, capture_output=True, text=True, timeout=120
    )


def test_the_page_signs_and_verifies(signed: Path) -> None:
    """Every line of the page ends well, in its order, and leaves a signature."""
    kinds = [command.split()[:3] for command in documented()]
    assert ["model_signing", "sign", "key"] in kinds
    assert ["model_signing", "verify", "key"] in kinds
    assert (signed / "my_run" / "model.sig").stat().st_size > 0


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


CHANGES: dict[str, Callable[[Path], object]] = {
    "a bit of a weight": lambda folder: flip(next(folder.glob("*.safetensors"))),
    "a bit of the manifest": lambda folder: flip(folder / "export_manifest.json"),
    "a bit of the signature": lambda folder: flip(folder / "model.sig"),
    "a file that is gone": lambda folder: (folder / "config.json").unlink(),
    "a file more": lambda folder: (folder / "modeling.py").write_text("code"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_is_seen(name: str, signed: Path, tmp_path: Path) -> None:
    """A flipped bit anywhere, a file gone and one more: the signature does not verify any longer."""
    shutil.copytree(signed, tmp_path, dirs_exist_ok=True)
    (verify,) = (command for command in documented() if command.startswith("model_signing verify"))
    assert run(verify, tmp_path).returncode == 0
    CHANGES[name](tmp_path / "my_run")
    assert run(verify, tmp_path).returncode != 0


def test_another_key_is_seen(signed: Path, tmp_path: Path) -> None:
    """A folder that somebody else signed does not verify with this key."""
    shutil.copytree(signed, tmp_path, dirs_exist_ok=True)
    for command in documented():
        if command.startswith("openssl"):
            assert run(command, tmp_path).returncode == 0
    (verify,) = (command for command in documented() if command.startswith("model_signing verify"))
    assert run(verify, tmp_path).returncode != 0
