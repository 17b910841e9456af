"""The sizes that transforms need to cut a tensor into those of the other side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pp_export.architecture.vocabulary import is_count
from pp_export.core.errors import AccountingError

_NEEDED = ("num_attention_heads", "num_query_groups", "head_dim")


@dataclass(frozen=True)
class ModelSizes:
    """The sizes by name, and where they came from (`training args` or `config.json`)."""

    values: Mapping[str, int]
    source: str
    vocab_size: int
    padded_vocab_size: int


def model_sizes(
    settings: Mapping[str, Any], *, source: str, vocab_size: int, padded_vocab_size: int
) -> ModelSizes:
    """The sizes among the values of `settings`. Raises AccountingError listing what is missing or no size."""
    findings = [
        f"{size}: neither the training args nor config.json say it"
        if not isinstance(settings.get(size), (int, float, str))
        else f"{size}: {settings[size]!r} is not a positive whole number"
        for size in _NEEDED
        if not is_count(settings.get(size))
    ]
    if findings:
        raise AccountingError(
            "the sizes of the model are not known",
            advice="give the reference folder of the model that was trained, or complete its config.json",
            findings=findings,
        )
    values = {size: settings[size] for size in _NEEDED} | {"vocab_size": vocab_size}
    return ModelSizes(values, source, vocab_size, padded_vocab_size)
