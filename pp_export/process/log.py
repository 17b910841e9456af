"""Logging: one line format, to stderr, with the rank in front when there is more than one."""

from __future__ import annotations

import logging
import sys

logger = logging.getLogger("pp_export")
LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


class _ToStderr(logging.Handler):
    """Writes to whatever sys.stderr is at the time: where a display is up, above it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except Exception:  # noqa: BLE001  as every handler of logging
            self.handleError(record)


def configure(rank: str | None, level: str = "info") -> None:
    """Send this process's log to stderr, with its `rank` if there are several; called once by the command
    line, never by the library.
    """
    who = "" if rank is None else f"[rank {rank}] "
    handler = _ToStderr()
    handler.setFormatter(logging.Formatter(f"{who}%(message)s"))
    logger.handlers[:] = [handler]
    logger.setLevel(LEVELS[level])
    logger.propagate = False
