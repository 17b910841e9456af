"""Claims of `pp_export.architecture.sizes`: transforms get whole positive sizes, or the export stops."""

from __future__ import annotations

from typing import Any

import pytest

from pp_export.architecture import table_files
from pp_export.architecture.sizes import ModelSizes, model_sizes
from pp_export.core.errors import AccountingError

LLAMA = table_files.load("llama")
SETTINGS: dict[str, Any] = {"num_attention_heads": 8, "num_query_groups": 2, "head_dim": 12, "tied": False}


def settle(**changed: Any) -> ModelSizes:
    settings = SETTINGS | changed
    return model_sizes(LLAMA, settings, source="training args", vocab_size=250, padded_vocab_size=256)


def test_what_transforms_need_is_taken() -> None:
    """The sizes that transforms need come out, with the vocabulary and with their origin."""
    assert settle() == ModelSizes(
        {"num_attention_heads": 8, "num_query_groups": 2, "head_dim": 12, "vocab_size": 250},
        "training args",
        vocab_size=250,
        padded_vocab_size=256,
    )


def test_sizes_that_nobody_states_are_listed() -> None:
    """Sizes that neither args nor config give are listed, not guessed."""
    with pytest.raises(AccountingError) as caught:
        model_sizes(LLAMA, {}, source="config.json", vocab_size=250, padded_vocab_size=256)
    assert caught.value.findings == tuple(
        f"{size}: neither the training args nor config.json say it"
        for size in ("num_attention_heads", "num_query_groups", "head_dim")
    )


@pytest.mark.parametrize("wrong", ["eight", 8.5, 0, -8, True])
def test_sizes_must_be_whole_numbers(wrong: Any) -> None:
    """A size that is no positive whole number is refused by name, not computed with."""
    with pytest.raises(AccountingError) as caught:
        settle(num_attention_heads=wrong)
    assert caught.value.findings == (f"num_attention_heads: {wrong!r} is not a positive whole number",)
