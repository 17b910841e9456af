"""How an image says what comes often: a value by its number, a column whose values are all alike by one."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import repeat
from typing import Any, TypeVar

T = TypeVar("T")


class Numbering(dict[T, int]):
    """Numbers values from 0, in the order in which they are first asked for; its keys are the values."""

    def __missing__(self, value: T) -> int:
        return self.setdefault(value, len(self))


def told_rows(rows: Collection[tuple[Any, ...]]) -> list[Any]:
    """Rows as JSON takes them: how many, and their columns, of one value only where all are alike."""
    return [len(rows), *(column[:1] if len(set(column)) == 1 else column for column in zip(*rows))]


def heard_rows(told: list[Any]) -> Iterator[tuple[Any, ...]]:
    """The rows that `told_rows` told."""
    count, *columns = told
    return zip(*(column if len(column) == count else repeat(column[0], count) for column in columns))
