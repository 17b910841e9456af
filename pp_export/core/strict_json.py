"""JSON from strangers: no duplicate keys, NaN, lone surrogates, giant numbers or bottomless nesting.

How many bytes may be read is for the caller to say, who knows the file.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from typing import Any

MAX_DEPTH = 64
MAX_CONTAINERS = 4_000_000
"""Lists and objects take memory many times their two bytes. The manifest of a million tensors has half."""

MAX_CONFIG_BYTES = 16 << 20
"""Of config.json, whoever reads it; real ones have a few kilobytes."""

MAX_JSON_BYTES = 64 << 20
"""Of the other JSON files that are copied from a reference: tokenizers are the largest."""

MAX_TEMPLATE_BYTES = 4 << 20
"""Of a chat template."""

_MAX_DIGITS = 100
_TOO_DEEP = f"it is nested more than {MAX_DEPTH} deep"
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class JsonError(ValueError):
    """The bytes are not the JSON that they should be; the text continues "the file is wrong: "."""


_KINDS: dict[type, str] = {
    list: "an array",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def parse(data: bytes, *, allow_infinity: bool = False) -> Any:
    """The value of `data`; JsonError where it is not strict JSON.

    `allow_infinity` is for files of configuration: transformers 4 wrote `Infinity` into some.
    """
    if data.count(b"[") + data.count(b"{") > MAX_CONTAINERS:
        raise JsonError(f"it holds more than {MAX_CONTAINERS:,} lists and objects")
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_without_duplicates,
            parse_constant=_infinity if allow_infinity else _refuse_constant,
            parse_float=float if allow_infinity else _finite,
            parse_int=_integer,
        )
        _check_depth(value)
        if _SURROGATE.search(data):  # half a pair can be read but not written
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except JsonError:
        raise
    except UnicodeError as error:
        raise JsonError(f"it is not UTF-8 text: {error}") from None
    except RecursionError:
        raise JsonError(_TOO_DEEP) from None
    except ValueError as error:  # the library's messages repeat nothing of the input
        raise JsonError(f"it is not JSON: {error}") from None
    return value


def parse_object(data: bytes, *, allow_infinity: bool = False) -> dict[str, Any]:
    """As `parse`, and the value is an object."""
    value = parse(data, allow_infinity=allow_infinity)
    if not isinstance(value, dict):
        raise JsonError(f"it is not a JSON object but {_KINDS[type(value)]}")
    return value


def check_value(value: Any) -> None:
    """Raise ValueError or TypeError unless JSON can say all of `value`."""
    json.dumps(value, allow_nan=False, ensure_ascii=False).encode()


def is_count(value: object) -> bool:
    """Whether `value` is an integer from 0 to what 63 bits hold (a JSON `true` is none)."""
    return type(value) is int and 0 <= value < 1 << 63


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise JsonError(f"an object has the key {reprlib.repr(key)} twice")
            seen.add(key)
    return value


def _check_depth(value: Any) -> None:
    layer, depth = [value], 0
    while layer := [inner for outer in layer for inner in _inner(outer) if isinstance(inner, (dict, list))]:
        depth += 1
        if depth >= MAX_DEPTH:
            raise JsonError(_TOO_DEEP)


def _inner(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _refuse_constant(name: str) -> float:
    raise JsonError(f"{name} is not JSON")


def _infinity(name: str) -> float:
    return _refuse_constant(name) if name == "NaN" else float(name)


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS or text == "-0":  # which other parsers take for a float
        raise JsonError(f"{reprlib.repr(text)} is not a usable integer")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise JsonError(f"{reprlib.repr(text)} is not a finite number")
    return value
