"""How each training arg is decided for a class: compared, required, told, or left alone for a reason."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pp_export.architecture import table_files
from pp_export.architecture.rules import Architecture
from pp_export.core.settings import is_off

ReadBy = Mapping[str, tuple[str, ...]]
"""Setting -> the args that it is derived of."""

COMPARED, REQUIRED, TOLD = "compared", "required", "told"
UNREAD = "read only with another arg that a table decides"
_EXPERTS = "num_experts"
_ALWAYS = ("sequence_length",)


@dataclass(frozen=True)
class Decision:
    """The kind of decision, and what it says: keys of config.json, the value that is needed, or a reason."""

    kind: str
    text: str


@cache
def _patterns() -> list[tuple[re.Pattern[str], tuple[str, str]]]:
    """The patterns of other args, compiled once: `fnmatch` alone forgets them where there are many."""
    others = table_files.other_args().items()
    return [(re.compile(fnmatch.translate(pattern)), said) for pattern, said in others if "*" in pattern]


class Decisions:
    """The decisions of one table."""

    def __init__(self, architecture: Architecture, read_by: ReadBy) -> None:
        self._direct: dict[str, list[Decision]] = {}
        for setting, reading in architecture.readings.items():
            keys = ", ".join(reading.keys) or "what the class always does"
            self._add(setting, read_by, Decision(COMPARED, keys))
        for setting, required in architecture.requires.items():
            self._add(setting, read_by, Decision(REQUIRED, f"{setting} {required.value}"))
        for setting in _ALWAYS:
            self._add(setting, read_by, Decision(COMPARED, "with windows"))
        placed = architecture.readings.keys() | architecture.requires.keys()
        for setting in read_by.keys() - placed if _EXPERTS in architecture.requires else ():
            if _EXPERTS in read_by[setting]:  # of the router of a model that has none
                for arg in read_by[setting]:
                    self._direct.setdefault(arg, [Decision(UNREAD, _EXPERTS)])
        for arg, text in architecture.tells.items():
            self._add(arg, {}, Decision(TOLD, text))

    def of(self, arg: str) -> tuple[Decision, ...]:
        """The decisions on an arg; none where nobody knows it."""
        if arg in self._direct:
            return tuple(self._direct[arg])
        named = table_files.other_args().get(arg)
        found = named or next((said for pattern, said in _patterns() if pattern.match(arg)), None)
        return () if found is None else (Decision(*found),)

    def describes_model(self, arg: str) -> bool:
        """Whether the arg takes part in what was compared or required."""
        return any(decision.kind in (COMPARED, REQUIRED) for decision in self._direct.get(arg, ()))

    def unknown(self, args: Mapping[str, Any]) -> list[str]:
        """The args that are decided nowhere and switch something on, as far as one can tell."""
        return sorted(arg for arg, value in args.items() if not is_off(value) and not self.of(arg))

    def _add(self, setting: str, read_by: ReadBy, decision: Decision) -> None:
        for arg in read_by.get(setting, (setting,)):
            self._direct.setdefault(arg, []).append(decision)
