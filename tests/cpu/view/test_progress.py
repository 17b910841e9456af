"""Claims of `pp_export.view.progress`: lines that stay up to date on a terminal, lines now and then else."""

from __future__ import annotations

import json
import logging
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import pp_export
from pp_export.steps.telling import ExportProgress, PartProgress, Step
from pp_export.view import progress
from pp_export.view.in_job import JobView
from pp_export.view.progress import BytesView, ExportView, line_of, shown_by, table_of
from tests.cpu.conftest import Checkpoint, Reference
from tests.fixtures.processes import ROOT

STAGES = (
    PartProgress("stage 0", 10, 15, 1_000_000_000, 1_800_000_000, 500_000_000, 1_800_000_000),
    PartProgress("stage 1", 3, 15, 800_000_000, 1_800_000_000, 0, 1_800_000_000),
)
NOW = ExportProgress(step=Step.MOVING, about="Qwen2ForCausalLM", seconds=4.0, parts=STAGES)


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What is logged."""
    found: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    logger, handler = logging.getLogger("pp_export"), Keep()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield found
    logger.removeHandler(handler)
    logger.setLevel(level)


def drawn(now: ExportProgress, width: int, monkeypatch: pytest.MonkeyPatch, waited: float = 0.0) -> list[str]:
    """The lines of a terminal of `width` columns."""
    monkeypatch.setattr(progress, "_width", lambda: width)
    console = Console(width=width, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(table_of(now, waited))
    return [line.rstrip() for line in captured.get().splitlines()]


@pytest.mark.parametrize("width", [80, 200])
def test_a_terminal_shows_all_bytes_first_and_then_the_stages(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step, then written and verified bytes with rate and time left, then a line for each stage; each
    whole in its line at 80 columns, with files where there is room.
    """
    step, written, verified, *stages = drawn(NOW, width, monkeypatch)
    assert "moving bytes" in step
    assert re.search(r"written .* 1\.8 GB of 3\.6 GB\s+450 MB/s\s+0:00:04 0:00:09 left", written)
    assert re.search(r"verified .* 500 MB of 3\.6 GB", verified)
    assert [line.split()[:2] for line in stages] == [["stage", "0"], ["stage", "1"]]
    assert ("13/30 shards" in written) == (width == 200)
    assert max(map(len, (step, written, verified, *stages))) <= width


def test_eight_stages_fit_into_24_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many lines as stages, and three."""
    parts = tuple(PartProgress(f"stage {number}", 0, 1, 0, 1, 0, 1) for number in range(8))
    assert len(drawn(ExportProgress(step=Step.MOVING, parts=parts), 80, monkeypatch)) == 11


def test_what_is_waited_for_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before bytes move and after, with how long it has lasted."""
    assert "planning, for 3 s" in drawn(ExportProgress(step=Step.PLANNING), 80, monkeypatch, 3.2)[0]
    assert line_of(ExportProgress(step=Step.READING), 12.0) == "reading the checkpoint's metadata, for 12 s"
    assert line_of(ExportProgress(Step.PUBLISHING, parts=STAGES), 5.0) == "publishing, for 5 s"


def test_a_log_gets_one_line_for_all_stages() -> None:
    """Bytes, rate, files and the time that is left."""
    told = "1.8 GB of 3.6 GB written, 450 MB/s, 13 of 30 shards, 500 MB of 3.6 GB verified, 0:00:09 left"
    assert line_of(NOW, 1.0) == told


