"""Frozen values as JSON values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def spelled(text: str) -> str:
    """`text` as UTF-8 can say it: bytes of a path that are no text, and half characters, become escapes."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def to_json_value(value: Any) -> Any:
    """Dataclasses and mappings as objects, sequences as lists, paths, and numbers that JSON
    lacks, as texts; what JSON has stays, and texts are such that any file can hold them."""
    if isinstance(value, (str, Path)):
        return spelled(str(value))
    if dataclasses.is_dataclass(value):
        return {f.name: to_json_value(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {spelled(str(key)): to_json_value(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json_value(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
