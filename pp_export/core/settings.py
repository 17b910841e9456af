"""Settings: properties of the function that a model computes, as two sides may say them.

The side that trained says them in args, the side that serves in config.json. A value is JSON and means the
same on both sides; one of the marks below where there is no value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final


class _Mark:
    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


UNKNOWN: Final = _Mark("unknown")
"""Nothing says it. Unknown isn't false, and nothing is concluded from it."""

MALFORMED: Final = _Mark("malformed")
"""Something is said that can't be a value of it."""

UNUSED: Final = _Mark("unused")
"""The model has nothing that it could be a property of: dense layers have no router."""


@dataclass(frozen=True)
class OneOf:
    """A setting that is left open between some values, and why."""

    values: tuple[Any, ...]
    why: str


@dataclass(frozen=True)
class Setting:
    """The value of a setting, or a mark, or `OneOf`; and of the args that it depends on, those that are
    there.
    """

    value: Any
    args: Mapping[str, Any]

    @property
    def is_known(self) -> bool:
        return self.value is not UNKNOWN and self.value is not UNUSED


def agree(a: Any, b: Any) -> bool:
    """Whether two values mean the same: numbers by value, to within their last digits; None only None."""
    if isinstance(a, bool) or isinstance(b, bool):
        return isinstance(a, bool) and isinstance(b, bool) and a == b
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        try:
            return math.isclose(a, b, rel_tol=1e-6)
        except OverflowError:  # a whole number that no float holds
            return a == b
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(agree(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(agree, a, b))
    return bool(a == b)


def is_nth(layer: int, step: int) -> bool:
    """Whether a layer, numbered from 0, is an N-th one, as all who say "each N-th layer" count: from 1."""
    return (layer + 1) % step == 0


def is_off(value: Any) -> bool:
    """Whether an arg switches nothing on."""
    return value is None or value is False or value in (0, "", [], {}, ())
