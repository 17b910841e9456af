"""What training args say of the function that a model computes.

A setting is one property of the function (windows, how router scores become weights, ...), as a value that
means the same whichever release or framework wrote the args. An arg that is absent, or None where None is no
value of it, says nothing: its setting is not known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pp_export.core.settings import Setting
from pp_export.megatron import layer_settings, router_settings
from pp_export.megatron.derivation import Args

_DERIVED = {**layer_settings.SETTINGS.by_name, **router_settings.SETTINGS.by_name}


def derive(args: Mapping[str, Any]) -> dict[str, Setting]:
    """Every setting that is derived of several args, and every arg as the setting of its own name."""
    settings = {name: Setting(value, {name: value}) for name, value in args.items()}
    for name, (names, function) in _DERIVED.items():
        own = Args(args, names)
        settings[name] = Setting(function(own), dict(own))
    return settings


def read_by() -> dict[str, tuple[str, ...]]:
    """Setting -> the args that it is derived of."""
    return {name: names for name, (names, _) in _DERIVED.items()}
