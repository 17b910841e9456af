"""Claims of `pp_export.api` and `pp_export.background`: what a training program calls gives the folder that
the command line gives, now or in a process of its own, and fails with the same errors.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import pp_export
from pp_export.background import BackgroundExport
from pp_export.core import file_names
from pp_export.core.errors import AccountingError, CheckpointError, ExportError, OptionError, TargetError
from pp_export.core.version import VERSION
from pp_export.shards import write
from pp_export.steps.report import ExportReport
from tests.cpu.conftest import Checkpoint, Reference
from tests.fixtures.exports import RememberedDefinition, export_here, files_of, remembering
from tests.fixtures.stored import Part
from tests.fixtures.undefined import without_definition

ROOT = Path(__file__).resolve().parents[3]
# Runs in every child before anything else. Without accelerate nobody asks transformers, which takes seconds;
# the names are then the table's, and the files the same.
QUICK = "import sys\nsys.modules['accelerate'] = None\n"
SLOW = QUICK + (
    "import time\n"
    "from pp_export.checkpoint.file_reader import FileReader\n"
    "read = FileReader.read\n"
    "FileReader.read = lambda *arguments: (time.sleep(0.3), read(*arguments))[1]\n"
)
SHOWN = QUICK + "import json, os\nopen({file!r}, 'w').write(json.dumps(dict(os.environ)))\n"
Options = dict[str, Any]


@pytest.fixture
def options(checkpoint: Checkpoint, reference: Reference, tmp_path: Path) -> Options:
    """A checkpoint, its reference, and a folder of one's own to export into."""
    (tmp_path / "out").mkdir()
    return {
        "checkpoint": checkpoint("qwen2", "tp2"),
        "reference": reference("qwen2"),
        "output": tmp_path / "out" / "model",
    }


@pytest.fixture
def in_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets children run some code first; by default what makes them quick."""

    def install(code: str) -> None:
        (tmp_path / "first").mkdir(exist_ok=True)
        (tmp_path / "first" / "sitecustomize.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path / "first")

    install(QUICK)
    return install


def bytes_of(folder: Path) -> dict[str, bytes]:
    """All files but the manifest, which tells how the export was made."""
    return {name: data for name, data in files_of(folder).items() if name != file_names.MANIFEST}


def beside(options: Options) -> list[str]:
    """What lies in the output's parent."""
    return sorted(os.listdir(options["output"].parent))


# --- in this process


def test_an_export_here_is_that_of_the_command_line(options: Options, tmp_path: Path) -> None:
    """`export_checkpoint` returns the report and makes the folder that an export gives, with its options."""
    with remembering():
        report = pp_export.export_checkpoint(**options, max_shard_size="100KB")
    assert isinstance(report, ExportReport)
    assert report.to_json()["status"] == "ok"
    assert ExportReport.from_json(json.loads(json.dumps(report.to_json()))) == report
    assert repr(report).startswith(f"ExportReport(output='{options['output']}', files={report.num_files},")
    export_here(**options | {"output": tmp_path / "other"}, max_shard_size="100KB")
    assert files_of(options["output"]).keys() == files_of(tmp_path / "other").keys()
    assert bytes_of(options["output"]) == bytes_of(tmp_path / "other")


