"""Claims of the tables' `defaults`: they are what the library's class takes for a key that is missing."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import pytest

from pp_export.architecture import families, table_files
from pp_export.architecture.meaning import in_effect, spelled_out
from pp_export.core.settings import UNKNOWN, agree
from pp_export.reference.definition import Definition, define

CLASSES = {
    family.hf_class: family.table
    for family in families.families()
    if families.INDEX not in {card["proof"] for card in family.proofs}  # else the library has no such class
}
SMALL: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 32,
    "vocab_size": 16,
    "pad_token_id": 0,
}
# Without these the class's own code fails: it has no default for them.
NEEDED: dict[str, dict[str, Any]] = {
    "NemotronForCausalLM": {"num_key_value_heads": 32},
    "Dots1ForCausalLM": {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2},
}
# Release 5 has another base of RoPE for these; an export takes what the release that is there says.
CHANGED = ("CohereForCausalLM", "Olmo3ForCausalLM")


def defined(served: str, config: dict[str, Any]) -> Definition:
    """What the library says of a class; skips those that its release doesn't know as the tables do."""
    definition = define(config)
    if version("transformers").startswith("4.") and (definition is None or served in CHANGED):
        pytest.skip("release 5 of transformers brought or changed the class")
    assert definition is not None
    return definition


def values_of(table: str, config: dict[str, Any], library: Any) -> dict[str, Any]:
    architecture = table_files.load(table)
    effect = in_effect(architecture, config, library)
    return {name: reading.read(effect) for name, reading in architecture.readings.items()}


@pytest.mark.parametrize("switched", [{}, {"use_sliding_window": True}], ids=["", "windows on"])
@pytest.mark.parametrize("served", sorted(CLASSES))
def test_defaults_are_those_of_the_library(served: str, switched: dict[str, Any]) -> None:
    """Whatever setting config.json leaves out, the table alone and the library say the same of it."""
    if switched and "use_sliding_window" not in table_files.load(CLASSES[served]).defaults:
        pytest.skip("a class without the switch")
    config = {"architectures": [served], **SMALL, **NEEDED.get(served, {}), **switched}
    definition = defined(served, config)
    alone, asked = (
        values_of(CLASSES[served], config, None),
        values_of(CLASSES[served], config, definition.config),
    )
    sizes = {"ffn_hidden_size", "moe_ffn_hidden_size", "num_experts"}  # shapes tell these
    differing = {name: (alone[name], asked[name]) for name in alone if not agree(alone[name], asked[name])}
    assert not {name for name in differing if alone[name] is not UNKNOWN or name not in sizes}, differing


@pytest.mark.parametrize("served", sorted(CLASSES))
def test_what_is_written_out_is_taken_by_the_library(served: str) -> None:
    """A config that says everything outright means to the library what it meant before."""
    config = {"architectures": [served], **SMALL, **NEEDED.get(served, {})}
    architecture = table_files.load(CLASSES[served])
    before, after = defined(served, config), defined(served, spelled_out(architecture, config))
    assert values_of(CLASSES[served], config, before.config) == values_of(
        CLASSES[served], config, after.config
    )
    assert before.tensors == after.tensors
