"""Which iteration is exported next, and what becomes of those that aren't; on rank 0 only."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from pp_export.checkpoint import locate
from pp_export.checkpoint.formats import is_checkpoint, is_finished
from pp_export.core.errors import CheckpointError, as_export_error
from pp_export.options.iterations import PLACE, Wanted, options_of
from pp_export.options.kinds import ExportOptions
from pp_export.process import signals
from pp_export.process.log import logger
from pp_export.steps.exported import is_exported
from pp_export.steps.many_report import FAILED, SKIPPED, ManyReport, Outcome

_LOOK_SECONDS = 2.0
_PROVED = "it is exported and proved"
_GONE = "its save is gone"
_UNFINISHED = "its save is not finished"

State = tuple[int, int] | None
"""A folder's number and the time of its last change; None where there is none."""


class Queue:
    """The saves that are wanted of one root, in ascending order; each is taken once, or, where they are
    watched, again when its folder has changed. What became of them is in `report`.
    """

    def __init__(self, wanted: Wanted, options: ExportOptions, on_news: Callable[[ManyReport], None]) -> None:
        self.report = ManyReport()
        self._wanted, self._options, self._on_news = wanted, options, on_news
        self._waiting: set[int] = set()
        self._taken: dict[int, State] = {}
        self._first: int | None = None

    def next(self, check: Callable[[], None]) -> int | None:
        """The iteration to export now, or None when there is none and none will come; `check` is called while
        one is waited for, and may raise. Raises CheckpointError where the root is none.
        """
        root = self._options.checkpoint
        if root.is_dir() and is_checkpoint(root):
            raise CheckpointError(
                f"--output with {PLACE} needs the checkpoint's root folder, which holds all iterations",
                where={"folder": root},
                got="the folder of one save",
            )
        if self._wanted.watch and not self._taken:
            logger.info("watching %s", root)
        while True:
            self._waiting.update(filter(self._is_new, self._candidates()))
            while self._waiting:
                iteration = min(self._waiting)
                self._waiting.remove(iteration)
                self._taken[iteration] = _state(self._options, iteration)
                if self._is_to_do(iteration):
                    return iteration
            if not self._wanted.watch:
                return None
            check()
            time.sleep(_LOOK_SECONDS)

    def done(self, outcome: Outcome) -> None:
        """What became of an iteration that was given; said again, it changes nothing."""
        is_gone = (
            self._taken[outcome.iteration] is not None and _state(self._options, outcome.iteration) is None
        )
        if outcome.status == FAILED and is_gone and not self._is_asked_for(outcome.iteration):
            outcome = Outcome(outcome.iteration, outcome.output, SKIPPED, notes=(_GONE,))
        self._tell(outcome)

    def _is_new(self, iteration: int) -> bool:
        if not self._wanted.watch:
            return iteration not in self._taken
        is_known = self._taken.get(iteration, (0, 0)) == _state(self._options, iteration)
        return not is_known and is_finished(self._options.checkpoint, iteration)

    def _candidates(self) -> Iterator[int]:
        wanted, root = self._wanted, self._options.checkpoint
        latest = self._latest() if wanted.latest else None
        there = locate.iterations(root) if wanted.all or wanted.watch else []
        if wanted.all and not (wanted.watch or there or wanted.numbers):
            raise CheckpointError(
                "the checkpoint has no iteration folders", where={"folder": root}, expected="iter_*"
            )
        if not wanted.all and latest is not None:
            there = [iteration for iteration in there if iteration >= latest]
        yield from sorted({*wanted.numbers, *there, *([] if latest is None else [latest])})

    def _latest(self) -> int | None:
        """What the tracker named first."""
        root = self._options.checkpoint
        if self._first is None:
            self._first = locate.latest(root)
        if self._first is None and not self._wanted.watch:
            raise CheckpointError(
                f"{locate.TRACKER} names no iteration, so none is the latest",
                where={"folder": root},
                advice="give numbers with --iteration; a release is exported to an --output of its own",
            )
        return self._first

    def _is_to_do(self, iteration: int) -> bool:
        options, root = options_of(self._options, iteration), self._options.checkpoint
        outcome = Outcome(iteration, str(options.output.absolute()), SKIPPED, notes=(_PROVED,))
        try:
            if not self._is_asked_for(iteration):
                if self._taken[iteration] is None:
                    raise _Left(_GONE)
                if not is_finished(root, iteration):
                    raise _Left(_UNFINISHED)
            if not is_exported(options):
                logger.info("exporting iteration %d to %s", iteration, options.output)
                return True
        except _Left as left:
            outcome = Outcome(iteration, outcome.output, SKIPPED, notes=(str(left),))
        except Exception as error:  # noqa: BLE001  the others are exported
            outcome = Outcome(iteration, outcome.output, FAILED, error=as_export_error(error))
        self._tell(outcome)
        return False

    def _is_asked_for(self, iteration: int) -> bool:
        """Whether the user gave its number: then it has to be there."""
        return iteration in self._wanted.numbers

    def _tell(self, outcome: Outcome) -> None:
        before = self.report.outcomes.get(outcome.iteration)
        if outcome == before:
            return
        if outcome.notes == (_PROVED,) and before is not None and before.status != FAILED:
            return  # looked at again, because something has touched its folder
        self.report.outcomes[outcome.iteration] = outcome
        if outcome.error is not None:
            logger.error("iteration %d failed: %s", outcome.iteration, outcome.error)
        else:
            notes = ": " + "; ".join(outcome.notes) if outcome.status == SKIPPED else ""
            logger.info("iteration %d %s%s", outcome.iteration, outcome.status, notes)
        with signals.held():
            self._on_news(self.report)


class _Left(Exception):  # noqa: N818  not an error: why a save is left out
    pass


def _state(options: ExportOptions, iteration: int) -> State:
    try:
        found = locate.folder_of(options.checkpoint, iteration).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