def test_launcher_variables_change_nothing_here(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    """One rank of a job exports alone: it neither waits for the others nor joins their group."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with remembering():
        report = pp_export.export_checkpoint(**options)
    assert report.stages == (1,)


@pytest.mark.parametrize("background", [False, True])
def test_unknown_options_are_refused_at_the_call(options: Options, background: Any) -> None:
    """A name that is no option, a value of a wrong kind and a missing path raise before anything runs."""
    for wrong, told in (
        ({"max_shard_sise": 1}, "did you mean 'max_shard_size'"),
        ({"dtype": "int4"}, "--dtype has no such value"),
        ({"verify": "yes"}, "wrong type"),
        ({"output": None}, "--output"),
    ):
        with pytest.raises(OptionError) as caught:
            pp_export.export_checkpoint(**options | wrong, background=background)
        assert told in str(caught.value)
    assert beside(options) == []


def test_a_failure_here_leaves_no_child(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the export is refused at once, the process that asks transformers is ended too."""
    options["output"].mkdir()
    (options["output"] / "mine").write_text("kept")
    ended: list[bool] = []
    monkeypatch.setattr(RememberedDefinition, "close", lambda *_: ended.append(True))
    with remembering(), pytest.raises(TargetError, match="the output exists"):
        pp_export.export_checkpoint(**options)
    assert files_of(options["output"].parent) == {"model/mine": b"kept"}
    assert ended


# --- in the background


def test_the_background_makes_the_same_folder(
    options: Options, in_children: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With relative paths, from within a job: the call returns at once, the handle tells when it is done,
    `wait` gives the report, and every file is that of an export here.
    """
    seen = tmp_path / "environment.json"
    in_children(SHOWN.format(file=str(seen)))
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "7")
    monkeypatch.chdir(tmp_path)
    paths: Options = {name: os.path.relpath(path, tmp_path) for name, path in options.items()}
    handle = pp_export.export_checkpoint(**paths, background=True, report="report.json")
    assert isinstance(handle, BackgroundExport)
    assert not handle.done
    with pytest.raises(TimeoutError, match="still runs"):
        handle.wait(0.01)
    report = handle.wait(60)
    assert handle.done
    assert handle.wait() == report
    assert (report.output, report.options["output"]) == (str(options["output"]), paths["output"])
    written = ExportReport.from_json(json.loads((tmp_path / "report.json").read_text()))
    assert replace(written, options=report.options) == report
    environment = json.loads(seen.read_text())
    assert not {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} & environment.keys()
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    export_here(**options | {"output": tmp_path / "other"})
    assert bytes_of(options["output"]) == bytes_of(tmp_path / "other")
    assert beside(options) == ["model"]


def test_waiting_gives_the_report_of_a_blocking_export(
    options: Options, in_children: Callable[[str], None]
) -> None:
    """The two reports are equal but for what was measured: seconds, memory and the timeline."""
    handle = pp_export.export_checkpoint(**options, background=True)
    there = handle.wait(60)
    with without_definition():
        here = pp_export.export_checkpoint(**options, overwrite=True)
    assert here.options["overwrite"]
    assert there.seconds.keys() == here.seconds.keys()
    assert len(there.peak_anonymous_bytes) == len(here.peak_anonymous_bytes) == 1
    assert there == replace(
        here,
        options={**here.options, "overwrite": False},
        seconds=there.seconds,
        peak_anonymous_bytes=there.peak_anonymous_bytes,
        timeline=there.timeline,
    )


def test_a_failure_in_the_background_is_the_error_of_one_here(
    options: Options, in_children: Callable[[str], None], tmp_path: Path
) -> None:
    """`wait` raises the class that an export here raises, with all of its fields, every time."""
    options["reference"] = Path(shutil.copytree(options["reference"], tmp_path / "reference"))
    config = json.loads((options["reference"] / "config.json").read_text())
    (options["reference"] / "config.json").write_text(json.dumps(config | {"hidden_size": 128}))
    handle = pp_export.export_checkpoint(**options, background=True)
    with remembering(), pytest.raises(AccountingError) as here:
        pp_export.export_checkpoint(**options)
    for _ in range(2):
        with pytest.raises(AccountingError) as there:
            handle.wait(60)
        assert there.value.to_json() == here.value.to_json()
    assert handle.done
    assert beside(options) == []


@pytest.mark.parametrize("where", ["commit_shard", "digest_shard"])
def test_failures_leave_no_descriptor(options: Options, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """However often exports fail while shards are written, no file stays open: an open one would keep the
    space that was reserved for it, also when its name is gone.
    """

    def fail(*_: object) -> None:
        raise RuntimeError("injected")

    monkeypatch.setattr(write, where, fail)
    before = set(os.listdir("/proc/self/fd"))
    errors = []
    for _ in range(20):
        with remembering(), pytest.raises(ExportError, match="injected") as caught:
            pp_export.export_checkpoint(**options, max_shard_size="100KB")
        errors.append(caught)  # a job may keep what was raised
    assert {
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in set(os.listdir("/proc/self/fd")) - before
        if os.path.lexists(f"/proc/self/fd/{fd}")
    } == set()
    assert beside(options) == []


def test_a_cancelled_export_leaves_nothing(options: Options, in_children: Callable[[str], None]) -> None:
    """In the middle of its work it ends, the target stays absent, nothing lies beside it, and `wait`
    raises.
    """
    in_children(SLOW)
    handle = pp_export.export_checkpoint(**options, background=True)
    deadline = time.monotonic() + 60
    while not beside(options) and time.monotonic() < deadline:
        assert not handle.done, handle.wait()
        time.sleep(0.02)
    assert beside(options)
    handle.cancel()
    assert handle.done
    assert beside(options) == []
    with pytest.raises(ExportError):
        handle.wait()
    handle.cancel()


def test_paths_of_any_characters_reach_the_child(
    options: Options, in_children: Callable[[str], None], tmp_path: Path
) -> None:
    """A path is the same for the child whatever characters are in it."""
    options["output"] = tmp_path / "out" / "modèle 😀"
    handle = pp_export.export_checkpoint(**options, background=True)
    assert handle.wait(60).output == str(options["output"])


def test_a_killed_export_is_one_clear_error(options: Options, in_children: Callable[[str], None]) -> None:
    """A child that died without a word is told with its exit status and the last lines that it printed."""
    in_children(QUICK + "import time\nprint('last words', file=sys.stderr, flush=True)\ntime.sleep(30)\n")
    handle = pp_export.export_checkpoint(**options, background=True)
    while "last words" not in handle._log.read_text():
        time.sleep(0.02)
    os.kill(handle._process.pid, signal.SIGKILL)
    with pytest.raises(ExportError, match="ended without a report") as caught:
        handle.wait(30)
    assert caught.value.where == {"checkpoint": str(options["checkpoint"])}
    assert caught.value.got == f"exit status {-signal.SIGKILL}"
    assert caught.value.findings == ("last words",)


def test_an_export_goes_on_without_its_handle(options: Options, in_children: Callable[[str], None]) -> None:
    """Nobody needs to keep the handle: the export that was started ends well, and then neither a zombie nor
    its temporary folder is left.
    """
    handle = pp_export.export_checkpoint(**options, background=True)
    pid, folder = handle._process.pid, handle._folder
    del handle
    gc.collect()
    deadline = time.monotonic() + 60
    while (Path(f"/proc/{pid}").exists() or folder.exists()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()
    assert not folder.exists()
    assert beside(options) == ["model"]


# --- the model in memory


@pytest.mark.parametrize("wrap", [lambda part: part, lambda part: [part]], ids=["module", "list"])
def test_a_model_without_a_process_group(options: Options, tmp_path: Path, wrap: Any) -> None:
    """A process alone exports its model, given as itself or as a list, to the checkpoint's files."""
    checkpoint = options.pop("checkpoint")
    with remembering():
        report = pp_export.export_model(wrap(Part(checkpoint)), **options, show_progress=True)
    assert (report.stages, report.source_checked) == ((1,), None)
    export_here(**options | {"output": tmp_path / "other"}, checkpoint=checkpoint)
    assert bytes_of(options["output"]) == bytes_of(tmp_path / "other")


def test_a_model_that_fails_leaves_nothing(options: Options) -> None:
    """Wrong options, no model and an existing output are ExportErrors; nothing is made or changed."""
    checkpoint = options.pop("checkpoint")
    with remembering():
        for wrong in ({"checkpoint": checkpoint}, {"iteration": 1}, {"dtype": "int4"}):
            with pytest.raises(OptionError):
                pp_export.export_model([], **options | wrong)
        for model in ([], [torch.nn.Linear(2, 2)], None):
            with pytest.raises(CheckpointError):
                pp_export.export_model(model, **options)  # type: ignore[arg-type]
        assert beside(options) == []
        options["output"].mkdir()
        with pytest.raises(TargetError, match="the output exists"):
            pp_export.export_model(Part(checkpoint), **options)
    assert (beside(options), files_of(options["output"])) == (["model"], {})


@pytest.mark.parametrize("fails", [False, True])
def test_the_report_is_written(options: Options, tmp_path: Path, fails: bool) -> None:
    """The option `report` means the same here: a file, also when the export fails."""
    options["report"] = tmp_path / "report.json"
    if fails:
        options["output"].mkdir()
    with remembering():
        try:
            pp_export.export_checkpoint(**options)
        except TargetError:
            assert fails
    assert json.loads(options["report"].read_text())["status"] == ("failed" if fails else "ok")


def test_pages_are_drawn(options: Options, tmp_path: Path) -> None:
    """The option `html` draws the plan, and the export that was made, each to its file; a place where that
    would fail is refused before anything is done.
    """
    with remembering():
        pp_export.plan(**options, html=tmp_path / "plan.html")
        with pytest.raises(OptionError, match="the page's folder does not exist"):
            pp_export.export_checkpoint(**options, html=tmp_path / "none" / "export.html")
        pp_export.export_checkpoint(**options, html=tmp_path / "export.html")
    assert b"Predicted timeline" in (tmp_path / "plan.html").read_bytes()
    assert b"Measured timeline" in (tmp_path / "export.html").read_bytes()


# --- what is not an export


def test_a_plan_is_that_of_the_command_line(options: Options, capsys: pytest.CaptureFixture[str]) -> None:
    """`plan` takes the keywords of an export, gives what `export` would do, and makes nothing."""
    with without_definition():
        report = pp_export.plan(**options, world_size=4, max_shard_size="60KB")
        made = pp_export.plan(**options)
        with pytest.raises(OptionError, match="world-size"):
            pp_export.plan(**options, world_size=0)
        assert beside(options) == []
        done = pp_export.export_checkpoint(**options)
        del options["output"]
        assert pp_export.plan(**options, world_size=4, max_shard_size="60KB") == report
    assert made.fingerprint == done.plan_fingerprint
    assert (len(made.shards), made.total_size) == (done.num_files, done.total_size)
    assert tuple(rank.peak_bytes for rank in made.ranks) == done.planned_peak_bytes
    assert repr(report) == (
        f"PlanReport(architecture='qwen2', files={len(report.shards)}, bytes={report.total_size}, ranks=4,"
        " stages=4)"
    )


def test_inspecting_verifying_and_comparing(options: Options) -> None:
    """`inspect`, `verify` and `diff` take texts and paths and give reports with a short repr."""
    with remembering():
        pp_export.export_checkpoint(**options)
    described = pp_export.inspect(str(options["checkpoint"]))
    assert described == pp_export.inspect(options["checkpoint"], iteration=10)
    assert described.layout["tensor_model_parallel_size"] == 2
    assert repr(described).startswith("CheckpointReport(folder=")
    read: list[int] = []
    result = pp_export.verify(str(options["output"]), on_bytes=read.append)
    assert result.ok
    assert sum(read) == result.num_bytes_read
    difference = pp_export.diff(str(options["output"]), options["output"])
    assert difference.identical
    for report in (described, result, difference):
        assert "\n" not in repr(report)
        assert len(repr(report)) < 600


# --- the package


def test_importing_the_package_imports_nothing_large() -> None:
    """`import pp_export` is free, and its names need no torch until they are called; they are those of
    `__all__`, in `dir` too, and others don't exist.
    """
    code = (
        "import sys, json, pp_export;"
        "large = [name for name in ('torch', 'rich', 'numpy', 'yaml') if name in sys.modules];"
        "public = [name for name in dir(pp_export) if not name.startswith('_')];"
        "names = [name for name in pp_export.__all__ if not name.startswith('_')];"
        "found = [getattr(pp_export, name).__name__ for name in names];"
        "print(json.dumps([large, public == names == found, hasattr(pp_export, 'absent'),"
        " 'torch' in sys.modules]))"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    assert json.loads(answer.stdout) == [[], True, False, False]


def test_every_public_function_says_how_it_is_called() -> None:
    """Each has a docstring that tells who calls it and what it raises, with an example."""
    functions = [getattr(pp_export, name) for name in pp_export.__all__ if name.islower() and name[0] != "_"]
    assert len(functions) == 10
    for function in functions:
        for text in ("Called by", "Error", ">>> "):
            assert text in function.__doc__, function.__name__


def test_the_version_has_one_source() -> None:
    """The package's version is that of its packaging."""
    command = [sys.executable, "setup.py", "--version"]
    told = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert told.splitlines()[-1] == pp_export.__version__ == VERSION