def test_lines_come_now_and_then_and_get_rarer(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One line in five seconds at first, one in 50 after a thousand; none when everything is done."""
    at = [100.0]
    monkeypatch.setattr("pp_export.view.progress.time.monotonic", lambda: at[0])
    view = ExportView(in_job=True)
    with view:
        for _ in range(40):
            at[0] += 1
            view(NOW)
        assert len(lines) == 1 + 8
        at[0] += 1000
        lines.clear()
        for _ in range(100):
            at[0] += 1
            view(NOW)
        assert len(lines) == 2
        at[0] += 1000
        view(ExportProgress(step=Step.DONE, parts=STAGES))
        assert len(lines) == 2


def test_a_line_comes_while_nobody_calls(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that lasts is told by a thread, which ends with the view."""
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)
    monkeypatch.setattr(progress, "_LINES_GET_RARER", 10**9)
    told = threading.Event()
    monkeypatch.setattr(logging.getLogger("pp_export"), "info", lambda *_: told.set())
    with ExportView() as view:
        assert told.wait(30)
    assert view._ticker is not None
    assert not view._ticker.is_alive()


def test_json_is_a_line_for_each_step(capsys: pytest.CaptureFixture[str]) -> None:
    """A program can follow; the other ranks say nothing."""
    with shown_by(0, "json") as tell:
        for now in (ExportProgress(), ExportProgress(), NOW, NOW):
            tell(now)
    printed = [ExportProgress.from_json(json.loads(line)) for line in capsys.readouterr().err.splitlines()]
    assert printed == [ExportProgress(), NOW]
    for rank, kind in ((1, "json"), (1, "auto"), (0, "none")):
        with shown_by(rank, kind) as tell:
            tell(NOW)
    assert capsys.readouterr() == ("", "")


