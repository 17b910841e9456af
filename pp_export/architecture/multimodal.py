"""A language model within a model that reads more than text: where its config and tensors stand in the whole.

A table is of the language model alone; all that is settled is settled of that. The config of the whole has it
under a key of its own, and the class puts something before its names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_KEYS = {"config", "names"}
_TIED = "tie_word_embeddings"
"""Releases 5 of transformers look for it in the config of the whole, older ones in the language model's."""


@dataclass(frozen=True)
class Within:
    """The key of the language model's config, and what its names begin with: alone -> in the whole."""

    config: str
    names: Mapping[str, str]

    def name(self, alone: str) -> str:
        """The name in the whole of a tensor, or of the pattern of some."""
        begin = next((begin for begin in self.names if alone.startswith(begin)), None)
        return alone if begin is None else self.names[begin] + alone.removeprefix(begin)

    def covers(self, name: str) -> bool:
        """Whether a tensor of the whole is one of the language model."""
        return name.startswith(tuple(self.names.values()))


def faults(section: Mapping[str, Any]) -> list[str]:
    """What is wrong in the `within` of a table."""
    if not section:
        return []
    key: Any = section.get("config")
    names: Any = section.get("names")
    is_right = set(section) == _KEYS and isinstance(key, str) and isinstance(names, Mapping)
    if is_right:
        texts = [text for pair in names.items() for text in pair]
        is_right = all(isinstance(text, str) and text.endswith(".") for text in texts)
    return [] if is_right else ["within: expected {config: KEY, names: {model.: PREFIX., ...}}"]


def language_config(within: Within | None, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of the language model in that of the whole, which it is itself if it stands alone; empty
    where it has none.
    """
    if within is None:
        return config
    inner = config.get(within.config)
    found = dict(inner) if isinstance(inner, Mapping) else {}
    if _TIED in config:
        found.setdefault(_TIED, config[_TIED])
    return found


def with_language_config(
    within: Within | None, config: Mapping[str, Any], language: Mapping[str, Any]
) -> dict[str, Any]:
    """The `config` of the whole with that of the language model in its place."""
    if within is None:
        return dict(language)
    tied = {_TIED: language[_TIED]} if _TIED in language else {}
    return {**config, within.config: dict(language), **tied}
