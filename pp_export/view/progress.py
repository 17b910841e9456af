"""How far an export, a verification or a comparison is: on a terminal a few lines that stay up to date, else
a line now and then, and what is waited for in both.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING

from pp_export.process.log import logger
from pp_export.steps.telling import ExportProgress, OnProgress, PartProgress, Step, ignore
from pp_export.view.text import human_bytes, prepare

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

_LINE_SECONDS, _LINES_GET_RARER = 5.0, 20
_REFRESHES_PER_SECOND = 4
_WIDE = 100


class ExportView:
    """Shows how far an export is: called with what it tells, on rank 0 alone.

    A thread keeps what is shown up to date while the export waits. Not so `in_job`: there everything happens
    in the calls, and sys.stdout and sys.stderr stay what they are.
    """

    def __init__(self, *, in_job: bool = False) -> None:
        self._in_job = in_job
        self._now = ExportProgress()
        self._stepped, self._pace = time.monotonic(), _LinePace()
        self._live: Live | None = None
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._ticker: threading.Thread | None = None

    def __enter__(self) -> ExportView:
        self._stepped, self._pace = time.monotonic(), _LinePace()
        if is_shown():
            self._live = _live(self._draw, in_job=self._in_job, auto_refresh=False)
            self._live.start()
        if not self._in_job:
            self._ticker = threading.Thread(target=self._tick, daemon=True, name="pp_export-view")
            self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._ticker is not None:
            self._ticker.join()
        if self._live is not None:
            self._live.stop()

    def __call__(self, now: ExportProgress) -> None:
        """The export is that far."""
        if now.about and not self._now.about:
            with self._lock:  # or both would write where the other has drawn
                logger.info("exporting %s", now.about)
        if now.step != self._now.step:
            self._stepped = time.monotonic()
            if now.step == Step.MOVING:
                prepare()
        self._now = now
        if self._live is None:
            self._line()
        elif self._in_job:
            self._live.refresh()

    def _tick(self) -> None:
        """What is drawn, or a line, while nobody calls."""
        while not self._stop.wait(1.0 if self._live is None else 1 / _REFRESHES_PER_SECOND):
            if self._live is None:
                self._line()
            else:
                with self._lock:
                    self._live.refresh()

    def _line(self) -> None:
        """A line, if it is time for one."""
        with self._lock:
            if self._now.step != Step.DONE and self._pace.is_due():
                logger.info("%s", line_of(self._now, time.monotonic() - self._stepped))

    def _draw(self) -> RenderableType:
        return table_of(self._now, time.monotonic() - self._stepped)


class _LinePace:
    """When the next line of a log is due: the longer something takes, the rarer they are."""

    def __init__(self) -> None:
        self.began = self._last = time.monotonic()

    def is_due(self) -> bool:
        """Whether it is now; then the next one is awaited."""
        now = time.monotonic()
        if now - self._last < max(_LINE_SECONDS, (now - self.began) / _LINES_GET_RARER):
            return False
        self._last = now
        return True


def shown_by(rank: int, kind: str) -> AbstractContextManager[OnProgress]:
    """What shows progress on rank 0, and nothing on the others: "auto" draws on a terminal and logs lines
    elsewhere, "json" prints lines of JSON to stderr, "none" shows nothing.
    """
    if rank != 0 or kind == "none":
        return nullcontext(ignore)
    return nullcontext(_JsonLines()) if kind == "json" else ExportView()


class _JsonLines:
    """A line of JSON for every step, and one a second meanwhile."""

    def __init__(self) -> None:
        self._step, self._at = "", 0.0

    def __call__(self, now: ExportProgress) -> None:
        at = time.monotonic()
        if now.step != self._step or at - self._at >= 1:
            self._step, self._at = now.step, at
            sys.stderr.write(json.dumps(now.to_json()) + "\n")
            sys.stderr.flush()


def line_of(now: ExportProgress, waited: float) -> str:
    """All stages in one line, for logs."""
    if not now.parts or now.step in (Step.COMPLETING, Step.PUBLISHING, Step.CONFIRMING):
        return f"{now.step}, for {waited:.0f} s"
    total = now.total
    told = [
        f"{human_bytes(total.written)} of {human_bytes(total.to_write)} written",
        f"{human_bytes(now.bytes_per_second)}/s",
        f"{total.files} of {total.num_files} {now.files_are}",
    ]
    if total.to_verify:
        told.append(f"{human_bytes(total.verified)} of {human_bytes(total.to_verify)} verified")
    if now.seconds_left is not None:
        told.append(f"{_clock(now.seconds_left)} left")
    return ", ".join(told)


def table_of(now: ExportProgress, waited: float) -> RenderableType:
    """What a terminal shows: what is waited for, then all bytes, then those of each stage if there are
    several. For 80 columns and more.
    """
    from rich.console import Group
    from rich.spinner import Spinner
    from rich.text import Text

    step = Text(f"{now.step}{f', for {waited:.0f} s' if waited >= 1 and now.step != Step.MOVING else ''}")
    head = Text(now.step) if now.step == Step.DONE else Spinner("dots", step)
    if not now.parts:
        return head
    total, left = now.total, f"{_clock(now.seconds_left)} left" if now.seconds_left else ""
    rate = f"{human_bytes(now.bytes_per_second)}/s"
    pace = f"{_clock(now.seconds)} {left}".strip()
    lines = [
        (
            "written",
            total.written,
            total.to_write,
            rate,
            pace,
            f"{total.files}/{total.num_files} {now.files_are}",
        )
    ]
    if total.to_verify:
        lines.append(("verified", total.verified, total.to_verify, "", "", ""))
    if len(now.parts) > 1:
        lines += [_line_of_part(part, now.files_are) for part in now.parts]
    return Group(head, _grid(lines))


def _line_of_part(part: PartProgress, files_are: str) -> tuple[str, int, int, str, str, str]:
    files = f"{part.files}/{part.num_files} {files_are}"
    return (part.name, part.written + part.verified, part.to_write + part.to_verify, "", "", files)


def _grid(lines: Sequence[tuple[str, int, int | None, str, str, str]]) -> RenderableType:
    """A row for each line: name, bar, bytes of how many, rate, time, and files if it is wide enough."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1, min_width=4)
    for _ in range(3):
        grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    is_wide = _width() >= _WIDE
    for name, done, whole, rate, pace, files in lines:
        of = "" if whole is None else f" of {human_bytes(whole)}"
        bar = ProgressBar(total=whole, completed=done, pulse=whole is None)
        grid.add_row(name, bar, f"{human_bytes(done)}{of}", rate, pace, files if is_wide else "")
    return grid


