"""Numbers for values that come often, so that an image says each of them once."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


class Numbering(dict[T, int]):
    """Numbers values from 0, in the order in which they are first asked for; its keys are the values."""

    def __missing__(self, value: T) -> int:
        return self.setdefault(value, len(self))
