"""Claims of `pp_export.architecture.sizes`: the checkpoint's sizes are used, and every disagreement names
both values.
"""

from __future__ import annotations

from typing import Any

import pytest

from pp_export.architecture import table_files
from pp_export.architecture.sizes import EMBEDDING, ModelSizes, from_args, from_config, reconcile
from pp_export.core.dtypes import from_torch
from pp_export.core.errors import AccountingError
from pp_export.core.tensors import TensorSpec

ARGS: dict[str, Any] = {
    "num_layers": 4,
    "hidden_size": 64,
    "ffn_hidden_size": 96,
    "num_attention_heads": 8,
    "group_query_attention": True,
    "num_query_groups": 2,
    "kv_channels": 12,
    "norm_epsilon": 1e-5,
    "rotary_base": 10000,
    "swiglu": True,
    "normalization": "RMSNorm",
    "untie_embeddings_and_output_weights": True,
    "make_vocab_size_divisible_by": 64,
    "tensor_model_parallel_size": 2,
}
CONFIG: dict[str, Any] = {
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": 250,
}
LLAMA = table_files.load("llama")


def settle(
    args: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    *,
    rows: int = 256,
    vocab_size: int | None = None,
    without_args: bool = False,
) -> ModelSizes:
    """Reconcile ARGS and CONFIG with some values changed; None removes a key."""
    trained = {key: value for key, value in (ARGS | (args or {})).items() if value is not None}
    stated = {key: value for key, value in (CONFIG | (config or {})).items() if value is not None}
    specs = {EMBEDDING: TensorSpec((rows, 64), from_torch("float32"))}
    return reconcile(LLAMA, None if without_args else trained, stated, specs, vocab_size)


def findings(args: dict[str, Any] | None = None, config: dict[str, Any] | None = None) -> tuple[str, ...]:
    with pytest.raises(AccountingError, match="not the config of this checkpoint") as caught:
        settle(args, config)
    return caught.value.findings


def test_agreement_gives_the_trained_sizes() -> None:
    """Where args and config agree, the sizes that transforms need come out, with their origin."""
    assert settle() == ModelSizes(
        {"num_attention_heads": 8, "num_query_groups": 2, "head_dim": 12, "vocab_size": 250},
        "training args",
        vocab_size=250,
        padded_vocab_size=256,
    )


def test_without_args_the_config_is_used_and_said_to_be() -> None:
    """A checkpoint without training args takes its sizes from config.json, and says so."""
    sizes = settle(without_args=True)
    assert sizes.source == "config.json"
    assert sizes.values["num_query_groups"] == 2


@pytest.mark.parametrize(
    ("key", "value", "finding"),
    [
        ("num_hidden_layers", 5, "num_layers: the checkpoint was trained with 4, config.json says 5"),
        ("hidden_size", 128, "hidden_size: the checkpoint was trained with 64, config.json says 128"),
        ("intermediate_size", 97, "ffn_hidden_size: the checkpoint was trained with 96, config.json says 97"),
        (
            "num_attention_heads",
            4,
            "num_attention_heads: the checkpoint was trained with 8, config.json says 4",
        ),
        ("num_key_value_heads", 4, "num_query_groups: the checkpoint was trained with 2, config.json says 4"),
        ("head_dim", 8, "head_dim: the checkpoint was trained with 12, config.json says 8"),
        ("rms_norm_eps", 1e-6, "norm_epsilon: the checkpoint was trained with 1e-05, config.json says 1e-06"),
        ("rope_theta", 5e5, "rotary_base: the checkpoint was trained with 10000, config.json says 500000.0"),
        ("tie_word_embeddings", True, "tied: the checkpoint was trained with False, config.json says True"),
    ],
)
def test_a_disagreement_names_both_values(key: str, value: Any, finding: str) -> None:
    """Each size that config.json states otherwise stops the export, with the trained and the stated value."""
    assert findings(config={key: value}) == (finding,)


def test_all_disagreements_are_listed_at_once() -> None:
    """Disagreements of several sizes and of required args come in one error."""
    found = findings({"swiglu": False}, {"head_dim": 8, "hidden_size": 65})
    assert len(found) == 3
    assert found[-1] == "swiglu: the table llama requires True, the checkpoint has False"


def test_required_args_must_hold_where_the_checkpoint_has_them() -> None:
    """An arg that the table requires must have its value; one that an old checkpoint lacks is not guessed."""
    assert findings({"normalization": "LayerNorm"}) == (
        "normalization: the table llama requires RMSNorm, the checkpoint has LayerNorm",
    )
    settle({"normalization": None, "swiglu": None})


