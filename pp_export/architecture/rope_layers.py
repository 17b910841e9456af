"""How config.json says which layers rotate, 1 or 0 per layer; None where all do.

Kinds of classes (transformers' modeling files): a list; and those where layers without a window don't rotate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pp_export.architecture import windows
from pp_export.core.settings import UNKNOWN, is_nth

Config = Mapping[str, Any]

LIST, INTERVAL = "no_rope_layers", "no_rope_layer_interval"


def of_list(config: Config) -> Any:
    """`no_rope_layers`, in which, whatever its name, 1 is a layer that rotates; where there is none, or an
    empty one, all but every N-th.
    """
    layers = windows.num_layers(config)
    stated, step = config.get(LIST), config.get(INTERVAL)
    if layers is None:
        return UNKNOWN
    if isinstance(stated, list) and stated:
        rotating = [int(bool(rotates)) for rotates in stated[:layers]]
    elif isinstance(step, int) and step > 0:
        rotating = [int(not is_nth(layer, step)) for layer in range(layers)]
    else:
        return UNKNOWN
    return None if all(rotating) else rotating


def write_of_list(config: Config, value: Any) -> dict[str, Any] | None:
    """The list; the interval is only read where there is none."""
    layers = windows.num_layers(config)
    return None if layers is None else {LIST: [1] * layers if value is None else list(value)}


def windows_without(config: Config) -> Any:
    """Windows of the layers that `layer_types` names, else of those that don't rotate, with a switch."""
    if not config.get(windows.SWITCH):
        return None
    if isinstance(config.get(windows.TYPES), list) or config.get(windows.WINDOW) is None:
        return windows.of_types(config)
    rotating = of_list(config)
    if rotating is None or rotating is UNKNOWN:
        return rotating
    return [None if rotates else config[windows.WINDOW] for rotates in rotating]


def write_windows_without(config: Config, value: Any) -> dict[str, Any] | None:
    """The keys that say one window for some layers, with the switch."""
    keys = windows.write_of_types(config, value)
    return None if keys is None else {**keys, windows.SWITCH: value is not None}


def in_windows(config: Config) -> Any:
    """Only layers with a window rotate."""
    by_layer, layers = windows.of_types(config), windows.num_layers(config)
    if by_layer is UNKNOWN or layers is None:
        return UNKNOWN
    rotating = [int(window is not None) for window in by_layer or [None] * layers]
    return None if all(rotating) else rotating


def in_windows_if_any(config: Config) -> Any:
    """The same, but all layers rotate where no `sliding_window` is said."""
    return None if config.get(windows.WINDOW) is None else in_windows(config)
