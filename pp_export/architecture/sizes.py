"""The sizes that transforms need to cut a tensor into those of the other side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pp_export.architecture.rules import Architecture
from pp_export.architecture.vocabulary import is_count
from pp_export.core.errors import AccountingError


@dataclass(frozen=True)
class ModelSizes:
    """The sizes by name, and where they came from (`training args` or `config.json`)."""

    values: Mapping[str, int]
    source: str
    vocab_size: int
    padded_vocab_size: int


def model_sizes(
    architecture: Architecture,
    settings: Mapping[str, Any],
    *,
    source: str,
    vocab_size: int,
    padded_vocab_size: int,
) -> ModelSizes:
    """The sizes that the table's rows ask for, among the values of `settings`. Raises AccountingError listing
    what is missing or no size.
    """
    rows = (rule for rule in architecture.rules if rule.drop is None)
    needed = tuple(dict.fromkeys(size for rule in rows for size in rule.transform.needs))
    findings = [
        f"{size}: neither the training args nor config.json say it"
        if not isinstance(settings.get(size), (int, float, str))
        else f"{size}: {settings[size]!r} is not a positive whole number"
        for size in needed
        if not is_count(settings.get(size))
    ]
    if findings:
        raise AccountingError(
            "the sizes of the model are not known",
            advice="give the reference folder of the model that was trained, or complete its config.json",
            findings=findings,
        )
    values = {size: settings[size] for size in needed} | {"vocab_size": vocab_size}
    return ModelSizes(values, source, vocab_size, padded_vocab_size)
