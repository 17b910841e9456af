"""Logging: one line format, to stderr, with the rank in front when there is more than one."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

logger = logging.getLogger("pp_export")
LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


class _ToStderr(logging.StreamHandler[TextIO]):
    """Writes to whatever sys.stderr is at the time: where a display is up, above it."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, _: TextIO) -> None:
        """The base class sets it once."""


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