class Terminal:
    """A terminal on which a command runs, and all that it printed there."""

    def __init__(self, command: list[str], columns: int, **env: str) -> None:
        own, other = pty.openpty()
        ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        environment = {**os.environ, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1", **env}
        self.process = subprocess.Popen(command, stdout=other, stderr=other, cwd=ROOT, env=environment)
        os.close(other)
        found = bytearray()
        try:
            while select.select([own], [], [], 200)[0]:
                step = os.read(own, 65536)
                found += step
        except OSError:
            """The other side is closed."""
        os.close(own)
        self.status = self.process.wait(60)
        self.printed = found.decode(errors="replace")

    @property
    def text(self) -> str:
        """Without what moves the cursor or colours."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.printed)


@pytest.fixture(scope="module")
def command(checkpoint: Checkpoint, reference: Reference) -> list[str]:
    return [
        *(sys.executable, "-m", "pp_export", "export"),
        *(f"--checkpoint={checkpoint('qwen2', 'tp2')}", f"--reference={reference('qwen2')}"),
    ]


@pytest.mark.parametrize(("columns", "env"), [(80, {}), (200, {"NO_COLOR": "1"})])
def test_an_export_on_a_terminal_ends_with_everything_done(
    command: list[str], tmp_path: Path, columns: int, env: dict[str, str]
) -> None:
    """The last picture has all bytes written and verified; the log stands above it, not in it; NO_COLOR is
    heard; no line is broken.
    """
    shown = Terminal([*command, f"--output={tmp_path / 'out'}"], columns, **env)
    assert shown.status == 0, shown.text
    assert shown.text.index("exporting ") < shown.text.index("Qwen2ForCausalLM: ")
    last = shown.text.rindex("published")
    end = shown.text[last : last + 400].splitlines()
    for line, name in zip(end[1:3], ("written", "verified")):
        amounts = re.search(rf"{name} .* ([0-9.]+ .B) of ([0-9.]+ .B)", line)
        assert amounts is not None, end
        assert amounts[1] == amounts[2]
    colours = re.findall(r"\x1b\[(?:[0-9]+;)*3[0-9]", shown.printed)
    assert bool(colours) != ("NO_COLOR" in env)


def test_a_verification_on_a_terminal_ends_with_all_bytes(command: list[str], tmp_path: Path) -> None:
    """As many bytes read as there are."""
    out = tmp_path / "out"
    assert subprocess.run([*command, f"--output={out}"], cwd=ROOT, capture_output=True, check=True)
    shown = Terminal([sys.executable, "-m", "pp_export", "verify", str(out)], 80)
    found = re.findall(r"verified .* ([0-9.]+ .B) of ([0-9.]+ .B)", shown.text)
    assert found
    assert found[-1][0] == found[-1][1]


def test_bytes_are_a_line_now_and_then(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal, with rate and time left, once bytes are read; nothing where it is to be quiet."""
    at = [100.0]
    monkeypatch.setattr("pp_export.view.progress.time.monotonic", lambda: at[0])
    for is_quiet in (False, True):
        with BytesView("compared", is_quiet=is_quiet) as shown:
            at[0] += 60
            shown.total(4_000_000)
            shown.add(1_000_000)
            assert lines == []
            at[0] += 10
            shown.add(1_000_000)
            shown.add(2_000_000)
        assert lines == ["compared 2 MB of 4 MB, 200 KB/s, 0:00:10 left"] * (not is_quiet)
        lines.clear()


def test_a_bar_says_what_is_waited_for_when_all_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate stays that of the reading, no time is left, and no more is read than there is in all; when it
    is over, nothing is waited for.
    """
    at = [100.0]
    monkeypatch.setattr("pp_export.view.progress.time.monotonic", lambda: at[0])
    console = Console(width=80, force_terminal=True, color_system=None)

    def line(shown: BytesView) -> str:
        with console.capture() as captured:
            console.print(shown._draw())
        return captured.get()

    with BytesView("verified", then="checking the rest") as shown:
        shown.total(4_000_000)
        at[0] += 10
        shown.add(2_000_000)
        assert re.search(r"2 MB of 4 MB 200 KB/s 0:00:10 0:00:10 left", line(shown))
        at[0] += 10
        shown.add(2_100_000)
        at[0] += 30
        assert re.search(r"4\.1 MB of 4\.1 MB 205 KB/s 0:00:50 checking the rest", line(shown))
    assert "checking" not in line(shown)


def test_quiet_is_quiet(command: list[str], tmp_path: Path) -> None:
    """Nothing on stderr where all is well; the result stays on stdout."""
    quiet = [*command[:3], "--quiet", *command[3:], f"--output={tmp_path / 'out'}"]
    done = subprocess.run(quiet, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "exported to" in done.stdout


def test_a_job_is_told_and_stays_what_it_is(
    checkpoint: Checkpoint, reference: Reference, tmp_path: Path
) -> None:
    """A callback hears every step of an export by Python, in order, and a view in a job draws no random
    number of the job's.
    """
    import random

    told: list[ExportProgress] = []
    state = random.getstate()
    view = JobView()

    def hear(now: ExportProgress) -> None:
        told.append(now)
        view(now)

    report = pp_export.export_checkpoint(
        checkpoint("qwen2", "tp2"), reference=reference("qwen2"), output=tmp_path / "out", on_progress=hear
    )
    view.close()
    assert random.getstate() == state
    steps = list(dict.fromkeys(now.step for now in told))
    assert steps[:3] == [Step.READING, Step.PLANNING, Step.MOVING]
    assert steps[-2:] == [Step.PUBLISHING, Step.DONE]
    num_bytes = sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors"))
    assert told[-1].total.written == told[-1].total.verified == num_bytes
    assert told[-1].seconds == pytest.approx(report.seconds["export"], abs=0.05)


def test_a_background_export_says_how_far_it_is(
    checkpoint: Checkpoint, reference: Reference, tmp_path: Path
) -> None:
    """The handle can be asked while it runs and when it has ended; a callback belongs to the other kind."""
    arguments: dict[str, Any] = {
        "checkpoint": checkpoint("qwen2", "tp2"),
        "reference": reference("qwen2"),
        "output": tmp_path / "out",
    }
    with pytest.raises(pp_export.ExportError, match="progress"):
        pp_export.export_checkpoint(**arguments, background=True, on_progress=print)  # type: ignore[call-overload]
    handle = pp_export.export_checkpoint(**arguments, background=True)
    assert handle.progress().step in vars(Step).values()
    report = handle.wait()
    assert handle.progress().step == Step.DONE
    assert handle.progress().total.written > report.total_size
