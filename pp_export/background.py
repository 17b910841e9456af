"""An export in a process of its own, while the caller goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import weakref
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from pp_export.core.errors import ExportError
from pp_export.disk import folders
from pp_export.options.kinds import ExportOptions
from pp_export.process import child
from pp_export.steps.report import ExportReport
from pp_export.steps.telling import ExportProgress

_TAIL_LINES, _TAIL_BYTES = 20, 2**16
_OF_PROGRESS = '{"schema_version": '


class BackgroundExport:
    """A handle on a running export. It goes on when the handle is dropped, and ends with its own report;
    nothing else stays of it then.

    The process has no GPU and belongs to no process group; its memory is bounded as `plan` shows.
    """

    def __init__(self, options: ExportOptions) -> None:
        self.options = options
        self._folder = Path(tempfile.mkdtemp(prefix="pp_export-"))  # stays until somebody has waited
        self._report = (options.report or self._folder / "report.json").absolute()
        self._log = self._folder / "log"
        self._outcome: ExportReport | ExportError | None = None
        self._progress = ExportProgress()
        job = {name: value for name, value in options.to_json().items() if value is not None}
        for name in ("checkpoint", "reference", "tokenizer", "output", "architecture", "html"):
            if name in job and (name != "architecture" or job[name].endswith((".yaml", ".yml"))):
                job[name] = str(Path(job[name]).absolute())  # the child works elsewhere
        job["report"] = str(self._report)
        try:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "pp_export", "export", "/dev/stdin", "--progress", "json"],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=child.environment(),
                    cwd=child.PACKAGE_PARENT,
                    start_new_session=True,  # Ctrl-C in the trainer's terminal is not meant for it
                )
        except BaseException:
            _remove(self._folder)
            raise
        self._unattended = weakref.finalize(self, _attend, self._process, self._folder)
        self._unattended.atexit = False  # nobody waits for it at the end of the interpreter
        assert self._process.stdin is not None
        with self._process.stdin as pipe:
            # of bytes that are no text, and of nothing else, YAML makes the same from an escape
            pipe.write(json.dumps(job, ensure_ascii=False).encode(errors="backslashreplace"))

    def progress(self) -> ExportProgress:
        """How far it is, as it last said; may be called at any time, also when it has ended."""
        if self._outcome is None:
            with suppress(OSError):
                with self._log.open("rb") as log:
                    log.seek(-min(_TAIL_BYTES, self._log.stat().st_size), os.SEEK_END)
                    tail = log.read().decode(errors="replace")
                for line in reversed(tail.splitlines()):
                    if line.startswith(_OF_PROGRESS):
                        with suppress(ValueError):  # it is being written
                            self._progress = ExportProgress.from_json(json.loads(line))
                            break
        return self._progress

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self._process.poll() is not None

    def wait(self, timeout_s: float | None = None) -> ExportReport:
        """The report, as a blocking export returns it, when the folder is published.

        Raises the ExportError with which the export failed, TimeoutError where it takes longer than
        `timeout_s` seconds (it then goes on). May be called again, and gives the same.
        """
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"the export of {self.options.checkpoint} still runs") from None
        if self._outcome is None:
            self.progress()
            self._outcome = self._read_outcome(status)
            self._clean_up()
        if isinstance(self._outcome, ExportError):
            raise self._outcome
        return self._outcome

    def cancel(self) -> None:
        """Stop it; the target stays what it was, and nothing is left beside it."""
        self._process.terminate()
        self._process.wait()
        self._clean_up()

    def _clean_up(self) -> None:
        self._unattended.detach()
        _remove(self._folder)

    def _read_outcome(self, status: int) -> ExportReport | ExportError:
        """What the child reported; where it could not, what it printed last."""
        try:
            report = ExportReport.from_json(json.loads(self._report.read_text()))
            if status == 0:
                return replace(report, options=self.options.to_json())  # not the absolute paths of the child
        except ExportError as failure:
            return failure
        except (OSError, ValueError):
            """There is no report."""
        lines: list[str] = []
        with suppress(OSError):
            lines = self._log.read_text(errors="replace").splitlines()
            lines = [line for line in lines if not line.startswith(_OF_PROGRESS)][-_TAIL_LINES:]
        return ExportError(
            "the export in the background ended without a report",
            where={"checkpoint": self.options.checkpoint},
            got=f"exit status {status}",
            findings=lines,
        )


def _attend(process: subprocess.Popen[bytes], folder: Path) -> None:
    """The handle was dropped: when the process has ended, nothing stays of it, neither a zombie nor a
    folder.
    """

    def wait() -> None:
        process.wait()
        _remove(folder)

    threading.Thread(target=wait, daemon=True, name="pp_export-background").start()


def _remove(folder: Path) -> None:
    with suppress(ExportError):  # a temporary folder that stays harms nobody
        folders.remove_folder(folder)
