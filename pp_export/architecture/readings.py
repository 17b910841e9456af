"""How config.json says a setting: what a loader takes from the file, and which keys would say another value.

A table names, for each setting, the keys that hold it (spellings of the same behind |, all of which are
written), or one of the readings below, where several keys say it together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pp_export.architecture import rope_parameters, windows
from pp_export.core.settings import MALFORMED, UNKNOWN, agree
from pp_export.core.strict_json import is_count

Config = Mapping[str, Any]
_OF_OTHER_TYPES = (TypeError, ValueError, OverflowError, AttributeError)
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
    """How a setting is read and written. `keys` are those of config.json that take part; `statements` gives
    each place that says the whole setting, where there are several; `agree` compares two values.
    """

    keys: tuple[str, ...]
    read_from: Callable[[Config], Any]
    write_to: Callable[[Config, Any], dict[str, Any] | None]
    statements: Callable[[Config], list[Statement]] = lambda _: []
    agree: Callable[[Any, Any], bool] = agree

    def read(self, config: Config) -> Any:
        """The value that a config says; UNKNOWN where it says none, MALFORMED where no loader could tell."""
        try:
            return self.read_from(config)
        except _OF_OTHER_TYPES:
            return MALFORMED

    def write(self, config: Config, value: Any) -> dict[str, Any] | None:
        """The keys that say a value, None where none can."""
        try:
            return self.write_to(config, value)
        except _OF_OTHER_TYPES:
            return None


def of_keys(paths: str) -> Reading:
    """The reading of a setting that stands under a key, or under each of several (`a | b.c`)."""
    keys = tuple(path.strip() for path in paths.split("|"))

    def statements(config: Config) -> list[Statement]:
        return [(key, value) for key in keys if (value := _at(config, key)) is not None]

    def read(config: Config) -> Any:
        return next((value for _, value in statements(config)), UNKNOWN)

    def write(config: Config, value: Any) -> dict[str, Any] | None:
        return None if value is None else {key: value for key in keys if "." not in key} or None

    return Reading(keys, read, write, statements)


def of_entry(entry: Any) -> Reading:
    """The reading that a table's `config` section names for a setting: keys, or `{reading: NAME}`."""
    return READINGS[entry["reading"]] if isinstance(entry, Mapping) else of_keys(entry)


def _at(config: Any, path: str) -> Any:
    value = config
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _rotary_base(config: Config) -> Any:
    base = rope_parameters.stated(config).get(rope_parameters.BASE, UNKNOWN)
    return base if base is UNKNOWN else float(base)


def _rope_scaling(config: Config) -> Any:
    return rope_parameters.canonical(rope_parameters.stated(config), config.get("max_position_embeddings"))


def _same_rope(a: Any, b: Any) -> bool:
    return agree(rope_parameters.canonical(a), rope_parameters.canonical(b))


def _write_base(config: Config, value: Any) -> dict[str, Any]:
    own = rope_parameters.stated(config)
    return _spelled_rope(config, {**own, rope_parameters.BASE: float(value)})


def _write_scaling(config: Config, value: Any) -> dict[str, Any] | None:
    own = rope_parameters.stated(config)
    base = {rope_parameters.BASE: own.get(rope_parameters.BASE)}
    if not rope_parameters.can_say(value):
        return None
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


def _sparse_layers(config: Config) -> Any:
    """Qwen's: each `decoder_sparse_step`-th layer, counted from 1, but for those in `mlp_only_layers`."""
    layers, step = windows.num_layers(config), config.get("decoder_sparse_step")
    step, dense = 1 if step is None else step, set(config.get("mlp_only_layers") or ())
    if layers is None or not isinstance(step, int) or step < 1:
        return UNKNOWN
    return [int(layer not in dense and (layer + 1) % step == 0) for layer in range(layers)]


def _write_sparse(_: Config, value: Any) -> dict[str, Any]:
    return {"decoder_sparse_step": 1, "mlp_only_layers": [i for i, sparse in enumerate(value) if not sparse]}


def _layers_after_dense(config: Config) -> Any:
    """DeepSeek's: all but the first `first_k_dense_replace`."""
    layers, first = windows.num_layers(config), config.get(_FIRST_DENSE)
    if layers is None or not isinstance(first, int):
        return UNKNOWN
    return [int(layer >= first) for layer in range(layers)]


