"""Logging: one line format, to stderr, with the rank in front when there is more than one."""

from __future__ import annotations

import logging
import sys

logger = logging.getLogger("pp_export")


def configure(rank: str | None, *, verbose: bool = False) -> None:
    """Send this process's log to stderr, with its `rank` if there are several; called once by the command
    line, never by the library.
    """
    who = "" if rank is None else f"[rank {rank}] "
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"{who}%(message)s"))
    logger.handlers[:] = [handler]
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    logger.propagate = False