def test_rope_theta_is_found_in_both_places() -> None:
    """A size may stand in one of several places of config.json; wherever it is, it must agree."""
    settle(config={"rope_theta": None, "rope_parameters": {"rope_theta": 10000}})
    assert "rotary_base" in findings(config={"rope_theta": None, "rope_parameters": {"rope_theta": 1e6}})[0]
    settle(config={"rope_theta": None})


def test_query_groups_count_only_under_group_query_attention() -> None:
    """Without group_query_attention every head is a group, whatever the leftover default says."""
    assert from_args(ARGS)["num_query_groups"] == 2
    for value in (False, None):
        args = ARGS | {"group_query_attention": value, "num_query_groups": 1}
        assert from_args(args)["num_query_groups"] == 8
    plain = settle({"group_query_attention": False, "num_query_groups": 1}, {"num_key_value_heads": 8})
    assert plain.values["num_query_groups"] == 8
    assert (
        settle({"group_query_attention": False, "num_query_groups": 1}, {"num_key_value_heads": None}).values[
            "num_query_groups"
        ]
        == 8
    )


def test_head_dim_falls_back_to_hidden_over_heads_on_both_sides() -> None:
    """Without kv_channels or head_dim, a head is hidden size over heads, in args and in config alike."""
    assert from_args(ARGS | {"kv_channels": None})["head_dim"] == 8
    without = {key: value for key, value in CONFIG.items() if key != "head_dim"}
    assert from_config(without, LLAMA.config)["head_dim"] == 8
    assert "head_dim: the checkpoint was trained with 12, config.json says 8" in findings(
        config={"head_dim": None}
    )


def test_sizes_that_nobody_states_are_listed() -> None:
    """Sizes that neither args nor config give are listed, not guessed."""
    specs = {EMBEDDING: TensorSpec((256, 64), from_torch("float32"))}
    with pytest.raises(AccountingError) as caught:
        reconcile(LLAMA, {}, {"vocab_size": 250}, specs, None)
    assert caught.value.findings == tuple(
        f"{size}: neither the training args nor config.json say it"
        for size in ("num_attention_heads", "num_query_groups", "head_dim")
    )


def test_the_padded_vocabulary_must_be_explained() -> None:
    """The true size must pad to the stored rows at the trained tensor parallel size; else both are named."""
    assert settle(config={"vocab_size": 256}).vocab_size == 256
    assert settle({"tensor_model_parallel_size": 1}, {"vocab_size": 200}).padded_vocab_size == 256
    with pytest.raises(AccountingError, match="does not fit the embedding") as caught:
        settle({"tensor_model_parallel_size": 1}, {"vocab_size": 190})
    assert caught.value.expected == "a size that pads to 256 rows in steps of 64"
    assert caught.value.got == "vocab_size 190"
    assert "--vocab-size" in str(caught.value.advice)


def test_a_vocabulary_larger_than_the_embedding_is_refused() -> None:
    """More tokens than stored rows are refused, from config.json and from the flag."""
    for wrong in ({"config": {"vocab_size": 257}}, {"vocab_size": 300}):
        with pytest.raises(AccountingError, match="does not fit the embedding"):
            settle({"make_vocab_size_divisible_by": None}, **wrong)


def test_an_unknown_vocabulary_is_refused() -> None:
    """Without a true size the padded rows can't be told from tokens, so the export stops and asks for it."""
    for unknown in (None, "many", 2.5, True):
        with pytest.raises(AccountingError, match="true vocabulary size is not known") as caught:
            settle(config={"vocab_size": unknown})
        assert caught.value.where == {"tensor": EMBEDDING}
        assert "--vocab-size" in str(caught.value.advice)
    assert settle({"vocab_size": 250}, {"vocab_size": None}).vocab_size == 250


def test_the_flag_decides_the_vocabulary() -> None:
    """--vocab-size is the user's word: it goes before config.json, and needs no padding that explains it."""
    assert settle(vocab_size=100).vocab_size == 100
    assert settle(vocab_size=100).values["vocab_size"] == 100
    assert settle(config={"vocab_size": None}, vocab_size=251).vocab_size == 251


def test_sizes_must_be_whole_numbers() -> None:
    """A size that is no positive whole number is refused by name, not computed with."""
    for wrong in ("eight", 8.5, 0, -8, True):
        with pytest.raises(AccountingError) as caught:
            settle({"num_attention_heads": None, "kv_channels": 12}, {"num_attention_heads": wrong})
        assert "num_attention_heads" in caught.value.findings[0]
        assert repr(wrong) in caught.value.findings[0]
