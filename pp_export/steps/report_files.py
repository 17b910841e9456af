"""Reports as files: of success when the folder is published, of failure with what failed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pp_export.core import errors
from pp_export.core.errors import ExportError, PeerError, StoppedError
from pp_export.disk import files
from pp_export.options.kinds import TargetOptions
from pp_export.process.log import logger
from pp_export.steps.report import SCHEMA_VERSION, ExportReport, noted
from pp_export.steps.target import is_inside
from pp_export.steps.versions import versions


def failure_json(error: ExportError, options: TargetOptions | None) -> dict[str, Any]:
    """The report of a failure, of an export where there are `options`."""
    told = {} if options is None else {"options": options.to_json()}
    return {
        "schema_version": SCHEMA_VERSION,
        "status": "failed",
        "error": error.to_json(),
        **told,
        "versions": versions(),
    }


def write_failure(error: ExportError, options: TargetOptions, *, since: float) -> None:
    """Write the report of a failure, if one is asked for; that it can't be written hides nothing of
    `error`. What a rank only saw of others replaces no report that one of them has written `since` the
    export began (seconds of the clock).
    """
    if options.report is None or is_inside(options.report, options.output) or "--report" in error.where:
        return  # or what is told is that it can't be written there
    if isinstance(error, (PeerError, StoppedError)) and _is_newer(options.report, since):
        return
    try:
        write_report(options.report, failure_json(error, options))
    except ExportError as unwritten:
        logger.error("the report could not be written: %s", unwritten)


def _is_newer(path: Path, since: float) -> bool:
    try:
        return path.stat().st_mtime > since
    except OSError:
        return False


def written(done: ExportReport, write: Callable[[ExportReport], None]) -> ExportReport:
    """The report of an export that is published, when it has been written somewhere; that this fails is a
    note in it.
    """
    try:
        write(done)
    except Exception as error:  # noqa: BLE001  whatever it is, the export stands
        note = noted(errors.as_export_error(error))
        logger.warning("%s", note)
        return replace(done, notes=(*done.notes, note))
    return done


def write_done(path: Path, done: ExportReport) -> None:
    """Write the report of an export, replacing an older one."""
    write_report(path, done.to_json())


def write_report(path: Path, value: dict[str, Any]) -> None:
    """Write a report, replacing an older one."""
    files.write_file(path, [(json.dumps(value, indent=1) + "\n").encode()])
