"""Claims of `steps/queue.py`: each wanted save is given once, in order; what becomes of others is told."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pp_export.checkpoint.locate import TRACKER, folder_of
from pp_export.core.errors import CheckpointError, StoppedError, TargetError
from pp_export.options.iterations import Wanted
from pp_export.options.kinds import ExportOptions
from pp_export.steps import queue as queues
from pp_export.steps.many_report import FAILED, ManyReport, Outcome
from pp_export.steps.queue import Queue


class Run:
    """A training run whose saves are made of marks only, and the queue over it."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root / "run"
        self.exported: set[int] = set()
        self.news: list[dict[int, str]] = []
        self.options = ExportOptions(checkpoint=self.root, reference=root, output=root / "out-{iteration}")
        monkeypatch.setattr(queues, "_LOOK_SECONDS", 0.0)
        monkeypatch.setattr(queues, "is_exported", self._is_exported)

    def save(self, iteration: int, *, finished: bool = True) -> None:
        folder = folder_of(self.root, iteration)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__0_0.distcp").touch()
        if finished:
            (folder / "metadata.json").touch()
            (self.root / TRACKER).write_text(str(iteration))

    def delete(self, iteration: int) -> None:
        shutil.rmtree(folder_of(self.root, iteration))

    def queue(self, **wanted: object) -> Queue:
        return Queue(Wanted(**wanted), self.options, self._hear)  # type: ignore[arg-type]

    def export(self, queue: Queue, iteration: int | None) -> None:
        assert iteration is not None
        self.exported.add(iteration)
        queue.done(Outcome(iteration, "", "exported"))

    def _is_exported(self, options: ExportOptions) -> bool:
        assert options.iteration is not None
        if options.iteration == 666:
            raise TargetError("the output exists and is not this export")
        return options.iteration in self.exported

    def _hear(self, report: ManyReport) -> None:
        self.news.append({each.iteration: each.status for each in report.in_order})


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(tmp_path, monkeypatch)


def nothing() -> None:
    """What is done between two looks."""


def after(*steps: Callable[[], object]) -> Callable[[], None]:
    """One step at each look; a signal when there are no more."""
    left = list(steps)

    def look() -> None:
        if not left:
            raise StoppedError("stopped")
        left.pop(0)()

    return look


def reasons(queue: Queue) -> dict[int, str]:
    """The outcomes, with the reasons of those that were skipped."""
    return {each.iteration: each.notes[0] if each.notes else each.status for each in queue.report.in_order}


def test_numbers_are_given_in_order_and_once(run: Run) -> None:
    """One that is missing is given too, since only the export can say what is there; one that is exported is
    skipped, one that can't be is a failure, and the others go on.
    """
    run.save(100)
    run.save(300)
    run.exported.add(300)
    queue = run.queue(numbers=(666, 300, 200, 100), latest=True)
    given = []
    while (iteration := queue.next(nothing)) is not None:
        given.append(iteration)
        failed = iteration == 200
        error = CheckpointError("no folder") if failed else None
        queue.done(Outcome(iteration, "", FAILED if failed else "exported", error=error))
    assert given == [100, 200]
    assert reasons(queue) == {
        100: "exported",
        200: "failed",
        300: "it is exported and proved",
        666: "failed",
    }
    assert not queue.report.ok
    assert run.news[0] == {100: "exported"}
    assert len(run.news) == 4


def test_all_are_the_finished_ones(run: Run) -> None:
    """A save that is being written, or that is deleted before its turn or while it is read, is no failure."""
    for iteration in (100, 200, 300):
        run.save(iteration)
    run.save(400, finished=False)
    queue = run.queue(all=True)
    run.export(queue, queue.next(nothing))
    run.delete(200)
    assert queue.next(nothing) == 300
    run.delete(300)
    queue.done(Outcome(300, "", FAILED, error=CheckpointError("can't open")))
    assert queue.next(nothing) is None
    assert reasons(queue) == {
        100: "exported",
        200: "its save is gone",
        300: "its save is gone",
        400: "its save is not finished",
    }
    assert queue.report.ok


@pytest.mark.parametrize("wanted", [{"all": True}, {"latest": True}])
def test_a_root_without_saves_is_refused(run: Run, wanted: dict[str, bool]) -> None:
    """Nothing to export is a mistake, and so is the folder of one save in the place of the root."""
    for make in (nothing, run.root.mkdir):
        make()
        with pytest.raises(CheckpointError):
            run.queue(**wanted).next(nothing)
    (run.root / "metadata.json").touch()
    with pytest.raises(CheckpointError, match="needs the checkpoint's root folder"):
        run.queue(**wanted).next(nothing)


def test_a_watch_gives_saves_as_they_are_finished(run: Run) -> None:
    """Each when its last file is there, and not before, from before the run has saved anything on."""
    queue = run.queue(all=True, watch=True)
    looks = after(
        nothing, lambda: run.save(100, finished=False), nothing, lambda: run.save(100), lambda: run.save(200)
    )
    run.export(queue, queue.next(looks))
    assert reasons(queue) == {100: "exported"}
    run.export(queue, queue.next(looks))
    with pytest.raises(StoppedError):
        queue.next(looks)
    assert reasons(queue) == {100: "exported", 200: "exported"}


def test_a_watch_tells_what_was_deleted_while_it_waited(run: Run) -> None:
    """Retention may be faster than an export."""
    queue = run.queue(all=True, watch=True)
    for iteration in (100, 200, 300):
        run.save(iteration)
    run.export(queue, queue.next(nothing))
    run.delete(100)
    run.delete(200)
    assert queue.next(nothing) == 300
    assert reasons(queue) == {100: "exported", 200: "its save is gone"}


def test_a_watch_takes_a_save_again_only_when_it_has_changed(run: Run) -> None:
    """One that failed is not tried for ever; one that is exported and only touched makes no news."""
    run.save(100)
    run.save(200)
    queue = run.queue(all=True, watch=True)
    run.export(queue, queue.next(nothing))
    assert queue.next(nothing) == 200
    queue.done(Outcome(200, "", FAILED, error=CheckpointError("damaged")))
    with pytest.raises(StoppedError):
        queue.next(after(nothing, nothing))
    (folder_of(run.root, 100) / "touched").touch()
    (folder_of(run.root, 200) / "restored").touch()
    num_news = len(run.news)
    run.export(queue, queue.next(after(nothing)))
    assert queue.report.ok
    assert len(run.news) == num_news + 1


def test_a_watch_may_begin_with_the_latest(run: Run) -> None:
    """Older saves are left alone, and all later ones are taken."""
    run.save(100)
    run.save(200)
    queue = run.queue(latest=True, watch=True)
    run.export(queue, queue.next(nothing))
    run.export(queue, queue.next(after(lambda: run.save(300))))
    with pytest.raises(StoppedError):
        queue.next(after(nothing))
    assert reasons(queue) == {200: "exported", 300: "exported"}