def _write_after_dense(_: Config, value: Any) -> dict[str, Any] | None:
    first = value.index(1) if 1 in value else len(value)
    return {_FIRST_DENSE: first} if all(value[first:]) else None


def _router_groups(config: Config) -> Any:
    groups, chosen = config.get("n_group"), config.get("topk_group")
    return [groups, chosen] if groups and chosen and chosen < groups else None


def _write_groups(_: Config, value: Any) -> dict[str, Any] | None:
    groups, chosen = value or (1, 1)
    return {"n_group": groups, "topk_group": chosen} if groups else None


def _shared_experts(config: Config) -> Any:
    """The size of all shared experts together, each of which is as large as a routed one."""
    count, size = config.get("n_shared_experts"), config.get("moe_intermediate_size")
    return count * size if count and is_count(count) and is_count(size) else None


def _write_shared(config: Config, value: Any) -> dict[str, Any] | None:
    count, rest = divmod(value or 0, config["moe_intermediate_size"])
    return None if rest else {"n_shared_experts": count}


def _latent_scale(config: Config) -> Any:
    """What YaRN multiplies the scores of latent attention by (transformers' deepseek_v3)."""
    return rope_parameters.score_factor(rope_parameters.stated(config))


def _every_layer(config: Config) -> Any:
    layers = windows.num_layers(config)
    return UNKNOWN if layers is None else [1] * layers


def _partial_rotary(config: Config) -> Any:
    """The part of each head that a config asks to rotate: all of it where it says nothing."""
    inside = rope_parameters.stated(config).get(_PARTIAL)
    top = config.get(_PARTIAL)
    return next((value for value in (inside, top) if value is not None), 1.0)


def _write_partial(config: Config, value: Any) -> dict[str, Any]:
    """Inside of `rope_parameters`, where release 5 looks first, and beside it, where release 4 does."""
    own = rope_parameters.stated(config)
    return {**_spelled_rope(config, {**own, _PARTIAL: value}), _PARTIAL: value}


def _partial_statements(config: Config) -> list[Statement]:
    inside = config.get("rope_parameters")
    places = [(_PARTIAL, config), (f"rope_parameters.{_PARTIAL}", inside)]
    return [
        (name, part[_PARTIAL]) for name, part in places if isinstance(part, Mapping) and part.get(_PARTIAL)
    ]


_PARTIAL = "partial_rotary_factor"
_FIRST_DENSE = "first_k_dense_replace"
_ROPE_KEYS = (rope_parameters.BASE, "rope_scaling", "rope_parameters")

READINGS: Mapping[str, Reading] = {
    "rotary_base": Reading(
        _ROPE_KEYS,
        _rotary_base,
        _write_base,
        rope_parameters.bases,
    ),
    "rope_scaling": Reading(_ROPE_KEYS, _rope_scaling, _write_scaling, rope_parameters.scalings, _same_rope),
    "partial_rotary": Reading((_PARTIAL,), _partial_rotary, lambda *_: None),
    "partial_rotary_said": Reading((_PARTIAL,), _partial_rotary, _write_partial, _partial_statements),
    "gated_activation": Reading(("hidden_act",), _gated_activation, _write_gated),
    "window": Reading((windows.WINDOW,), windows.of_all, windows.write_of_all),
    "switched_window": Reading((windows.WINDOW, windows.SWITCH), windows.switched, windows.write_switched),
    "windows_of_layers": Reading(
        (windows.WINDOW, windows.SWITCH, windows.FIRST, windows.TYPES), windows.of_some, windows.write_of_some
    ),
    "windows_of_early_layers": Reading(
        (windows.WINDOW, windows.SWITCH, windows.FIRST, windows.TYPES),
        windows.of_early,
        windows.write_of_some,
    ),
    "windows_by_type": Reading((windows.WINDOW, windows.TYPES), windows.by_type, windows.write_by_type),
    "sparse_layers": Reading(("decoder_sparse_step", "mlp_only_layers"), _sparse_layers, _write_sparse),
    "layers_after_dense": Reading((_FIRST_DENSE,), _layers_after_dense, _write_after_dense),
    "router_groups": Reading(("n_group", "topk_group"), _router_groups, _write_groups),
    "shared_experts": Reading(("n_shared_experts",), _shared_experts, _write_shared),
    "latent_scale": Reading((), _latent_scale, lambda *_: None),
    "every_layer": Reading((), _every_layer, lambda *_: None),
}
"""Settings that several keys say together."""
