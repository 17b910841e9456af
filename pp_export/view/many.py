"""What people see of many exports: progress of each, a report as it grows, and a table at the end."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from pp_export.core.errors import ExportError
from pp_export.process.log import logger
from pp_export.steps import report_files
from pp_export.steps.target import check_path
from pp_export.view import html
from pp_export.view.printing import print_json
from pp_export.view.progress import shown_by
from pp_export.view.tables import print_many

if TYPE_CHECKING:
    from pp_export.distributed.world import World
    from pp_export.options.kinds import ExportOptions
    from pp_export.steps.many_report import ManyReport
    from pp_export.steps.telling import OnProgress


class ManyView:
    """What rank 0 shows; the other ranks show nothing. With `as_json` the report is what is printed."""

    def __init__(self, options: ExportOptions, *, shown: str, as_json: bool) -> None:
        check_path(options)
        self._options, self._shown, self._as_json = options, shown, as_json

    def of(self, world: World) -> AbstractContextManager[OnProgress]:
        """The view of the next export."""
        return shown_by(world.rank, self._shown)

    def news(self, so_far: ManyReport) -> None:
        """Write the report, so that it is there also when nobody can end it."""
        if self._options.report is None:
            return
        try:
            report_files.write_report(self._options.report, so_far.to_json())
        except ExportError as error:
            logger.error("the report could not be written: %s", error)

    def end(self, done: ManyReport) -> None:
        """Nothing more will come."""
        self.news(done)
        if self._options.html is not None:
            html.write_many(self._options.html, done)
        if self._as_json:
            print_json(done.to_json())
        else:
            print_many(done)
        if done.error is not None:
            logger.error("error: %s", done.error)
        sys.stdout.flush()
