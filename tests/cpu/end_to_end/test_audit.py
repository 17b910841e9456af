"""Claims about what an export does beside the export: no network, no import that an input asks for, no file
but its own. Python's audit hooks watch it and its child process from before their first import.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from tests.cpu.conftest import AUDIT, Checkpoint, Reference
from tests.fixtures.processes import ROOT, started, torchrun

PLANTED = "planted_by_the_input"


class Watched:
    """A job whose inputs name a module that could be imported, and the commands that run on it, watched."""

    def __init__(self, root: Path, checkpoint: Path, reference: Path) -> None:
        self.root = root
        self.checkpoint, self.reference = root / "checkpoint", root / "reference"
        self.output, self.log = root / "parent" / "out", root / "seen"
        shutil.copytree(checkpoint, self.checkpoint)
        shutil.copytree(reference, self.reference)
        for name in ("parent", "modules", "cache", "temporary"):
            (root / name).mkdir()
        code = f"open({str(root / 'imported')!r}, 'w').close()\nclass Planted: pass\n"
        (root / "modules" / f"{PLANTED}.py").write_text(code)
        (self.reference / f"modeling_{PLANTED}.py").write_text(code)
        config = json.loads((self.reference / "config.json").read_text())
        config["auto_map"] = {"AutoModel": f"modeling_{PLANTED}.Planted"}
        (self.reference / "config.json").write_text(json.dumps(config))
        folder = self.checkpoint / "iter_0000010"
        state = torch.load(folder / "common.pt", weights_only=False)
        state["args"] = Namespace(**vars(state["args"]), planted=_planted(root / "modules"))
        torch.save(state, folder / "common.pt")

    def run(self, *command: str, timeout_s: float = 200) -> list[str]:
        """What the processes of a command did that they may not; the command ends well."""
        allowed = {
            "read": [str(self.checkpoint), str(self.reference), str(self.output)],
            "write": [str(self.output.parent), str(self.root / "cache"), str(self.root / "temporary")],
            "names": [PLANTED, f"modeling_{PLANTED}"],
            "python_alone": True,
        }
        env = {
            "PP_EXPORT_AUDIT": json.dumps({"allowed": allowed, "log": str(self.log)}),
            "PYTHONPATH": os.pathsep.join((str(AUDIT), str(ROOT), str(self.root / "modules"))),
            "XDG_CACHE_HOME": str(self.root / "cache"),
            "TMPDIR": str(self.root / "temporary"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.root / "temporary" / "torch"),  # made by the import of torch
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        with started(command, self.root / "printed", env=env) as running:
            running.wait(timeout_s).checked()
        return self.log.read_text().splitlines() if self.log.exists() else []

    @property
    def num_watched(self) -> int:
        """How many processes were watched so far."""
        return len(list(self.root.glob("seen.*")))

    @property
    def options(self) -> list[str]:
        return [f"--{name}={getattr(self, name)}" for name in ("checkpoint", "reference", "output")]


def _planted(modules: Path) -> object:
    """An object whose class only an import of the module would make."""
    sys.path.insert(0, str(modules))
    try:
        return __import__(PLANTED).Planted()
    finally:
        sys.path.remove(str(modules))


@pytest.fixture
def watched(checkpoint: Checkpoint, reference: Reference, tmp_path: Path) -> Watched:
    job = Watched(tmp_path, checkpoint("qwen2", "tp2pp2"), reference("qwen2"))
    (tmp_path / "imported").unlink(missing_ok=True)  # of the import that pickled it
    return job


def test_an_export_and_its_proof_touch_nothing_else(watched: Watched) -> None:
    """Export, inspect, verify: no connection, no program but Python, no module of the input, no file
    outside checkpoint, reference, staging, target, cache and Python's own.
    """
    assert watched.run("-m", "pp_export", "export", *watched.options) == []
    assert watched.num_watched == 2  # and the child that asks transformers
    assert watched.run("-m", "pp_export", "inspect", str(watched.checkpoint)) == []
    assert watched.run("-m", "pp_export", "verify", str(watched.output)) == []
    assert not (watched.root / "imported").exists()
    assert (watched.output / f"modeling_{PLANTED}.py").exists()


def test_two_ranks_talk_to_each_other_alone(watched: Watched) -> None:
    """Under torchrun, too: connections only to this host."""
    seen = watched.run(*torchrun(2, "-m", "pp_export", "export", *watched.options))
    assert [line for line in seen if "socket" in line or "imports" in line or "starts" in line] == []
    assert not (watched.root / "imported").exists()


VIOLATIONS: dict[str, tuple[str, str]] = {
    "network": ("import socket; socket.socket().connect_ex(('192.0.2.1', 9))", "socket.connect"),
    "names": ("import socket; socket.gethostbyname('example.org')", "socket.gethostbyname"),
    "reading": ("open('/var/lib/dpkg/status').close()", "opens '/var/lib/dpkg/status'"),
    "writing": ("open('{root}/elsewhere', 'w').close()", "writes"),
    "removing": ("import os; os.remove('{root}/modules/" + PLANTED + ".py')", "os.remove"),
    "importing": (f"import {PLANTED}", f"imports {PLANTED}"),
    "starting": ("import subprocess; subprocess.run(['true'])", "starts"),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_the_watch_sees_what_it_is_for(name: str, tmp_path: Path) -> None:
    """Each kind of violation, done on purpose in a child of a watched process, is seen."""
    watched = Watched.__new__(Watched)
    watched.root, watched.log = tmp_path, tmp_path / "seen"
    watched.checkpoint = watched.reference = watched.output = tmp_path / "parent" / "out"
    for folder in ("parent", "modules", "cache", "temporary"):
        (tmp_path / folder).mkdir()
    (tmp_path / "modules" / f"{PLANTED}.py").write_text("")
    code, words = VIOLATIONS[name]
    code = f"try:\n    {code.format(root=tmp_path)}\nexcept OSError:\n    pass\n"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
    assert any(line.startswith(words) for line in watched.run("-c", outer, timeout_s=60))
