"""Claim: what a class does without being told, and other loaders do only if config.json tells them, is told.

vLLM and SGLang route as softmax and greedy choice without a bias where these keys are missing, so that a
served model would answer otherwise than it was trained; transformers 5 writes none of them.
"""

from __future__ import annotations

from typing import Any

import pytest

from pp_export.architecture import meaning, table_files
from pp_export.core.errors import AccountingError
from pp_export.megatron import settings
from pp_export.reference.definition import values_in_effect
from tests.fixtures.families import FAMILIES
from tests.fixtures.releases import transformers_5

pytestmark = transformers_5
DEEPSEEK = {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "moe_layer_freq": 1}
TOLD: dict[str, dict[str, Any]] = {
    "deepseek_v3": DEEPSEEK,
    "deepseek_v32": DEEPSEEK,
    "glm_moe_dsa": DEEPSEEK,
    "glm4_moe_lite": DEEPSEEK,
    "dots1": DEEPSEEK,
    "minimax_m2": {"scoring_func": "sigmoid", "use_routing_bias": True, "shared_intermediate_size": 0},
}


def settled(name: str, said: dict[str, Any], *, correct: bool = False) -> meaning.Meaning:
    """What is settled of a family with a reference as transformers 5 writes it, in which more is `said`."""
    import transformers

    family = FAMILIES[name]
    library = getattr(transformers, family.hf_class).config_class.from_dict(family.whole_config())
    reference = {**library.to_diff_dict(), **said}
    table, trained = table_files.for_class(family.hf_class), settings.derive(family.whole_args())
    return meaning.settle(table, trained, reference, values_in_effect(library), correct=correct)


@pytest.mark.parametrize("name", TOLD)
def test_what_other_loaders_ask_for_is_added(name: str) -> None:
    """Where the reference says nothing of it, or null."""
    for said in ({}, dict.fromkeys(TOLD[name])):
        found = settled(name, said)
        assert {key: found.config[key] for key in TOLD[name]} == TOLD[name]
        assert found.corrected == set()


@pytest.mark.parametrize(
    ("name", "key", "said"),
    [
        ("deepseek_v3", "scoring_func", "softmax"),
        ("deepseek_v3", "topk_method", "greedy"),
        ("dots1", "moe_layer_freq", 2),
        ("minimax_m2", "use_routing_bias", False),
    ],
)
def test_what_would_make_them_answer_otherwise_is_refused(name: str, key: str, said: Any) -> None:
    """The class answers the same, so that nobody else would find it; the checkpoint may decide."""
    with pytest.raises(AccountingError) as caught:
        settled(name, {key: said})
    assert any(finding.startswith(f"{key}: config.json says ") for finding in caught.value.findings)
    assert settled(name, {key: said}, correct=True).config[key] == TOLD[name][key]


def test_how_many_elements_of_a_head_rotate() -> None:
    """MiniMax-M2's `rotary_dim`, which other loaders require and published configs say alone, is added, read,
    and corrected with the part that transformers takes.
    """
    head = FAMILIES["minimax_m2"].whole_config()["head_dim"]
    part = settled("minimax_m2", {}).values["rotary_percent"]
    assert part not in (None, 1.0)
    for said in ({}, {"rotary_dim": head}):
        assert settled("minimax_m2", said).config["rotary_dim"] == head * part
    table = table_files.for_class("MiniMaxM2ForCausalLM")
    alone = {"head_dim": head, "rotary_dim": int(head * part), "rope_theta": 1e4}
    assert table.readings["rotary_percent"].read(alone) == part
    assert meaning.spelled_out(table, alone)["partial_rotary_factor"] == part


def test_growing_queries_are_said_where_vllm_looks() -> None:
    """Ministral 3's `llama_4_scaling`: added, and held to what is said among the parameters of RoPE."""
    found = settled("ministral3", {})
    grown = found.values["query_growth"]
    said = {"original_max_position_embeddings": grown["after"], "beta": grown["factor"]}
    assert found.config["llama_4_scaling"] == said
    again = settled("ministral3", {"llama_4_scaling": said})
    assert again.config["llama_4_scaling"] == said
    other = settled("ministral3", {"llama_4_scaling": {**said, "beta": 0.3}})
    assert other.config["llama_4_scaling"] == said
