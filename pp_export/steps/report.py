"""What an export has to say about itself: as JSON for machines, as provenance inside the manifest."""

from __future__ import annotations

import json
import platform
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from pp_export.core.errors import ExportError, OptionError
from pp_export.core.options import TargetOptions
from pp_export.disk import files
from pp_export.planning.export_plan import ExportPlan
from pp_export.process.log import logger
from pp_export.reference.folder import Reference
from pp_export.steps.inputs import ExportInputs


class Clock:
    """Seconds that each phase took."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        """Everything since the last lap was `name`."""
        now = time.monotonic()
        self.laps[name], self._last = round(now - self._last, 3), now


@dataclass(frozen=True)
class ExportReport:
    """An export that succeeded. `peaks` are bytes of anonymous memory per rank, known on rank 0."""

    sources: ExportInputs
    plan: ExportPlan
    options: TargetOptions
    reference: Reference | None
    corrections: tuple[str, ...]
    peaks: tuple[int, ...]
    seconds: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def provenance(self) -> dict[str, Any]:
        """Where the weights came from and how: for the manifest."""
        description = self.sources.catalog.description
        return {
            "checkpoint": description.folder,
            "format": description.format,
            "iteration": description.iteration,
            "args": description.args,
            "architecture": self.sources.architecture.name,
            "expected_from": self.sources.account.truth,
            "dropped": dict(self.sources.account.dropped),
            "options": self.options.to_json(),
            "plan_fingerprint": self.plan.fingerprint,
            "versions": versions(),
        }

    def to_json(self) -> dict[str, Any]:
        """The report of success."""
        return {
            "status": "ok",
            "output": str(Path(self.options.output).absolute()),
            **self.provenance(),
            "num_files": len(self.plan.shards),
            "num_tensors": sum(len(shard.tensors) for shard in self.plan.shards),
            "total_size": self.plan.total_size,
            "total_parameters": self.plan.total_parameters,
            "stages": [len(ranks) for ranks in self.plan.stages],
            "config_corrections": list(self.corrections),
            "assets_copied": list(self.reference.assets) if self.reference else [],
            "assets_left": list(self.reference.left) if self.reference else [],
            "notes": [
                *(self.reference.notes if self.reference else ()),
                *self.sources.catalog.description.notes,
                *self.notes,
            ],
            "verified": self.options.verify,
            "source_checked": getattr(self.options, "check_source", None),
            "seconds": self.seconds,
            "peak_anonymous_bytes": list(self.peaks),
            "planned_peak_bytes": [self.plan.peak_bytes(rank) for rank in range(self.plan.world_size)],
        }


def failure_json(error: ExportError, options: TargetOptions) -> dict[str, Any]:
    """The report of a failure."""
    return {
        "status": "failed",
        "error": error.to_json(),
        "options": options.to_json(),
        "versions": versions(),
    }


def write_failure(error: ExportError, options: TargetOptions) -> None:
    """Write the report of a failure, if one is asked for; that it can't be written hides nothing of
    `error`.
    """
    if options.report is not None:
        try:
            write_report(options.report, failure_json(error, options))
        except ExportError as unwritten:
            logger.error("the report could not be written: %s", unwritten)


def check_path(options: TargetOptions) -> None:
    """Raise OptionError where a report could not be written: that must not be found out at the end."""
    if options.report is None:
        return
    folder, output = options.report.absolute().parent, options.output.absolute()
    if not folder.is_dir():
        raise OptionError("the report's folder does not exist", where={"--report": options.report})
    if output in (folder, *folder.parents):
        raise OptionError(
            "the report lies in the output, which holds the model only", where={"--report": options.report}
        )


def write_report(path: Path, value: dict[str, Any]) -> None:
    """Write a report, replacing an older one."""
    files.write_file(path, [(json.dumps(value, indent=1) + "\n").encode()])


def versions() -> dict[str, str]:
    """Versions of what made the bytes."""
    names = ("pp_export", "torch", "safetensors", "transformers")
    known = {}
    for name in names:
        try:
            known[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            known[name] = "absent"
    return {**known, "python": platform.python_version()}


def peak_anonymous_bytes() -> int:
    """This process's peak of resident memory less the file pages that it maps now.

    The kernel keeps a peak for all resident memory only; nothing of the export's data is file-mapped, so the
    difference is the peak of anonymous memory to within the libraries' own pages.
    """
    fields = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("VmHWM", "RssFile"):
            fields[name] = int(value.split()[0]) * 1024
    return max(0, fields.get("VmHWM", 0) - fields.get("RssFile", 0))
