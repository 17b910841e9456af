"""What texts of options mean: sizes, types, counts and rates. Each function raises OptionError for others."""

from __future__ import annotations

import re

from pp_export.core.errors import OptionError

MAX_NUMBER = 10**9
"""Of any option that is a number: what waits for seconds, or counts ranks, takes no larger ones."""

TYPES = ("checkpoint", "float32", "bfloat16", "float16")
TYPE_ALIASES = {"keep": "checkpoint", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"} | {
    f"torch.{name}": name for name in TYPES[1:]
}

MAX_SIZE = 1 << 62
_MAX_DIGITS = 30
_UNITS = {
    "": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}
_SIZE = re.compile(r"\s*([0-9]{1,20}(?:\.[0-9]{1,20})?)\s*([A-Za-z]*)\s*")


def parse_bytes(text: str | int, of: str = "the size") -> int:
    """`5GB`, `512MiB` or a number, in bytes; an error says `of` what it is."""
    match = _SIZE.fullmatch(str(text)) if not isinstance(text, int) or abs(text) <= MAX_SIZE else None
    unit = _UNITS.get(match[2].upper(), 0) if match else 0
    size = int(float(match[1]) * unit) if match else 0
    if not 1 <= size <= MAX_SIZE:
        raise OptionError(
            f"{of} can't be read",
            expected="a positive number and KB, MB, GB, TB, KiB, MiB or GiB, for example 5GB",
            got=brief(text),
        )
    return size


def parse_leaders(text: str | int) -> int | None:
    """`all` (None) or a positive number."""
    if text == "all":
        return None
    if not re.fullmatch(r"[0-9]{1,9}", brief(text)) or int(text) < 1:
        raise OptionError(
            "--leaders-per-stage can't be read", expected="a positive number, or all", got=brief(text)
        )
    return int(text)


def parse_types(text: str | None) -> tuple[tuple[str, str], ...]:
    """Patterns and types of `--dtype-of`, in the order in which they are tried."""
    pairs = []
    for part in filter(None, map(str.strip, (text or "").split(","))):
        pattern, _, name = part.rpartition("=")
        dtype = TYPE_ALIASES.get(name, name)
        if not pattern or dtype not in TYPES:
            raise OptionError(
                "--dtype-of can't be read",
                expected=f"PATTERN=TYPE; TYPE is one of {', '.join((*TYPES, *TYPE_ALIASES))}",
                got=brief(part),
            )
        pairs.append((pattern, dtype))
    return tuple(pairs)


def brief(value: object) -> str:
    """A value in a message: numbers and texts may have any length."""
    if isinstance(value, int) and abs(value) > MAX_SIZE:
        return "a huge number"
    return str(value)[:_MAX_DIGITS]


def parse_rates(text: str) -> tuple[float, float]:
    """`R,W`, two positive numbers."""
    try:
        read, write = (float(part) for part in text.split(","))
        if not all(0 < rate <= MAX_NUMBER for rate in (read, write)):
            raise ValueError
    except ValueError:
        raise OptionError(
            "--storage-gbps can't be read",
            expected="R,W: two positive numbers, in gigabytes per second, for example 2,1",
            got=brief(text),
        ) from None
    return read, write
