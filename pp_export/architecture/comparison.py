"""A setting as it was trained, and as a config.json says it: whether they agree, and in which words they
don't.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pp_export.architecture.reading import Config, Reading
from pp_export.core.settings import OneOf, Setting, agree

WINDOWS = "windows"
_OF_LONG_SEQUENCES = (WINDOWS, "attention_chunks", "query_growth")
_MAX_SHOWN = 160


@dataclass(frozen=True)
class Comparison:
    """A setting as it was trained, and as the config says it."""

    name: str
    reading: Reading
    setting: Setting
    reference: Config
    effect: Config
    sequence: Any

    @cached_property
    def stated(self) -> Any:
        return self.reading.read(self.effect)

    @property
    def agrees(self) -> bool:
        return any(self._same(value, self.stated) for value in self._trained())

    @property
    def is_default(self) -> bool:
        """Whether the reference leaves the setting to the class."""
        return bool(self.reading.keys) and not any(
            self.reference.get(key) is not None for key in self.reading.keys
        )

    def choice(self) -> dict[str, Any] | None:
        """Where the reference says two things, the keys that say what was trained, if one of them is it."""
        statements = self._statements() if self.contradictions() else []
        for value in self._trained():
            if any(self._same(value, said) for _, said in statements):
                return self.reading.write(self.effect, value)
        return None

    def contradictions(self) -> list[str]:
        statements = self._statements()
        if all(self._same(a, b) for _, a in statements for _, b in statements):
            return []
        said = ", ".join(f"{key} {shown(value)}" for key, value in statements)
        return [f"{self.name}: config.json says two things, and nothing tells which is true: {said}"]

    def notes(self) -> list[str]:
        value = self.setting.value
        if isinstance(value, OneOf):
            return [f"{self.name} can't be settled: {value.why}; config.json says {shown(self.stated)}."]
        is_long = self.name in _OF_LONG_SEQUENCES
        if is_long and not agree(value, self.stated) and self._same(value, self.stated):
            return [
                f"{self.name}: config.json says {shown(self.stated)}, no shorter than the sequences of"
                f" {self.sequence} that were trained on, where it changes nothing; longer ones it would."
            ]
        return []

    def finding(self, table: str, correctable: bool) -> str:
        value = self.setting.value
        values = value.values if isinstance(value, OneOf) else (value,)
        trained = " or ".join(map(shown, values)) + behind(self.name, self.setting)
        stated = shown(self.stated) + (" (by default)" if self.is_default else "")
        lost = "" if correctable or not self.reading.keys else f", and {table} can't say what was trained"
        if isinstance(value, OneOf):
            lost = f"; {value.why}: set config.json to what was trained"
        return f"{self.name}: the checkpoint was trained with {trained}, config.json says {stated}{lost}"

    def malformed(self) -> str:
        """The finding where config.json says something that no loader can take."""
        said = {key: self.effect[key] for key in self.reading.keys if self.effect.get(key) is not None}
        return f"{self.name}: config.json says it in a way that can't be understood: {shown(said)}"

    def _statements(self) -> list[tuple[str, Any]]:
        return self.reading.statements(self.reference)

    def _trained(self) -> tuple[Any, ...]:
        value = self.setting.value
        return () if not self.setting.is_known else value.values if isinstance(value, OneOf) else (value,)

    def _same(self, a: Any, b: Any) -> bool:
        if self.name in _OF_LONG_SEQUENCES:
            a, b = _without_idle(a, self.sequence), _without_idle(b, self.sequence)
        return self.reading.agree(a, b)


def _without_idle(windows: Any, sequence: Any) -> Any:
    """Windows without those that see the whole of every sequence; None where all do. Likewise what begins
    `after` so many tokens.
    """
    is_idle = isinstance(sequence, int)
    if isinstance(windows, Mapping) and is_idle and windows["after"] >= sequence:
        return None
    if not isinstance(windows, list):
        return windows
    left = [None if w is None or (is_idle and w >= sequence) else w for w in windows]
    return left if any(w is not None for w in left) else None


def behind(name: str, setting: Setting) -> str:
    """The args behind a setting, where they are not just itself."""
    if name in setting.args and agree(setting.args[name], setting.value):
        return ""
    given = {key: value for key, value in setting.args.items() if value is not None}
    return f" ({', '.join(f'{key} {shown(value)}' for key, value in given.items())})" if given else ""


def shown(value: Any) -> str:
    """A value for people, bounded in length."""
    if value is None:
        return "none"
    if isinstance(value, str):
        return value[:_MAX_SHOWN]
    if isinstance(value, list) and len(value) > 1 and all(each == value[0] for each in value):
        return f"{shown(value[0])} in each of {len(value)} layers"
    if isinstance(value, (dict, list)):
        return json.dumps(value, default=str)[:_MAX_SHOWN]
    return str(value)
