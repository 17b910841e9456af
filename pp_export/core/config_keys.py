"""Keys of config.json that several rooms know: those by which a loader could fetch or run what neither the
folder nor the library holds, and those of which families have each their own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

CODE = frozenset({"auto_map"})
"""Names Python classes in the folder or in another repository."""

MTP_COUNTS = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "mtp_num_layers", "num_mtp_layers")
"""How many layers for multi-token prediction there are."""


def num_mtp_layers(config: Mapping[str, Any]) -> int:
    """The largest of these counts in a config, not in those nested in it."""
    return max((config[key] for key in MTP_COUNTS if type(config.get(key)) is int), default=0)


QUANTIZATION_CONFIG = "quantization_config"
QUANTIZATION = frozenset({QUANTIZATION_CONFIG, "compression_config"})
"""Says how the weights on disk are packed; quantizers bring libraries and kernels with them."""

OTHER_FILES = frozenset({"transformers_weights", "configuration_files"})
"""Names other files as the weights, or as the config of newer releases."""

LEADS_OUTSIDE = (
    CODE
    | OTHER_FILES
    | {
        # May name kernels in a repository of the Hub.
        "attn_implementation",
        "_attn_implementation",
        "_attn_implementation_internal",
        "experts_implementation",
        "_experts_implementation",
        "_experts_implementation_internal",
        "kernel_config",
        # Swaps modules of the model for others.
        "fusion_config",
    }
)
"""A config without these asks for nothing outside, as long as its class is one of the library."""


def without(value: Any, keys: Collection[str]) -> Any:
    """A copy of a JSON value in which no object, however deep, has any of `keys`."""
    if isinstance(value, Mapping):
        return {key: without(inner, keys) for key, inner in value.items() if key not in keys}
    if isinstance(value, list):
        return [without(inner, keys) for inner in value]
    return value
