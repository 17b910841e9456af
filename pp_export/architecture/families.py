"""The model classes that packaged tables serve, and how each is proved.

The proofs are cards that the tests write (`tests/fixtures/family_proofs.py`); nothing here is typed by hand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from pp_export.architecture import table_files

LOGITS, REARRANGED, PUBLISHED = "logits of megatron-core", "model laid out anew", "published sizes"
INDEX = "reference's index"
KINDS: Mapping[str, str] = {
    LOGITS: "megatron-core computes the logits of a checkpoint that it wrote, and the exported model gives"
    " the same",
    REARRANGED: "a random model of transformers, laid out as Megatron stores it by code that knows no table,"
    " comes back with the same bytes and logits",
    INDEX: "transformers doesn't have the class: a folder with the names that other loaders know comes back"
    " with the same bytes, held to its own index",
    PUBLISHED: "for the sizes of a real member, names and shapes are those of the class, one to one",
}
"""Kinds of proof, the strongest first."""

_CARDS = resources.files("pp_export.architecture") / "proofs.json"


@dataclass(frozen=True)
class Family:
    """A class, the table that serves it, and the cards of its proofs, the strongest first."""

    hf_class: str
    table: str
    proofs: tuple[Mapping[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        return {"class": self.hf_class, "table": self.table, "proofs": [dict(card) for card in self.proofs]}


@cache
def families() -> tuple[Family, ...]:
    """All classes that are served, by name."""
    cards = json.loads(_CARDS.read_text("utf-8"))
    served = sorted(table_files.packaged().items())
    return tuple(Family(name, table, tuple(cards.get(name, ()))) for name, table in served)


@cache
def multimodal() -> tuple[Family, ...]:
    """All classes with a language model within, by name, and the tables of those that it may be."""
    cards, tables = json.loads(_CARDS.read_text("utf-8")), table_files.packaged()
    return tuple(
        Family(
            name,
            ", ".join(tables[language] for language in entry["language_models"].values()),
            tuple(cards.get(name, ())),
        )
        for name, entry in sorted(table_files.multimodal().items())
    )


def to_json() -> dict[str, Any]:
    """All classes with their cards."""
    return {
        "schema_version": 1,
        "families": [family.to_json() for family in families()],
        "multimodal": [family.to_json() for family in multimodal()],
    }
