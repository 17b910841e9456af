"""How config.json says a setting: what a loader takes from the file, and which keys would say another value.

A table names, for each setting, the keys that hold it (spellings of the same behind |, all of which are
written), or one of the readings below, where several keys say it together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pp_export.architecture import (
    expert_readings,
    indexers,
    layer_kinds,
    long_context,
    partial_rotary,
    rope_layers,
    rope_parameters,
    switches,
    windows,
)
from pp_export.architecture.reading import Config, Reading, Statement
from pp_export.core.settings import UNKNOWN, agree

_ACTIVATIONS = {
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu2": "squared_relu",
}
_WRITTEN = {"silu": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "relu2": "squared_relu"}


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


def _rotary_base_of(key: str) -> Reading:
    """The base of RoPE, which a class also takes from a `key` of its own."""

    def read(config: Config) -> Any:
        base: Any = rope_parameters.stated(config).get(rope_parameters.BASE, config.get(key, UNKNOWN))
        return base if base is UNKNOWN else float(base)

    def write(config: Config, value: Any) -> dict[str, Any]:
        own = {key: float(value)} if key != rope_parameters.BASE else {}
        return {**_write_base(config, value), **own}

    def statements(config: Config) -> list[Statement]:
        own = key != rope_parameters.BASE and config.get(key) is not None
        return rope_parameters.bases(config) + ([(key, config[key])] if own else [])

    return Reading((*_ROPE_KEYS, *({key} - {rope_parameters.BASE})), read, write, statements)


def _rope_scaling(config: Config) -> Any:
    return rope_parameters.canonical(rope_parameters.stated(config), config.get("max_position_embeddings"))


def _same_rope(a: Any, b: Any) -> bool:
    return agree(rope_parameters.canonical(a), rope_parameters.canonical(b))


def _write_base(config: Config, value: Any) -> dict[str, Any]:
    own = rope_parameters.stated(config)
    return rope_parameters.spelled_beside(config, {**own, rope_parameters.BASE: float(value)})


def _write_scaling(config: Config, value: Any) -> dict[str, Any] | None:
    own = rope_parameters.stated(config)
    base = {rope_parameters.BASE: own.get(rope_parameters.BASE)}
    if not rope_parameters.can_say(value):
        return None
    return rope_parameters.spelled_beside(
        config, own if agree(_rope_scaling(config), value) else {**value, **base}
    )


def _activation(key: str, *, gated: bool, gelu: str = "gelu") -> Reading:
    """The activation under a `key`, with a gate or without; `gelu` is what the class takes for that name."""
    gate = "gated " if gated else ""
    names = {f"{gate}{activation}": name for name, activation in _WRITTEN.items()}
    meant = {**_ACTIVATIONS, "gelu": gelu}

    def read(config: Config) -> Any:
        name = config.get(key)
        return f"{gate}{meant.get(name, name)}" if isinstance(name, str) else UNKNOWN

    def write(_: Config, value: Any) -> dict[str, Any] | None:
        return {key: names[value]} if value in names and read({key: names[value]}) == value else None

    return Reading((key,), read, write)


def _or_none(key: str) -> Reading:
    """A number under a `key`, of which null means that there is no such thing."""
    return Reading((key,), lambda config: config.get(key), lambda _, value: {key: value})


def _attention_scale(key: str, power: float) -> Reading:
    """What scores are multiplied by, a power of the number under a `key`; None for one over the root of the
    head's size.
    """

    def read(config: Config) -> Any:
        number, size = config.get(key), config.get("head_dim")
        if number is None or size is None:
            return UNKNOWN
        scale = float(number) ** power
        return None if agree(scale, size**-0.5) else scale

    def write(config: Config, value: Any) -> dict[str, Any]:
        scale = config["head_dim"] ** -0.5 if value is None else value
        number = scale ** (1 / power)
        return {key: round(number) if agree(number, round(number)) else number}

    return Reading((key,), read, write)


def _reciprocal(key: str) -> Reading:
    def read(config: Config) -> Any:
        return 1 / config[key] if config.get(key) else UNKNOWN

    return Reading((key,), read, lambda _, value: {key: 1 / value} if value else None)


def _scaled_queries(config: Config, value: Any) -> dict[str, Any] | None:
    """The keys that say Ministral 3's growing queries, from YaRN's original length on, or none."""
    own = rope_parameters.stated(config)
    if value is not None and value["after"] != own.get(rope_parameters.ORIGINAL):
        return None
    said = {**own, long_context.BETA: value["factor"] if value else 0.0}
    return {**rope_parameters.spelled_beside(config, said), **long_context.scaling_of(value)}


def _latent_scale(config: Config) -> Any:
    """What YaRN multiplies the scores of latent attention by (transformers' deepseek_v3)."""
    return rope_parameters.score_factor(rope_parameters.stated(config))


def _write_latent_scale(config: Config, value: Any) -> dict[str, Any] | None:
    said = rope_parameters.with_score_factor(rope_parameters.stated(config), value)
    return None if said is None else rope_parameters.spelled_beside(config, said)


def _of_types(config: Config) -> dict[str, dict[str, Any]]:
    """What a config says of RoPE for each type of layers. Where it says it once, it is of all; scaling then
    is of those without a window, and a `rope_local_base_freq` of those with one.
    """
    inside = config.get("rope_parameters")
    if isinstance(inside, Mapping) and any(isinstance(part, Mapping) for part in inside.values()):
        return {kind: dict(inside.get(kind) or {}) for kind in windows.KINDS}
    full = rope_parameters.stated(config)
    local = config.get(_LOCAL)
    sliding = {rope_parameters.BASE: full.get(rope_parameters.BASE) if local is None else local}
    return dict(zip(windows.KINDS, (sliding, full)))


def _bases_of_types(config: Config) -> Any:
    """One base, or those of layers with a window and without one."""
    bases: list[Any] = [part.get(rope_parameters.BASE) for part in _of_types(config).values()]
    if None in bases:
        return UNKNOWN
    return float(bases[0]) if agree(*bases) else [float(base) for base in bases]


def _write_bases(config: Config, value: Any) -> dict[str, Any]:
    bases = list(value) if isinstance(value, (list, tuple)) else [value, value]
    own = _of_types(config)
    said = {
        kind: {"rope_type": "default", **own[kind], rope_parameters.BASE: float(base)}
        for kind, base in zip(windows.KINDS, bases, strict=True)
    }
    local = {_LOCAL: float(bases[0])} if _LOCAL in config else {}
    return {rope_parameters.BASE: float(bases[1]), **local, "rope_parameters": said}


def _said_by_types(read: Callable[[Config], Any]) -> Callable[[Config], list[Statement]]:
    """`rope_parameters` of each type of layers, which loaders of release 4 don't know, so that what they take
    is written out beside it.
    """

    def statements(config: Config) -> list[Statement]:
        inside = config.get("rope_parameters")
        by_types = isinstance(inside, Mapping) and any(isinstance(part, Mapping) for part in inside.values())
        return [("rope_parameters", read(config))] if by_types else []

    return statements


def _write_scalings(config: Config, value: Any) -> dict[str, Any] | None:
    """Where `rope_scaling` is that of layers without a window alone, to loaders of either release."""
    sliding, full = _of_types(config).values()
    is_said = agree(_scalings_of_types(config), value)
    if not is_said or agree(value, rope_parameters.DEFAULT) or agree(sliding, full):
        return None
    return {"rope_scaling": {key: of for key, of in full.items() if key != rope_parameters.BASE}}


def _scalings_of_types(config: Config) -> Any:
    """One scaling, or those of layers with a window and without one."""
    positions = config.get("max_position_embeddings")
    sliding, full = (rope_parameters.canonical(part, positions) for part in _of_types(config).values())
    return full if agree(sliding, full) else dict(zip(windows.KINDS, (sliding, full)))


def _partial_of_types(config: Config) -> Any:
    """One part of each head that rotates, or those of layers with a window and without one."""
    parts = [part.get(partial_rotary.FACTOR, UNKNOWN) for part in _of_types(config).values()]
    return parts[0] if agree(*parts) else parts


def _write_partial(config: Config, value: Any) -> dict[str, Any]:
    parts = {kind: {**part, partial_rotary.FACTOR: value} for kind, part in _of_types(config).items()}
    return {"rope_parameters": parts}


def _scaled_attention(config: Config) -> Any:
    return None if config.get("scale_attn_weights", True) else 1.0


def _write_scaled(_: Config, value: Any) -> dict[str, Any] | None:
    return {"scale_attn_weights": value is None} if value in (None, 1.0) else None


def _inner_size(config: Config) -> Any:
    """`n_inner`, else four times the width."""
    width = config.get("n_embd", config.get("hidden_size"))
    inner = config.get("n_inner")
    return inner if inner is not None else UNKNOWN if width is None else 4 * width


_LOCAL = "rope_local_base_freq"
_ROPE_KEYS = (rope_parameters.BASE, "rope_scaling", "rope_parameters")

READINGS: Mapping[str, Reading] = {
    "rotary_base": _rotary_base_of(rope_parameters.BASE),
    "rotary_emb_base": _rotary_base_of("rotary_emb_base"),
    "rotary_base_of_types": Reading(
        (*_ROPE_KEYS, _LOCAL), _bases_of_types, _write_bases, _said_by_types(_bases_of_types)
    ),
    "partial_rotary_of_types": Reading(("rope_parameters",), _partial_of_types, _write_partial),
    "rope_scaling_of_types": Reading(_ROPE_KEYS, _scalings_of_types, lambda *_: None),
    "rope_scaling_without_window": Reading(
        _ROPE_KEYS, _scalings_of_types, _write_scalings, _said_by_types(_scalings_of_types)
    ),
    "rope_scaling": Reading(_ROPE_KEYS, _rope_scaling, _write_scaling, rope_parameters.scalings, _same_rope),
    **partial_rotary.READINGS,
    "gated_activation": _activation("hidden_act", gated=True),
    "gated_activation_of_gemma": _activation("hidden_act", gated=True, gelu="gelu_tanh"),
    "gated_hidden_activation": _activation("hidden_activation", gated=True),
    "plain_activation": _activation("hidden_act", gated=False),
    "plain_activation_function": _activation("activation_function", gated=False),
    "attention_multiplier": _attention_scale("attention_multiplier", 1.0),
    "query_pre_attn_scalar": _attention_scale("query_pre_attn_scalar", -0.5),
    "attn_logit_softcapping": _or_none("attn_logit_softcapping"),
    "final_logit_softcapping": _or_none("final_logit_softcapping"),
    "attention_value_scale": _or_none("attention_value_scale"),
    "clip_qkv": _or_none("clip_qkv"),
    "scale_attn_weights": Reading(("scale_attn_weights",), _scaled_attention, _write_scaled),
    "n_inner": Reading(("n_inner",), _inner_size, lambda _, value: {"n_inner": value}),
    "logits_scaling": _reciprocal("logits_scaling"),
    "rope_layers": Reading(
        (rope_layers.LIST, rope_layers.INTERVAL), rope_layers.of_list, rope_layers.write_of_list
    ),
    "rope_in_windows": Reading((windows.WINDOW, windows.TYPES), rope_layers.in_windows, lambda *_: None),
    "rope_in_windows_if_any": Reading(
        (windows.WINDOW, windows.TYPES), rope_layers.in_windows_if_any, lambda *_: None
    ),
    "window": Reading((windows.WINDOW,), windows.of_all, windows.write_of_all),
    "switched_window": Reading((windows.WINDOW, windows.SWITCH), windows.switched, windows.write_switched),
    "windows_of_layers": Reading(
        (windows.WINDOW, windows.SWITCH, windows.FIRST, windows.TYPES), windows.of_some, windows.write_of_some
    ),
    "windows_of_early_layers": Reading(
        (windows.WINDOW, windows.SWITCH, windows.FIRST, windows.TYPES),
        windows.of_early,
        windows.write_of_early,
    ),
    "windows_of_late_layers": Reading(
        (windows.WINDOW, windows.FIRST, windows.TYPES), windows.of_late, windows.write_of_types
    ),
    "windows_of_hybrid_layers": Reading(
        (windows.WINDOW, windows.SIZE, windows.TYPES), windows.of_hybrid, windows.write_of_hybrid
    ),
    "windows_of_types": Reading((windows.WINDOW, windows.TYPES), windows.of_types, windows.write_of_types),
    "windows_without_rope": Reading(
        (windows.WINDOW, windows.SWITCH, windows.TYPES),
        rope_layers.windows_without,
        rope_layers.write_windows_without,
    ),
    "linear_layers": Reading(
        (windows.TYPES, layer_kinds.INTERVAL),
        layer_kinds.linear,
        layer_kinds.write_linear,
        layer_kinds.linear_statements,
    ),
    "layer_pattern": Reading(
        (layer_kinds.PATTERN, layer_kinds.TYPES),
        layer_kinds.pattern,
        layer_kinds.write_pattern,
        layer_kinds.pattern_statements,
    ),
    "num_layers_of_pattern": Reading(
        ("num_hidden_layers",),
        layer_kinds.num_layers,
        lambda _, value: {"num_hidden_layers": value},
        layer_kinds.num_layers_statements,
    ),
    "experts_of_pattern": Reading(
        layer_kinds.EXPERTS, layer_kinds.num_experts, layer_kinds.write_num_experts
    ),
    "time_step_limit": Reading((layer_kinds.LIMIT,), layer_kinds.time_step_limit, lambda *_: None),
    "time_step_min": Reading(
        (layer_kinds.SHORTEST,), layer_kinds.time_step_min, layer_kinds.write_time_step_min
    ),
    "moe_latent_size": _or_none("moe_latent_size"),
    "plain_mlp_activation": _activation("mlp_hidden_act", gated=False),
    "rope_of_text": Reading(
        (), lambda _: "rope", lambda *_: None, agree=lambda a, b: {a, b} <= {"rope", "mrope"}
    ),
    "without_effect": Reading((), lambda _: None, lambda *_: None, agree=lambda a, b: True),
    "latent_scale": Reading((), _latent_scale, _write_latent_scale),
    "attention_chunks": Reading(
        (long_context.CHUNK, windows.TYPES), long_context.chunks, long_context.write_chunks
    ),
    "scaled_queries": Reading(
        (*_ROPE_KEYS, long_context.SCALING),
        long_context.scaled_queries,
        _scaled_queries,
        long_context.statements_of_scaled,
    ),
    "tuned_temperature": Reading(
        (long_context.TUNING, long_context.TUNED_FROM, long_context.TUNED_BY),
        long_context.tuned_temperature,
        long_context.write_tuned,
    ),
    "indexers_of_types": Reading(
        (indexers.TYPES, indexers.STEP, indexers.FIRST), indexers.of_types, indexers.write_types
    ),
    **expert_readings.READINGS,
    **switches.READINGS,
}
"""Settings that several keys say together."""
