"""How fast a storage reads and writes, as users say it."""

from __future__ import annotations

from pp_export.core.errors import OptionError

_MOST, _MAX_SHOWN = 10**9, 30


def parse_rates(text: str) -> tuple[float, float]:
    """`R,W`, two positive numbers."""
    try:
        read, write = (float(part) for part in text.split(","))
        if not all(0 < rate <= _MOST for rate in (read, write)):
            raise ValueError
    except ValueError:
        got = str(text)[:_MAX_SHOWN]
        raise OptionError("not two rates", expected="R,W: two positive numbers", got=got) from None
    return read, write
