"""How a setting is derived of training args: a function, and the names of the args that it may ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from pp_export.core.settings import UNKNOWN


class Args(Mapping[str, Any]):
    """The args that one setting depends on; asking for another is a defect of ours."""

    def __init__(self, args: Mapping[str, Any], names: tuple[str, ...]) -> None:
        self._args, self._names = args, names

    def __getitem__(self, name: str) -> Any:
        assert name in self._names, f"{name} is not declared"
        return self._args[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._names if name in self._args)

    def __len__(self) -> int:
        return sum(1 for _ in self)


MAX_LAYERS = 100_000
Derive = Callable[[Args], Any]


@dataclass(frozen=True)
class Derivations:
    """Settings by name: the args that each is derived of, and the function that does it."""

    by_name: dict[str, tuple[tuple[str, ...], Derive]] = field(default_factory=dict)

    def of(self, *names: str) -> Callable[[Derive], Derive]:
        """Register a function `_NAME` as what derives the setting NAME of the args `names`."""

        def register(function: Derive) -> Derive:
            self.by_name[function.__name__.removeprefix("_")] = (names, function)
            return function

        return register

    def plain(self, *names: str) -> None:
        """Register args that are settings as they stand, and never None."""
        for name in names:
            self.by_name[name] = ((name,), _as_it_stands)


def _as_it_stands(args: Args) -> Any:
    return next((known(value) for value in args.values()), UNKNOWN)


def known(value: Any) -> Any:
    """The value of an arg of which None is no value."""
    return UNKNOWN if value is None else value


def is_layers(value: Any) -> TypeGuard[int]:
    """Whether `value` can be a number of layers."""
    return is_count(value) and value <= MAX_LAYERS


def is_count(value: Any) -> TypeGuard[int]:
    """Whether `value` is a whole number from 0 on."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
