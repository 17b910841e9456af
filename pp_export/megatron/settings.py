"""What training args say of the function that a model computes.

A setting is one property of the function (windows, how router scores become weights, ...), as a value that
means the same whichever release or framework wrote the args. An arg that is absent, or None where None is no
value of it, says nothing: its setting is not known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pp_export.core.settings import UNKNOWN, Setting
from pp_export.megatron import (
    attention_settings,
    hybrid_attention_settings,
    hybrid_settings,
    latent_settings,
    layer_patterns,
    layer_settings,
    router_settings,
    sparse_attention_settings,
)
from pp_export.megatron.derivation import Args

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?")
_DERIVED = {
    **layer_settings.SETTINGS.by_name,
    **router_settings.SETTINGS.by_name,
    **latent_settings.SETTINGS.by_name,
    **hybrid_settings.SETTINGS.by_name,
    **attention_settings.SETTINGS.by_name,
    **sparse_attention_settings.SETTINGS.by_name,
    **hybrid_attention_settings.SETTINGS.by_name,
}


def derive(args: Mapping[str, Any]) -> dict[str, Setting]:
    """Every setting that is derived of several args, and every arg as the setting of its own name."""
    values = {name: _as_number(_as_pattern(name, value)) for name, value in args.items()}
    settings = {name: Setting(value, {name: value}) for name, value in values.items()}
    for name, (names, function) in _DERIVED.items():
        own = Args(values, names)
        try:
            value = function(own)
        except (TypeError, ValueError, ArithmeticError, LookupError):  # of types that no release writes
            value = UNKNOWN
        settings[name] = Setting(value, dict(own))
    return settings


def _as_pattern(name: str, value: Any) -> Any:
    """What the text of a pattern of layers stands for, in args that have one."""
    read = layer_patterns.parse(value) if name in layer_patterns.NAMES and isinstance(value, str) else None
    return value if read is None else read


def _as_number(value: Any) -> Any:
    """Text that is a number as that number, and whole numbers as such, as some frameworks store neither."""
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) > 1
    return int(value) if is_whole else value


def read_by() -> dict[str, tuple[str, ...]]:
    """Setting -> the args that it is derived of."""
    return {name: names for name, (names, _) in _DERIVED.items()}
