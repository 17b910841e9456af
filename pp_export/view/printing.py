"""Results on stdout: once for all ranks of a launch, as text or as JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from pp_export.process import launch


def print_result(value: dict[str, Any], as_json: bool, show: Callable[[], None]) -> None:
    """Print a report, by the rank that speaks for all."""
    if not launch.speaks(os.environ):
        return  # rank 0 of the same launch says it once for all
    if as_json:
        print_json(value)
    else:
        show()


def print_json(value: dict[str, Any]) -> None:
    """Print JSON, a value in a line."""
    sys.stdout.write(json.dumps(value, indent=1) + "\n")


def leave_stdout() -> None:
    """Drop what stdout can't take any more, of which something was said, or Python complains at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
