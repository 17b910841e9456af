"""Checkpoints and reference folders for the tests, made once per run and only if a test asks for them."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.audit.watch import Watch, append_to, watch
from tests.fixtures.processes import ROOT, run_python, torchrun
from tests.fixtures.reference import write_reference
from tests.fixtures.sharing import alone, of_the_run
from tests.fixtures.tiny_models import write_tiny_model

AUDIT = ROOT / "tests" / "fixtures" / "audit"
Checkpoint = Callable[[str, str], Path]
Reference = Callable[[str], Path]


@dataclass(frozen=True)
class Written:
    """Checkpoints of one model; `name` is what tests call it, `source` a checkpoint that it reshards."""

    name: str
    model: str
    layouts: tuple[str, ...]
    switches: tuple[str, ...] = ()
    source: tuple[str, str] | None = None


@dataclass(frozen=True)
class Launch:
    """What one launch of `num_ranks` ranks writes."""

    num_ranks: int
    written: tuple[Written, ...]


DENSE = ("tp1", "tp2", "tp4", "tp2pp2", "pp2", "pp2vpp3", "pp4first1last1")
MOE = ("tp1", "tp2ep2etp1", "ep2etp2", "pp2ep2", "ep4")
LEGACY_DENSE = ("tp1", "tp4", "tp2pp2", "pp2vpp3", "pp4first1last1")
LEGACY_MOE = ("tp2ep2etp1", "tp2ep2", "pp2ep2", "ep4")
MTP = ("tp1", "pp2", "tp2pp2", "pp2vpp3")
LAUNCHES = (
    Launch(
        4,
        (
            Written("qwen2", "qwen2", DENSE),
            Written("qwen2_legacy", "qwen2", LEGACY_DENSE, ("--legacy",)),
            Written("qwen3_mtp", "qwen3_mtp", MTP),
            Written("qwen3_mtp_legacy", "qwen3_mtp", MTP[:3], ("--legacy",)),
            Written("qwen3_moe_legacy", "qwen3_moe", LEGACY_MOE, ("--legacy",)),
        ),
    ),
    Launch(
        3,
        (
            Written("qwen2", "qwen2", ("pp3first1last2",), source=("qwen2", "tp4")),
            Written("qwen3_mtp", "qwen3_mtp", ("pp3first1last2",), source=("qwen3_mtp", "tp1")),
        ),
    ),
    Launch(
        4,
        (
            Written("qwen3_moe", "qwen3_moe", MOE),
            Written("qwen3_moe_te", "qwen3_moe", ("tp2pp2",), ("--te-keys",)),
        ),
    ),
    Launch(
        2,
        (
            Written("llama", "llama", ("tp2",)),
            Written("mistral", "mistral", ("pp2",)),
            Written("qwen2_tied", "qwen2_tied", ("pp2",)),
            Written("qwen2_per_layer", "qwen2", ("tp2", "pp2"), ("--non-homogeneous",)),
            Written("qwen3", "qwen3", ("tp2",)),
            Written("qwen3_moe_list", "qwen3_moe_list", ("tp2",)),
            Written("mixtral", "mixtral", ("ep2",)),
            Written("qwen2_tied_legacy", "qwen2_tied", ("pp2",), ("--legacy",)),
        ),
    ),
)


RANK_SAVES = {
    "qwen2": (
        *("hf", "hf_odd", "dcp_plain", "dcp_app", "dcp_model"),
        *("verl", "verl_hsdp", "verl_tensor_parallel", "verl_fsdp1", "verl_replicated"),
    ),
    "qwen2_tied": ("hf", "hf_tied", "dcp_plain", "verl"),
}
"""Kinds of `tests.fixtures.write_rank_shards`, by model."""


@pytest.fixture(scope="session", autouse=True)
def watch_log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """From the first test on, this process and every Python that it starts are watched: the file to which
    each adds what it did that no test may make it do.
    """
    log = tmp_path_factory.mktemp("watched") / "seen"
    temporary = tmp_path_factory.mktemp("temporary")
    folders = (
        tmp_path_factory.getbasetemp().parent,
        *(ROOT / name for name in (".hypothesis", ".pytest_cache")),
    )
    allowed: dict[str, Any] = {
        "write": [str(folder) for folder in folders],
        "hosts": [socket.gethostname()],
    }
    path = os.pathsep.join((str(AUDIT), os.environ.get("PYTHONPATH", ""), str(ROOT)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PP_EXPORT_AUDIT", json.dumps({"allowed": allowed, "log": str(log)}))
        patch.setenv("PYTHONPATH", path)
        patch.setenv("TMPDIR", str(temporary))
        patch.setattr(tempfile, "tempdir", None)
        watch(Watch(**allowed), append_to(str(log)))
        yield log


@pytest.fixture(autouse=True)
def does_what_it_may(request: pytest.FixtureRequest, watch_log: Path) -> Iterator[None]:
    """Whatever a test does, here and in the processes that it starts: no network, no module that only an
    input names, no file but of the run, of Python and of this repository.
    """
    watch_log.write_text("")
    yield
    seen = watch_log.read_text()
    assert not seen or request.node.get_closest_marker("asks_elsewhere") is not None, seen


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """`checkpoint(name, layout)`: the root folder of a checkpoint by megatron-core, not to be changed."""
    root = of_the_run(tmp_path_factory, "checkpoints")

    def find(name: str, layout: str) -> Path:
        folder = root / name / layout
        number = next(i for i, launch in enumerate(LAUNCHES) if _writes(launch, name, layout))
        with alone(root / f"launch-{number}.lock"):
            if not folder.exists():
                _write(root, LAUNCHES[number], find)
        return folder

    return find


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """`reference(name)`: the Hugging Face folder without weights that belongs to a checkpoint."""
    root = of_the_run(tmp_path_factory, "references")
    models = {written.name: written.model for launch in LAUNCHES for written in launch.written}

    def find(name: str) -> Path:
        folder = root / models[name]
        with alone(root / f"{models[name]}.lock"):
            if not folder.exists():
                write_reference(models[name], folder)
        return folder

    return find


class RankSaves:
    """What ranks have saved of small models under Hugging Face names, not to be changed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        with alone(root / "launch.lock"):
            if not (root / "written").exists():
                self._write()

    def source(self, model: str) -> Path:
        """The folder that transformers wrote of a model, from which the ranks have loaded it."""
        return self._root / "models" / model

    def save(self, model: str, kind: str) -> Path:
        """A kind of save of a model."""
        return self._root / "saves" / model / kind

    def _write(self) -> None:
        commands: list[str] = []
        for model, kinds in RANK_SAVES.items():
            write_tiny_model(model, self.source(model))
            out = str(self._root / "saves" / model)
            commands += [*(["--"] if commands else []), str(self.source(model)), out, *kinds]
        command = torchrun(4, "-m", "tests.fixtures.write_rank_shards", *commands)
        run_python(command, self._root / "launch", timeout_s=300).checked()
        (self._root / "written").touch()


@pytest.fixture(scope="session")
def rank_saves(tmp_path_factory: pytest.TempPathFactory) -> RankSaves:
    """Saves of four ranks, by torch and as verl's checkpoint manager makes them."""
    return RankSaves(of_the_run(tmp_path_factory, "rank_saves"))


def _writes(launch: Launch, name: str, layout: str) -> bool:
    return any(written.name == name and layout in written.layouts for written in launch.written)


def _write(root: Path, launch: Launch, find: Checkpoint) -> None:
    commands = []
    for written in launch.written:
        source = ["--from", str(find(*written.source))] if written.source else []
        folder = root / written.name
        commands.append([written.model, str(folder), *written.layouts, *written.switches, *source])
    file = root / f"commands-{LAUNCHES.index(launch)}.json"
    file.write_text(json.dumps(commands))
    command = torchrun(launch.num_ranks, "-m", "tests.fixtures.write_many", str(file))
    run_python(command, root / f"launch-{LAUNCHES.index(launch)}", timeout_s=300).checked()
