"""How config.json says what changes only with long sequences: chunks that see only themselves, and queries
that are multiplied by a number that grows with their place.

Source: transformers' modeling_llama4.py and modeling_ministral3.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pp_export.architecture import rope_layers, rope_parameters, windows
from pp_export.core.settings import UNKNOWN

Config = Mapping[str, Any]

CHUNK, TUNING, TUNED_FROM, TUNED_BY = (
    *("attention_chunk_size", "attn_temperature_tuning", "floor_scale", "attn_scale"),
)
BETA = "llama_4_scaling_beta"
SCALING = "llama_4_scaling"
"""Where vLLM looks for the same, which doesn't look among the parameters of RoPE."""
_CHUNKED, _FULL = "chunked_attention", "full_attention"


def chunks(config: Config) -> Any:
    """Tokens of a chunk for the layers that `layer_types` names, else for those that rotate."""
    size, layers, types = config.get(CHUNK), windows.num_layers(config), config.get(windows.TYPES)
    if size is None:
        return None
    if isinstance(types, list):
        by_layer = [size if kind == _CHUNKED else None for kind in types]
    elif layers is None:
        return UNKNOWN
    else:
        rotating = rope_layers.of_list(config) or [1] * layers
        by_layer = [size if rotates else None for rotates in rotating]
    return by_layer if any(by_layer) else None


def write_chunks(config: Config, value: Any) -> dict[str, Any] | None:
    """The keys that say one size for some layers."""
    layers = windows.num_layers(config)
    sizes = {size for size in value or () if size is not None}
    if layers is None or len(sizes) > 1:
        return None
    kinds = [_CHUNKED if size else _FULL for size in value or [None] * layers]
    return {CHUNK: sizes.pop() if sizes else None, windows.TYPES: kinds}


def tuned_temperature(config: Config) -> Any:
    """Llama 4's: of layers that don't rotate, from the token on that is number `floor_scale`."""
    still = rope_layers.of_list(config) is None
    if still or not config.get(TUNING) or not config.get(TUNED_BY):
        return None
    return {"after": config[TUNED_FROM] - 1, "factor": config[TUNED_BY]}


def write_tuned(_: Config, value: Any) -> dict[str, Any]:
    """The switch, and the numbers where it is on."""
    on = {TUNED_FROM: value["after"] + 1, TUNED_BY: value["factor"]} if value else {}
    return {TUNING: bool(value), **on}


def scaled_queries(config: Config) -> Any:
    """Ministral 3's, of all layers, said among the parameters of RoPE."""
    own = rope_parameters.stated(config)
    if not own.get(BETA):
        return None
    return {"after": own[rope_parameters.ORIGINAL], "factor": own[BETA]}


def statements_of_scaled(config: Config) -> list[tuple[str, Any]]:
    """What each of the two places says of it."""
    said: list[tuple[str, Any]] = []
    if BETA in rope_parameters.stated(config):
        said.append((f"rope_parameters.{BETA}", scaled_queries(config)))
    beside = config.get(SCALING)
    if isinstance(beside, Mapping):
        said.append((SCALING, {"after": beside.get(rope_parameters.ORIGINAL), "factor": beside.get("beta")}))
    return said


def scaling_of(value: Any) -> dict[str, Any]:
    """The key of its own that says it."""
    said = {rope_parameters.ORIGINAL: value["after"], "beta": value["factor"]} if value else None
    return {SCALING: said}
