"""One reading: how a setting stands in config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pp_export.core.settings import MALFORMED, agree

Config = Mapping[str, Any]
Statement = tuple[str, Any]
_UNEXPECTED = (TypeError, ValueError, ArithmeticError, AttributeError, LookupError)


@dataclass(frozen=True)
class Reading:
    """How a setting is read and written. `keys` are those of config.json that take part; `statements` gives
    each place that says the whole setting, where there are several; `agree` compares two values.
    """

    keys: tuple[str, ...]
    read_from: Callable[[Config], Any]
    write_to: Callable[[Config, Any], dict[str, Any] | None]
    statements: Callable[[Config], list[Statement]] = lambda _: []
    agree: Callable[[Any, Any], bool] = agree

    def read(self, config: Config) -> Any:
        """The value that a config says; UNKNOWN where it says none, MALFORMED where no loader could tell."""
        try:
            return self.read_from(config)
        except _UNEXPECTED:
            return MALFORMED

    def write(self, config: Config, value: Any) -> dict[str, Any] | None:
        """The keys that say a value, None where none can."""
        try:
            return self.write_to(config, value)
        except _UNEXPECTED:
            return None
