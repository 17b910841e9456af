"""Which step of its run a folder was saved at, as far as the names of folders say."""

from __future__ import annotations

import re
from pathlib import Path

_STEP = re.compile(r"(?:.*[_-])?(?:global_?step|step|iter|iteration|checkpoint)[_-]?(\d{1,18})")
_LEVELS = 3


def step_of(folder: Path) -> int | None:
    """The number in the nearest of the last names of a path: `global_step_100/actor`, `step-100`."""
    for name in folder.absolute().parts[: -_LEVELS - 1 : -1]:
        if match := _STEP.fullmatch(name):
            return int(match[1])
    return None
