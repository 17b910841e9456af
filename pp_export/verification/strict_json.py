"""JSON from strangers: bounded, without duplicate keys, NaN, lone surrogates or bottomless nesting."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from pp_export.verification.findings import MalformedError, brief

_MAX_DIGITS = 100
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse(data: bytes, *, allow_nonfinite: bool = False) -> Any:
    """The value of `data`, or MalformedError.

    `allow_nonfinite` is for config.json alone: transformers writes `Infinity` there for some models.
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_without_duplicates,
            parse_constant=None if allow_nonfinite else _refuse_constant,
            parse_float=float if allow_nonfinite else _finite,
            parse_int=_integer,
        )
        if _SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeError:
        raise MalformedError("it is not UTF-8 text") from None
    except RecursionError:
        raise MalformedError("it is nested too deeply") from None
    except ValueError as error:
        raise MalformedError(f"it is not JSON: {brief(str(error))}") from None
    return value


def parse_object(data: bytes, *, allow_nonfinite: bool = False) -> dict[str, Any]:
    """As `parse`, and the value is an object."""
    value = parse(data, allow_nonfinite=allow_nonfinite)
    if not isinstance(value, dict):
        raise MalformedError(f"it is not a JSON object but {brief(value)}")
    return value


def is_count(value: object) -> bool:
    """Whether `value` is an integer from 0 to what 63 bits hold (a JSON `true` is none)."""
    return type(value) is int and 0 <= value < 1 << 63


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise MalformedError(f"the key {brief(key)} comes twice")
            seen.add(key)
    return value


def _refuse_constant(name: str) -> float:
    raise MalformedError(f"{name} is not JSON")


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS or text == "-0":  # which other parsers take for a float
        raise MalformedError(f"{brief(text)} is not a usable integer")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise MalformedError(f"{brief(text)} is not a finite number")
    return value
