"""Which iterations of a run are meant, where each has an output of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pp_export.core.errors import OptionError
from pp_export.options.kinds import ExportOptions

PLACE = "{iteration}"
"""Stands for the iteration's number in --output."""
ALL, LATEST = "all", "latest"


@dataclass(frozen=True)
class Wanted:
    """The iterations of these `numbers`; with `latest` the one that the tracker file names; with `all` every
    finished save. With `watch` also those that appear later: all finished ones, or from the latest on.
    """

    numbers: tuple[int, ...] = ()
    latest: bool = False
    all: bool = False
    watch: bool = False


def wanted(values: Mapping[str, Any], *, watch: bool) -> tuple[Wanted | None, dict[str, Any]]:
    """What raw options ask for, and the values of each export. None where it is one export only: the output
    is not made for many. Raises OptionError where both don't fit together.
    """
    asked, output = values.get("iteration"), str(values.get("output", ""))
    words = [str(word).strip() for word in (asked if isinstance(asked, list) else str(asked).split(","))]
    is_many = PLACE in output
    if not is_many and (watch or len(words) > 1 or words == [ALL]):
        raise OptionError(
            "several iterations need an output each",
            expected=f"--output with {PLACE}, for example /exports/run-{PLACE}",
            got=output or None,
        )
    if not is_many:
        return None, {**values, **({"iteration": None} if words == [LATEST] else {})}
    return _wanted(words, asked is None, watch), {**values, "iteration": None}


def options_of(options: ExportOptions, iteration: int) -> ExportOptions:
    """The options of one iteration's export."""
    output = str(options.output).replace(PLACE, str(iteration))
    return replace(options, iteration=iteration, output=Path(output))


def _wanted(words: list[str], is_default: bool, watch: bool) -> Wanted:
    if is_default:
        return Wanted(latest=not watch, all=watch, watch=watch)
    numbers = [word for word in words if word not in (ALL, LATEST)]
    if any(not word.isdecimal() for word in numbers):
        raise OptionError(
            "--iteration can't be read",
            expected=f"whole numbers, {LATEST} or {ALL}, separated by commas",
            got=",".join(words),
        )
    if numbers and watch:
        raise OptionError(
            "--watch exports every save that appears, and can't wait for chosen iterations",
            expected=f"--iteration {ALL} or {LATEST} (from the latest on)",
            got=",".join(words),
        )
    return Wanted(tuple(dict.fromkeys(map(int, numbers))), LATEST in words, ALL in words, watch)
