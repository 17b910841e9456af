"""Readings of switches of config.json: which way attention sees, and how pairs of a head rotate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pp_export.architecture.reading import Config, Reading
from pp_export.core.settings import UNKNOWN

_CAUSAL = "is_causal"


def _bidirectional_by(switch: str) -> Reading:
    """Whether queries see what comes after them: release 5 has a switch for every class (masking_utils.py),
    `is_causal`, and classes may have a `switch` of their own.
    """

    def read(config: Config) -> Any:
        return not config.get(_CAUSAL, True) or bool(switch and config.get(switch))

    def write(config: Config, value: Any) -> dict[str, Any] | None:
        own = {switch: value} if switch else {}
        if not own and value and _CAUSAL not in config:
            return None
        return own | ({_CAUSAL: not value} if _CAUSAL in config else {})

    return Reading((_CAUSAL, *([switch] if switch else [])), read, write)


def _switch(key: str) -> Reading:
    """A switch of which null is off, though the class may have it on where config.json lacks it."""
    return Reading(
        (key,),
        lambda config: bool(config[key]) if key in config else UNKNOWN,
        lambda _, value: {key: value},
    )


READINGS: Mapping[str, Reading] = {
    "bidirectional_attention": _bidirectional_by(""),
    "bidirectional_attention_of_gemma": _bidirectional_by("use_bidirectional_attention"),
    "rope_interleave": _switch("rope_interleave"),
}
