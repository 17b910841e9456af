"""An export in a process of its own, while the caller goes on."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pp_export import child, errors
from pp_export.config import ExportOptions
from pp_export.errors import ExportError

_TAIL_LINES = 20


class BackgroundExport:
    """A handle on a running export. It goes on when the handle is dropped, and ends with its own report.

    The process has no GPU and belongs to no process group; its memory is bounded as `plan` shows.
    """

    def __init__(self, options: ExportOptions) -> None:
        self.options = options
        self._folder = tempfile.TemporaryDirectory(prefix="pp_export-", ignore_cleanup_errors=True)
        self._report = options.report or Path(self._folder.name) / "report.json"
        self._log = Path(self._folder.name) / "log"
        job = {name: value for name, value in options.to_json().items() if value is not None}
        for name in ("checkpoint", "reference", "output", "architecture"):
            if name in job and (name != "architecture" or job[name].endswith((".yaml", ".yml"))):
                job[name] = str(Path(job[name]).absolute())  # the child works elsewhere
        job["report"] = str(self._report.absolute())
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pp_export", "export", "/dev/stdin"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=child.environment(),
                cwd=child.PACKAGE_PARENT,
            )
        assert self._process.stdin is not None
        with self._process.stdin as pipe:
            pipe.write(json.dumps(job).encode())

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self._process.poll() is not None

    def wait(self, timeout_s: float | None = None) -> dict[str, Any]:
        """The report, when it is there. Raises the ExportError with which the export failed, TimeoutError
        where it takes longer.
        """
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"the export of {self.options.checkpoint} still runs") from None
        try:
            report: dict[str, Any] = json.loads(self._report.read_text())
        except (OSError, ValueError):
            report = {}
        if status == 0 and report.get("status") == "ok":
            return report
        if report.get("status") == "failed":
            raise errors.from_json(report["error"])
        lines = self._log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
        raise ExportError(
            "the export in the background ended without a report",
            where={"checkpoint": self.options.checkpoint},
            got=f"exit status {status}",
            findings=lines,
        )

    def cancel(self) -> None:
        """Stop it; the target stays what it was, and nothing is left beside it."""
        self._process.terminate()
        self._process.wait()
