"""Other heads on a language model: classes of sequences or tokens, rewards, values.

transformers builds them alike for every family: the same decoder, and a linear layer `score` in place of the
one for words. Trainers put theirs in that place too, as `output_layer`; its rows are labels, never padded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel")
_SUFFIXES = ("ForSequenceClassification", "ForTokenClassification")
_OUTPUT = "output_layer."


def language_models_of(class_name: str) -> list[str]:
    """What the class of the same decoder with its own head may be called; nothing where a class has that."""
    roots = [class_name.removesuffix(suffix) for suffix in _SUFFIXES if class_name.endswith(suffix)]
    return [root + suffix for root in roots for suffix in _LANGUAGE_MODELS]


def root_of(class_name: str) -> str:
    """The name without what it says of the head."""
    suffixes = (*_LANGUAGE_MODELS, *_SUFFIXES)
    return next((class_name.removesuffix(each) for each in suffixes if class_name.endswith(each)), class_name)


def with_head(table: Mapping[str, Any], class_name: str) -> dict[str, Any]:
    """The whole `table` of a language model as that of the class with another head: nothing is tied to it,
    and no further tokens are predicted.
    """
    rows = [row for row in table["rules"] if not row["megatron"].startswith(_OUTPUT)]
    score = [{"megatron": f"{_OUTPUT}{kind}", "hf": f"score.{kind}"} for kind in ("weight", "bias")]
    return {
        **table,
        "serves": [class_name],
        "config": {setting: entry for setting, entry in table["config"].items() if setting != "tied"},
        "shown": {**table["shown"], "num_labels": {"rows_of": f"{_OUTPUT}weight"}},
        "rules": rows + score,
        "mtp": {"refused": "a model with this head predicts no tokens"},
    }
