"""How config.json says sliding windows: tokens that each layer's queries see, themselves included, or None.

Kinds of classes (transformers' modeling files): one window for all layers; the same with a switch; a window
for some of the layers, with a switch or without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pp_export.core.settings import UNKNOWN, is_nth

Config = Mapping[str, Any]
ByLayer = list[int | None]

WINDOW, SWITCH, FIRST, TYPES = "sliding_window", "use_sliding_window", "max_window_layers", "layer_types"
PATTERN, SIZE = "sliding_window_pattern", "sliding_window_size"
_SLIDING, _FULL = "sliding_attention", "full_attention"
KINDS = (_SLIDING, _FULL)
MAX_LAYERS = 100_000


def num_layers(config: Config) -> int | None:
    """The number of layers; None where it isn't said, or isn't one."""
    layers = config.get("num_hidden_layers")
    if not isinstance(layers, int) or isinstance(layers, bool):
        return None
    return layers if 0 < layers <= MAX_LAYERS else None


def of_all(config: Config) -> Any:
    """One window for all layers, or none."""
    window, layers = _window(config), num_layers(config)
    if window is None or layers is None:
        return None if window is None else UNKNOWN
    return [window] * layers


def switched(config: Config) -> Any:
    """The same, where `use_sliding_window` is on."""
    return of_all(config) if config.get(SWITCH) else None


def of_some(config: Config) -> Any:
    """The same, for the layers that `layer_types` names, else for those from `max_window_layers` on."""
    first = config.get(FIRST) or 0
    return _switched_by_layer(config, lambda layer: layer >= first)


def of_late(config: Config) -> Any:
    """A window for the layers that `layer_types` names, else for those from `max_window_layers` on."""
    first = config.get(FIRST) or 0
    return _by_layer(config, lambda layer: layer >= first)


def of_hybrid(config: Config) -> Any:
    """MiMo's: a window for the layers that `layer_types` names, else for all but the first and each sixth; a
    `sliding_window_size`, which wins, leaves the token itself out.
    """
    size = config.get(SIZE)
    own = config if size is None else {**config, WINDOW: size + 1}
    return _by_layer(own, lambda layer: layer != 0 and not is_nth(layer, 6))


def write_of_hybrid(config: Config, value: Any) -> dict[str, Any] | None:
    """The keys that say one window for some layers, in both ways of counting."""
    keys = write_of_types(config, value)
    if keys is None or config.get(SIZE) is None:
        return keys
    return {**keys, SIZE: keys[WINDOW] - 1} if value else None


def of_early(config: Config) -> Any:
    """The same with the switch, where without `layer_types` it is every second layer, from the first on, of
    those before `max_window_layers`.
    """
    end = config.get(FIRST) or 0
    return _switched_by_layer(config, lambda layer: _is_early(layer, end))


def _is_early(layer: int, end: int) -> bool:
    return layer % 2 == 0 and layer < end


def of_types(config: Config) -> Any:
    """A window for the layers that `layer_types` names, else for all but every N-th, where N is the
    `sliding_window_pattern`.
    """
    step = config.get(PATTERN)
    if not isinstance(step, int) or step < 1:
        return _by_layer(config, None)
    return _by_layer(config, lambda layer: not is_nth(layer, step))


def _switched_by_layer(config: Config, has_window: Callable[[int], bool]) -> Any:
    window, types = _window(config), config.get(TYPES)
    if isinstance(types, list) and _SLIDING in types and not config.get(SWITCH):
        raise TypeError(f"{TYPES} names layers with a window, and {SWITCH} is off")
    if window is None or not config.get(SWITCH):
        return None
    return UNKNOWN if num_layers(config) is None else _by_layer(config, has_window)


def _by_layer(config: Config, has_window: Callable[[int], bool] | None) -> Any:
    """The window for the layers that `layer_types` names, else for those that `has_window` tells."""
    window, layers, types = _window(config), num_layers(config), config.get(TYPES)
    if window is None:
        return None
    if isinstance(types, list):
        windowed = [kind == _SLIDING for kind in types]
    elif layers is None or has_window is None:
        return UNKNOWN
    else:
        windowed = [has_window(layer) for layer in range(layers)]
    by_layer = [window if has else None for has in windowed]
    return by_layer if any(by_layer) else None


def write_of_all(_: Config, value: Any) -> dict[str, Any] | None:
    """The key that says one window for all layers."""
    if value is None:
        return {WINDOW: None}
    return {WINDOW: value[0]} if len(set(value)) == 1 else None


def write_switched(config: Config, value: Any) -> dict[str, Any] | None:
    """The same with the switch."""
    keys = write_of_all(config, value)
    return None if keys is None else {**keys, SWITCH: value is not None}


def write_of_some(config: Config, value: Any) -> dict[str, Any] | None:
    """The keys that say one window for some layers, also to loaders that know no `layer_types`."""
    if value is None:
        known = config.get(TYPES)
        full = {TYPES: [_FULL] * len(known)} if isinstance(known, list) else {}
        return {WINDOW: None, SWITCH: False, **full}
    windows = {window for window in value if window is not None}
    if len(windows) != 1:
        return None
    first = next(layer for layer, window in enumerate(value) if window is not None)
    is_suffix = None not in value[first:]
    types = [_FULL if window is None else _SLIDING for window in value]
    return {WINDOW: windows.pop(), SWITCH: True, FIRST: first if is_suffix else len(value), TYPES: types}


def write_of_early(config: Config, value: Any) -> dict[str, Any] | None:
    """The same in Qwen2-MoE's sense of `max_window_layers`, where that can say it."""
    keys = write_of_some(config, value)
    if keys is None or value is None:
        return keys
    del keys[FIRST]
    windowed, layers = [window is not None for window in value], range(len(value))
    for end in (*layers, len(value)):
        if windowed == [_is_early(layer, end) for layer in layers]:
            return {**keys, FIRST: end}
    return keys


def write_of_types(config: Config, value: Any) -> dict[str, Any] | None:
    """The keys that say one window for some layers."""
    layers = num_layers(config)
    if value is None:
        return None if layers is None else {WINDOW: None, TYPES: [_FULL] * layers}
    windows = {window for window in value if window is not None}
    types = [_FULL if window is None else _SLIDING for window in value]
    return {WINDOW: windows.pop(), TYPES: types} if len(windows) == 1 else None


def _window(config: Config) -> int | None:
    window = config.get(WINDOW)
    if window is not None and (not isinstance(window, int) or isinstance(window, bool)):
        raise TypeError(f"{WINDOW} is no number of tokens")
    return window
