"""Where pages of reports are written, and that one that can't be written takes nothing from its report."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pp_export.core import errors
from pp_export.process.log import logger

if TYPE_CHECKING:
    from pp_export.options.kinds import RunOptions
    from pp_export.shards.manifests import ShardManifest
    from pp_export.steps.many_report import ManyReport
    from pp_export.steps.plan_report import PlanReport
    from pp_export.steps.report import ExportReport

Result = TypeVar("Result")


def write_plan(path: Path, report: PlanReport) -> PlanReport:
    """Draw what an export would do, replacing an older page. That this fails is a note in the report."""
    from pp_export.view.pages.planned import plan_page

    return _noted(report, _attempt(partial(_write, path), partial(plan_page, report)))


def write_export(path: Path, report: ExportReport) -> None:
    """Draw what an export did, and the tensors of its folder's manifest, replacing an older page."""
    from pp_export.view.pages.exported import export_page
    from pp_export.view.pages.tensors import shards_of

    shards: list[ShardManifest] = []
    try:
        shards = shards_of(Path(report.output))
    except errors.ExportError as error:
        report = dataclasses.replace(report, notes=(*report.notes, f"no tensors are shown: {error.what}"))
    _write(path, export_page(report, shards))


def write_many(path: Path, report: ManyReport) -> None:
    """Draw what became of each of many exports; that it can't be written is logged."""
    from pp_export.view.pages.many import many_page

    _attempt(partial(_write, path), partial(many_page, report))


def write_files(options: RunOptions, done: ExportReport) -> ExportReport:
    """Write what `options` ask for of an export that is published, its page and its report; called on rank 0.
    What can't be written is a note in the report that is returned: the export stands.
    """
    from pp_export.steps import report_files

    if options.html is not None:
        done = report_files.written(done, partial(write_export, options.html))
    if options.report is not None:
        done = report_files.written(done, partial(report_files.write_done, options.report))
    return done


class Page:
    """The page of something that is looked at from now on: where it goes, None for none, is checked before.

    What is looked at are `folders`; a page inside of one would be a part of it. Raises OptionError.
    """

    def __init__(self, path: str | os.PathLike[str] | None, *folders: str | os.PathLike[str]) -> None:
        self._path, self._began = None if path is None else Path(path), time.monotonic()
        if self._path is not None:
            from pp_export.steps.target import check_page

            check_page(self._path, map(Path, folders))

    def of(self, result: Result, draw: Callable[[Result, float], bytes]) -> Result:
        """Write what `draw` makes of the result and the seconds that it took. That this fails is a note in
        the result that is returned, where such a result has notes.
        """
        if self._path is None:
            return result
        seconds = time.monotonic() - self._began
        return _noted(result, _attempt(partial(_write, self._path), partial(draw, result, seconds)))


def _noted(result: Result, told: str | None) -> Result:
    """The result with one note more, where there is one and results of its kind have notes."""
    known: Any = result
    if told is None or not hasattr(known, "notes"):
        return result
    noted: Result = dataclasses.replace(known, notes=(*known.notes, told))
    return noted


def _attempt(write: Callable[[bytes], None], draw: Callable[[], bytes]) -> str | None:
    """What went wrong, as a sentence; it is logged."""
    try:
        write(draw())
    except Exception as error:  # noqa: BLE001  whatever it is, the result stands
        failed = errors.as_export_error(error)
        place = failed.where.get("file")
        told = f"the page could not be written: {failed.what}" + (f": {place}" if place else "")
        logger.warning("%s", told)
        return told
    return None


def _write(path: Path, image: bytes) -> None:
    from pp_export.disk import files

    files.write_file(path, [image])
