"""How config.json says what kind each layer is of, in models whose layers are of several.

Kinds of classes (transformers' configuration files): linear or full attention in each layer; and models whose
layers each are one of Mamba, attention, MLP or experts (Nemotron-H).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pp_export.architecture import windows
from pp_export.core.settings import UNKNOWN, is_nth

Config = Mapping[str, Any]

INTERVAL, PATTERN, TYPES, LIMIT = (
    *("full_attention_interval", "hybrid_override_pattern", "layers_block_type", "time_step_limit"),
)
SHORTEST, USUAL_SHORTEST = "time_step_min", 1e-3
_LINEAR, _FULL = "linear_attention", "full_attention"
_SYMBOLS = {
    **{"mamba": "M", "attention": "*", "mlp": "-", "moe": "E"},  # as transformers had it before 5.20
    **{_LINEAR: "M", _FULL: "*"},
}
_KINDS = {symbol: kind for kind, symbol in _SYMBOLS.items()}


def linear(config: Config) -> Any:
    """Which layers have linear attention, 1 or 0 per layer; None where none has."""
    said = linear_statements(config)
    return said[0][1] if said else UNKNOWN


def linear_statements(config: Config) -> list[tuple[str, Any]]:
    """`layer_types`, and `full_attention_interval`, which leaves out each N-th layer."""
    types, step, layers = config.get(windows.TYPES), config.get(INTERVAL), windows.num_layers(config)
    said = []
    if types is not None:
        by_layer = [{_LINEAR: 1, _FULL: 0}.get(kind) for kind in types]
        if None in by_layer:
            raise ValueError("a layer is of no known type")
        said.append((windows.TYPES, by_layer))
    if step is not None and layers is not None:
        if not isinstance(step, int) or step < 1:
            raise ValueError(f"{INTERVAL} is no number of layers")
        said.append((INTERVAL, [int(not is_nth(layer, step)) for layer in range(layers)]))
    return [(key, by_layer if any(by_layer) else None) for key, by_layer in said]


def write_linear(config: Config, value: Any) -> dict[str, Any] | None:
    """The list, which counts where there is one; and the interval, where it says the same."""
    layers = windows.num_layers(config)
    by_layer = [0] * (layers or 0) if value is None else value
    keys = {windows.TYPES: [_LINEAR if is_linear else _FULL for is_linear in by_layer]}
    step = by_layer.index(0) + 1 if 0 in by_layer else len(by_layer) + 1
    is_regular = by_layer == [int(not is_nth(layer, step)) for layer in range(len(by_layer))]
    return {**keys, INTERVAL: step} if is_regular else keys


def pattern(config: Config) -> Any:
    """A symbol for each layer, as Megatron has them."""
    said = pattern_statements(config)
    return said[0][1] if said else UNKNOWN


def pattern_statements(config: Config) -> list[tuple[str, Any]]:
    """The list of kinds, which counts where there is one, and the pattern of symbols."""
    types, symbols = config.get(TYPES), config.get(PATTERN)
    said = [] if types is None else [(TYPES, "".join(_SYMBOLS.get(kind, "?") for kind in types))]
    if symbols is not None:
        said.append((PATTERN, str(symbols)))
    if any(set(symbol) - set(_KINDS) for _, symbol in said):
        raise ValueError("a layer is of no known kind")
    return said


def write_pattern(config: Config, value: Any) -> dict[str, Any] | None:
    """The spelling that the config has, as the class's own code on the Hub takes the pattern alone."""
    if set(value) - set(_KINDS):
        return None
    said = dict(pattern_statements(config))
    keys: dict[str, Any] = {PATTERN: value} if PATTERN in said else {}
    return keys if keys and said.get(TYPES, value) == value else {**keys, TYPES: [_KINDS[s] for s in value]}


def num_layers(config: Config) -> Any:
    """As many as the pattern has symbols, whatever `num_hidden_layers` says."""
    symbols = pattern(config)
    return len(symbols) if isinstance(symbols, str) else UNKNOWN


def num_layers_statements(config: Config) -> list[tuple[str, Any]]:
    """Both counts, where both are said."""
    said, number = pattern_statements(config), config.get("num_hidden_layers")
    counted = [(key, len(symbols)) for key, symbols in said]
    return [*counted, ("num_hidden_layers", number)] if said and number is not None else []


def num_experts(config: Config) -> Any:
    """The experts of the layers that have some; None where no layer has."""
    symbols = pattern(config)
    if symbols is UNKNOWN:
        return UNKNOWN
    return next((config[key] for key in EXPERTS if config.get(key)), UNKNOWN) if "E" in symbols else None


EXPERTS = ("n_routed_experts", "num_local_experts")


def write_num_experts(_: Config, value: Any) -> dict[str, Any]:
    """The key that counts them, where there are some."""
    return {EXPERTS[0]: value} if value else {}


def time_step_limit(config: Config) -> Any:
    """[shortest, longest] time step of a Mamba; None where all may be."""
    limit = config.get(LIMIT)
    if limit is None:
        return None
    first, last = (float(_plain(end)) for end in limit)
    return None if first <= 0 and math.isinf(last) else [first, last]


def time_step_min(config: Config) -> Any:
    """What transformers keeps each time step above, where it is more than the 0.001 of every published model;
    None where it isn't, which only tells how weights begin, elsewhere.
    """
    least = config.get(SHORTEST)
    return float(least) if least is not None and least > USUAL_SHORTEST else None


def write_time_step_min(_: Config, value: Any) -> dict[str, Any] | None:
    """The usual one, which says nothing."""
    return {SHORTEST: USUAL_SHORTEST} if value is None else None


def _plain(end: Any) -> Any:
    """Release 5 writes infinity as {"__float__": "Infinity"}."""
    return end["__float__"] if isinstance(end, Mapping) else end
