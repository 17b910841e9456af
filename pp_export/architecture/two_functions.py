"""Where two models compute different functions, by the settings that a table knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pp_export.architecture.meaning import Config, in_effect
from pp_export.architecture.multimodal import language_config
from pp_export.architecture.rules import Architecture
from pp_export.core.settings import MALFORMED, UNKNOWN, agree

_IDLE = frozenset(
    {
        *("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "auto_map"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range"),
    }
)
"""Keys of config.json that change nothing of what a model answers to given tokens."""


def settings_of(architecture: Architecture, config: Config, library: Config | None) -> dict[str, Any]:
    """The settings that a config.json says, or leaves to what the `library` says of its class; without those
    of which it says nothing.
    """
    effect = in_effect(architecture, language_config(architecture.within, config), library)
    read = {name: reading.read(effect) for name, reading in architecture.readings.items()}
    return {name: value for name, value in read.items() if value is not UNKNOWN and value is not MALFORMED}


def different_settings(
    architecture: Architecture, a: Mapping[str, Any], b: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """The settings of which both sides say something, and not the same."""
    for name, reading in architecture.readings.items():
        if name in a and name in b and not reading.agree(a[name], b[name]):
            yield name, a[name], b[name]


def different_keys(a: Config, b: Config) -> Iterator[tuple[str, Any, Any]]:
    """The same of two config.jsons of a class that no table knows, key by key: None where one hasn't it."""
    for key in sorted({*a, *b} - _IDLE):
        if not agree(a.get(key), b.get(key)):
            yield key, a.get(key), b.get(key)