class BytesView:
    """Shows how many bytes a verification or a comparison has read, on a terminal as a bar, else in a line
    now and then; of how many, when `total` has been told. When all are read, what is waited for `then`.
    """

    def __init__(self, what: str, *, then: str = "", is_quiet: bool = False) -> None:
        self._what, self._then, self._is_quiet = what, then, is_quiet
        self._is_over, self._read_at = False, 0.0
        self._done, self._total = 0, 0
        self._pace = _LinePace()
        self._live = _live(self._draw, in_job=False) if is_shown() and not is_quiet else None

    def __enter__(self) -> BytesView:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over = True
        if self._live is not None:
            if kind is None and self._total:
                self._total = self._done  # what wasn't read was proved without
            self._live.stop()

    def total(self, num_bytes: int) -> None:
        """So many are to be read, beginning now."""
        self._total, self._pace = num_bytes, _LinePace()

    def add(self, count: int) -> None:
        """So many more are read; called by one thread at a time."""
        self._done += count
        self._read_at = time.monotonic()
        if self._live is None and not self._is_quiet and self._pace.is_due():
            of = f" of {human_bytes(self._total)}" if self._total else ""
            rate, left = self._rate_and_left(time.monotonic())
            logger.info("%s %s%s, %s%s", self._what, human_bytes(self._done), of, rate, left and f", {left}")

    def _rate_and_left(self, now: float) -> tuple[str, str]:
        is_read = 0 < self._total <= self._done
        seconds = max((self._read_at if is_read else now) - self._pace.began, 1e-3)
        left = self._then if is_read and not self._is_over else ""
        if self._total and self._done and not is_read:
            left = f"{_clock(seconds * max(0, self._total - self._done) / self._done)} left"
        return f"{human_bytes(self._done / seconds)}/s", left

    def _draw(self) -> RenderableType:
        now = time.monotonic()
        rate, left = self._rate_and_left(now)
        name = self._what if self._done or self._total else "reading metadata"
        pace = f"{_clock(now - self._pace.began)} {left}".strip()
        whole = max(self._total, self._done) if self._total else None  # small files are not counted before
        return _grid([(name, self._done, whole, rate, pace, "")])


def is_shown() -> bool:
    """Whether stderr is a terminal that can draw."""
    return sys.stderr.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


def _clock(seconds: float) -> str:
    """`0:01:05`."""
    return str(timedelta(seconds=round(seconds)))


def _width() -> int:
    from rich.console import Console

    return Console(stderr=True).width


def _live(draw: Callable[[], RenderableType], *, in_job: bool, auto_refresh: bool = True) -> Live:
    from rich.console import Console
    from rich.live import Live

    return Live(
        get_renderable=draw,
        console=Console(stderr=True),
        refresh_per_second=_REFRESHES_PER_SECOND,
        auto_refresh=auto_refresh,
        redirect_stdout=not in_job,
        redirect_stderr=not in_job,
    )
