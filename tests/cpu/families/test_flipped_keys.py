"""Claim: no key of config.json changes what a class answers without an export saying so.

The truth is the class itself: every key that its config object has, and some that every class reads, gets
other values, and the logits of the same tensors are compared.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch

from pp_export.architecture import families, meaning, table_files
from pp_export.architecture.rules import Architecture
from pp_export.core.errors import AccountingError
from pp_export.megatron import settings
from pp_export.reference.definition import values_in_effect
from tests.fixtures.families import FAMILIES
from tests.fixtures.family_parts import Family, rope
from tests.fixtures.family_proofs import randomize
from tests.fixtures.releases import transformers_5

pytestmark = transformers_5
TABLES = {family.hf_class: family.table for family in families.families()}
OF_CLASS = {family.hf_class: family for family in reversed(FAMILIES.values())}
PLAIN = {
    "LlamaForCausalLM": {},
    "MistralForCausalLM": {"sliding_window": None},
    "Qwen2ForCausalLM": {},
    "Qwen3ForCausalLM": {},
}
OF_CLASS |= {
    name: Family(name, {**rope(), "rms_norm_eps": 1e-5, **config}, {}, lambda *_: {})
    for name, config in PLAIN.items()
}
IDS = torch.randint(3, 200, (2, 24), generator=torch.Generator().manual_seed(1))
SAME = 1e-5
# Token ids, names and what only training or the library's bookkeeping reads.
LEFT = (
    "_token_id",
    "dropout",
    "dtype",
    "_name_or_path",
    "architectures",
    "model_type",
    "vocab_size",
    "id2label",
)
EVERYWHERE: tuple[tuple[str, Any], ...] = (
    ("is_causal", False),
    ("rope_theta", 1234.0),
    ("rope_scaling", {"rope_type": "linear", "factor": 4.0}),
    ("rope_scaling", {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}),
    ("rope_parameters", {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 500_000.0}),
    ("partial_rotary_factor", 0.5),
    ("sliding_window", 4),
    ("use_sliding_window", True),
    ("layer_types", ["sliding_attention", "full_attention", "sliding_attention"]),
    ("tie_word_embeddings", None),
)


def others(value: Any) -> tuple[Any, ...]:
    """Values that mean something else, if anything reads the key."""
    if isinstance(value, bool):
        return (not value, None)
    if isinstance(value, int):
        return (value + 1, 0)
    if isinstance(value, float):
        return (value * 2 or 0.5, value + 1)
    if value is None:
        return (1, 0.5)
    if isinstance(value, list):
        return (value[::-1], value[:1] * len(value))
    return ("relu" if value != "relu" else "gelu",) if isinstance(value, str) else ()


def flipped(config: Mapping[str, Any], effect: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each key that the class has, and a config in which it says something else."""
    for key, value in {**effect, **config}.items():
        if any(part in key for part in LEFT):
            continue
        if isinstance(value, dict):
            for inner, said in value.items():
                for other in others(said):
                    yield f"{key}.{inner}", {**config, key: {**value, inner: other}}
        for other in others(value):
            yield key, {**config, key: other}
    for key, other in EVERYWHERE:
        yield key, {**config, key: other}


class Answering:
    """Models of one class, all with the tensors of the first."""

    def __init__(self, family: Family) -> None:
        import transformers

        self._class: Any = getattr(transformers, family.hf_class)
        first = self.built(family.whole_config())
        randomize(first)
        self.tensors = {name: value.clone() for name, value in first.state_dict().items()}
        self.effect = values_in_effect(first.config)
        self.truth = self.logits(first)

    def config_of(self, config: Mapping[str, Any]) -> Any:
        own = self._class.config_class.from_dict(copy.deepcopy(dict(config)))
        own._attn_implementation = "eager"
        return own

    def built(self, config: Mapping[str, Any]) -> Any:
        return self._class(self.config_of(config)).float().eval()

    def logits(self, model: Any) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
        return found

    def values(self, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """The values in effect of a config; None where the class refuses it."""
        try:
            return values_in_effect(self.config_of(config))
        except Exception:  # noqa: BLE001  whatever a class makes of nonsense, it doesn't answer
            return None

    def answers_otherwise(self, config: Mapping[str, Any]) -> bool:
        """Whether the same tensors give other logits with a config, and not other names or shapes or none."""
        try:
            model = self.built(config)
            model.load_state_dict(self.tensors)
            return (self.logits(model) - self.truth).abs().max().item() > SAME
        except Exception:  # noqa: BLE001  as above
            return False


def is_told(table: Architecture, unchecked: tuple[str, ...], key: str) -> bool:
    """Whether a key belongs to a setting of which the training args say nothing, which is reported."""
    top = key.partition(".")[0]
    return any(top in table.readings[name].keys for name in unchecked if name in table.readings)


@pytest.mark.parametrize("served", sorted(OF_CLASS))
def test_no_key_changes_the_answer_in_silence(served: str) -> None:
    """A key with another value than the function that was trained is refused, or put right in the export's
    config.json, or belongs to a setting that is reported as unchecked.
    """
    family, table = OF_CLASS[served], table_files.load(TABLES[served])
    answering, trained = Answering(family), settings.derive(family.whole_args())
    whole = family.whole_config()
    meaning.settle(table, trained, whole, answering.effect)
    silent, num_refused = [], 0
    for key, config in flipped(whole, answering.effect):
        library = answering.values(config)
        if library is None:
            continue
        try:
            settled = meaning.settle(table, trained, config, library)
        except AccountingError:
            num_refused += 1
            continue
        if is_told(table, settled.unchecked, key):
            continue
        if answering.answers_otherwise(config) and answering.answers_otherwise(settled.config):
            silent.append((key, config[key.partition(".")[0]]))
    assert silent == []
    assert num_refused > 5
