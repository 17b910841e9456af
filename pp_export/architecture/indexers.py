"""How config.json says which layers of sparse attention choose tokens themselves, 1 or 0 per layer.

Source: transformers' configuration_glm_moe_dsa.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pp_export.architecture import windows
from pp_export.core.settings import UNKNOWN
from pp_export.core.strict_json import is_count

Config = Mapping[str, Any]

TYPES, STEP, FIRST = "indexer_types", "index_topk_freq", "index_skip_topk_offset"
_OWN, _SHARED = "full", "shared"


def of_types(config: Config) -> Any:
    """Those that a list calls full; else all up to a number, and each N-th behind it."""
    kinds, layers = config.get(TYPES), windows.num_layers(config)
    if layers is None:
        return UNKNOWN
    if isinstance(kinds, list):
        if not {_OWN, _SHARED}.issuperset(kinds):
            raise TypeError(f"{TYPES} are {_OWN} or {_SHARED}")
        return [int(kind == _OWN) for kind in kinds[:layers]]
    step, first = config.get(STEP, 1), config.get(FIRST, 2)
    return _at_steps(layers, step, first) if is_count(step) and is_count(first) else UNKNOWN


def write_types(_: Config, value: Any) -> dict[str, Any]:
    """The list, and the numbers for loaders that read those, if they can say it."""
    layers = len(value)
    steps = ((step, first) for step in range(1, layers + 1) for first in range(1, layers + 1))
    found = next((dict(zip((STEP, FIRST), at)) for at in steps if _at_steps(layers, *at) == list(value)), {})
    return {TYPES: [_OWN if own else _SHARED for own in value], **found}


def _at_steps(layers: int, step: int, first: int) -> list[int]:
    return [int(max(layer - first + 1, 0) % max(step, 1) == 0) for layer in range(layers)]
