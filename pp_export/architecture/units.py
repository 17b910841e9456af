"""Units: what belongs together in the folder, in file order. Tables declare them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

HOLE = re.compile(r"\{(\w*)\}")


class Unit(NamedTuple):
    """One unit, for example `layer 3`; units sort in file order."""

    order: int
    numbers: tuple[int, ...]
    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class UnitKind:
    """A line of a table's `units`: number `order` of them, `name` with holes that number its units.

    The rules whose Megatron pattern begins with one of `prefixes` belong to it, unless they say otherwise.
    """

    order: int
    name: str
    prefixes: tuple[str, ...]

    @cached_property
    def holes(self) -> tuple[str, ...]:
        return tuple(HOLE.findall(self.name))

    def covers(self, pattern: str) -> bool:
        """Whether a rule of this Megatron pattern belongs here."""
        return pattern.startswith(self.prefixes)

    def unit(self, numbers: Mapping[str, int]) -> Unit:
        """The unit of a tensor with these numbers in its holes."""
        return Unit(self.order, tuple(numbers[hole] for hole in self.holes), self.name.format(**numbers))
