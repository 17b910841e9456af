"""How config.json says a setting: what a loader takes from the file, and which keys would say another value.

A table names, for each setting, the keys that hold it (spellings of the same behind |, all of which are
written), or one of the readings below, where several keys say it together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pp_export.architecture import rope_parameters
from pp_export.core.settings import UNKNOWN, agree

Config = Mapping[str, Any]
Statement = tuple[str, Any]

_ACTIVATIONS = {
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu2": "squared_relu",
}


@dataclass(frozen=True)
class Reading:
    """`read` gives the value that a config says, or UNKNOWN; `write` the keys that say a value, or None
    where none can. `keys` are those of config.json that take part; `statements` gives each place that says
    the whole setting, where there are several. `agree` compares two values.
    """

    keys: tuple[str, ...]
    read: Callable[[Config], Any]
    write: Callable[[Config, Any], dict[str, Any] | None]
    statements: Callable[[Config], list[Statement]] = lambda _: []
    agree: Callable[[Any, Any], bool] = agree


def of_keys(paths: str) -> Reading:
    """The reading of a setting that stands under a key, or under each of several (`a | b.c`)."""
    keys = tuple(path.strip() for path in paths.split("|"))

    def statements(config: Config) -> list[Statement]:
        return [(key, value) for key in keys if (value := _at(config, key)) is not None]

    def read(config: Config) -> Any:
        return next((value for _, value in statements(config)), UNKNOWN)

    def write(config: Config, value: Any) -> dict[str, Any] | None:
        top = {key: value for key in keys if "." not in key}
        return top or None

    return Reading(keys, read, write, statements)


def of_entry(entry: Any) -> Reading:
    """The reading that a table's `config` section names for a setting: keys, or `{reading: NAME}`."""
    return READINGS[entry["reading"]] if isinstance(entry, Mapping) else of_keys(entry)


def _at(config: Any, path: str) -> Any:
    value = config
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _rope_scaling(config: Config) -> Any:
    return rope_parameters.canonical(rope_parameters.stated(config), config.get("max_position_embeddings"))


def _same_rope(a: Any, b: Any) -> bool:
    return agree(rope_parameters.canonical(a), rope_parameters.canonical(b))


def _write_base(config: Config, value: Any) -> dict[str, Any]:
    own = rope_parameters.stated(config)
    return _spelled_rope(config, {**own, rope_parameters.BASE: float(value)})


def _write_scaling(config: Config, value: Any) -> dict[str, Any]:
    own = rope_parameters.stated(config)
    base = {rope_parameters.BASE: own.get(rope_parameters.BASE)}
    return _spelled_rope(config, own if agree(_rope_scaling(config), value) else {**value, **base})


def _spelled_rope(config: Config, parameters: Mapping[str, Any]) -> dict[str, Any]:
    keys = rope_parameters.spelled(parameters)
    if keys["rope_scaling"] is None and config.get("rope_scaling") is None:
        del keys["rope_scaling"]
    return keys


def _gated_activation(config: Config) -> Any:
    name = config.get("hidden_act")
    return f"gated {_ACTIVATIONS.get(name, name)}" if isinstance(name, str) else UNKNOWN


def _write_gated(_: Config, value: Any) -> dict[str, Any] | None:
    names = {"gated silu": "silu", "gated gelu": "gelu", "gated gelu_tanh": "gelu_pytorch_tanh"}
    return {"hidden_act": names[value]} if value in names else None


def _windows(config: Config) -> Any:
    """Tokens that each layer sees, or None: transformers' window counts the query itself as Megatron's does
    not. `use_sliding_window` counts where the class has it; layers below `max_window_layers` see all.
    """
    window, layers = config.get("sliding_window"), config.get("num_hidden_layers")
    if window is None or config.get("use_sliding_window") is False:
        return None
    if not isinstance(layers, int):
        return UNKNOWN
    types, first = config.get("layer_types"), config.get("max_window_layers") or 0
    if isinstance(types, list):
        by_layer = [window if kind == "sliding_attention" else None for kind in types]
    else:
        by_layer = [window if layer >= first else None for layer in range(layers)]
    return by_layer if any(by_layer) else None


def _write_windows(config: Config, value: Any) -> dict[str, Any] | None:
    by_layer = value or []
    windows = {window for window in by_layer if window is not None}
    has_switch = "use_sliding_window" in config
    if not windows:
        switched = {"use_sliding_window": False} if has_switch else {}
        return {"sliding_window": None, **switched, **_full_layers(config)}
    if len(windows) > 1 or (None in by_layer and "layer_types" not in config):
        return None
    result: dict[str, Any] = {"sliding_window": windows.pop()}
    if has_switch:
        result["use_sliding_window"] = True
    if "max_window_layers" in config:
        result["max_window_layers"] = 0
    if "layer_types" in config:
        result["layer_types"] = ["full_attention" if w is None else "sliding_attention" for w in by_layer]
    return result


def _full_layers(config: Config) -> dict[str, Any]:
    types = config.get("layer_types")
    return {"layer_types": ["full_attention"] * len(types)} if isinstance(types, list) else {}


def _sparse_layers(config: Config) -> Any:
    """Qwen's: each `decoder_sparse_step`-th layer, counted from 1, but for those in `mlp_only_layers`."""
    layers, step = config.get("num_hidden_layers"), config.get("decoder_sparse_step")
    step, dense = 1 if step is None else step, config.get("mlp_only_layers") or []
    if not isinstance(layers, int) or not isinstance(step, int) or step < 1:
        return UNKNOWN
    return [int(layer not in dense and (layer + 1) % step == 0) for layer in range(layers)]


def _write_sparse(_: Config, value: Any) -> dict[str, Any]:
    return {"decoder_sparse_step": 1, "mlp_only_layers": [i for i, sparse in enumerate(value) if not sparse]}


def _every_layer(config: Config) -> Any:
    layers = config.get("num_hidden_layers")
    return [1] * layers if isinstance(layers, int) else UNKNOWN


_ROPE_KEYS = (rope_parameters.BASE, "rope_scaling", "rope_parameters")

READINGS: Mapping[str, Reading] = {
    "rotary_base": Reading(
        _ROPE_KEYS,
        lambda config: rope_parameters.stated(config).get(rope_parameters.BASE, UNKNOWN),
        _write_base,
        rope_parameters.bases,
    ),
    "rope_scaling": Reading(_ROPE_KEYS, _rope_scaling, _write_scaling, rope_parameters.scalings, _same_rope),
    "gated_activation": Reading(("hidden_act",), _gated_activation, _write_gated),
    "windows": Reading(
        ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types"), _windows, _write_windows
    ),
    "sparse_layers": Reading(("decoder_sparse_step", "mlp_only_layers"), _sparse_layers, _write_sparse),
    "every_layer": Reading((), _every_layer, lambda *_: None),
}
"""Settings that several keys say together."""
