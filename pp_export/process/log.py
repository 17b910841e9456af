"""Logging: one line format, to stderr, with the rank in front when there is more than one."""

from __future__ import annotations

import logging
import sys

logger = logging.getLogger("pp_export")


def configure(rank: int, world_size: int, *, verbose: bool = False) -> None:
    """Send this process's log to stderr; called once by the command line, never by the library."""
    who = f"[rank {rank}] " if world_size > 1 else ""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"{who}%(message)s"))
    logger.handlers[:] = [handler]
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    logger.propagate = False
