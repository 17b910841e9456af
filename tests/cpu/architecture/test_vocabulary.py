"""Claims of `pp_export.architecture.vocabulary`: rows that some source knows to be tokens are not cut off."""

from __future__ import annotations

from typing import Any

import pytest

from pp_export.architecture.vocabulary import EMBEDDING, num_rows, says_padding, true_size
from pp_export.core.dtypes import from_torch
from pp_export.core.errors import AccountingError
from pp_export.core.tensors import TensorSpec

PADDING = {"make_vocab_size_divisible_by": 64, "tensor_model_parallel_size": 2}


def settle(
    rows: int = 256,
    *,
    asked: int | None = None,
    stated: Any = 250,
    num_tokens: int | None = None,
    **args: Any,
) -> int:
    return true_size(rows, asked=asked, stated=stated, args=args, num_tokens=num_tokens)


def test_config_json_says_the_size_where_it_explains_the_rows() -> None:
    """The size of config.json counts where it pads to the stored rows as the args say, or where they say
    nothing.
    """
    assert settle() == 250
    assert settle(**PADDING) == 250
    assert settle(stated=256, **PADDING) == 256
    assert settle(rows=256, stated=200, make_vocab_size_divisible_by=64, tensor_model_parallel_size=1) == 200


def test_a_padding_that_is_not_the_usual_one_must_be_stated() -> None:
    """A size that doesn't pad to the rows is refused with both numbers, unless the args state the rows as
    the padded size; rows that are all tokens need no explanation.
    """
    with pytest.raises(AccountingError, match="does not fit the embedding") as caught:
        settle(rows=384, stated=380, make_vocab_size_divisible_by=128, tensor_model_parallel_size=2)
    assert caught.value.expected == "a size that pads to 384 rows in steps of 256"
    assert caught.value.got == "vocab_size 380"
    assert "config.json's vocab_size: 380" in caught.value.findings
    usual = {"make_vocab_size_divisible_by": 128, "tensor_model_parallel_size": 2}
    assert settle(rows=384, stated=380, padded_vocab_size=384, **usual) == 380
    assert settle(rows=384, stated=384, **usual) == 384


@pytest.mark.parametrize("args", [{}, {"padded_vocab_size": 50304}, PADDING | {"padded_vocab_size": 50304}])
def test_no_one_pads_with_thousands_of_rows(args: dict[str, int]) -> None:
    """A reference of another model, of which config.json and tokenizer agree, explains no 18,304 rows more,
    though the args state the rows as padded; a large padding does that the args make.
    """
    with pytest.raises(AccountingError, match="does not fit the embedding"):
        settle(50304, stated=32000, num_tokens=32000, **args)
    assert settle(50304, stated=32000, asked=32000, **args) == 32000
    assert settle(50304, stated=49300, padded_vocab_size=50304) == 49300
    of_many = {"make_vocab_size_divisible_by": 128, "tensor_model_parallel_size": 16}
    assert settle(4096, stated=2100, **of_many) == 2100


@pytest.mark.parametrize("args", [{"padded_vocab_size": 512}, {"vocab_size": 400}])
def test_args_that_count_other_rows_are_doubted(args: dict[str, int]) -> None:
    """Args that contradict the embedding settle nothing: refused, unless all rows are tokens or the user
    says how many.
    """
    with pytest.raises(AccountingError, match="differ in the number of rows"):
        settle(rows=384, stated=380, **args)
    assert settle(rows=384, stated=384, **args) == 384
    assert settle(rows=384, stated=380, asked=380, **args) == 380


@pytest.mark.parametrize("source", [{"num_tokens": 254}, {"vocab_size": 254}])
def test_rows_that_are_tokens_are_not_cut(source: dict[str, int]) -> None:
    """Where the args or the tokenizer count more tokens than config.json, all numbers are told and the
    export stops; the user's word decides.
    """
    with pytest.raises(AccountingError, match="would be cut off") as caught:
        settle(**source, **PADDING)
    assert caught.value.expected == "a vocabulary of 254 at least"
    assert "rows of the embedding: 256" in caught.value.findings
    assert any(finding.endswith(": 254") for finding in caught.value.findings)
    assert "--vocab-size 254 to keep them, or --vocab-size 250" in str(caught.value.advice)
    assert settle(asked=254, **source, **PADDING) == 254
    assert settle(asked=250, **source, **PADDING) == 250


def test_fewer_tokens_than_config_json_are_no_contradiction() -> None:
    """Families pad in the Hugging Face model too: a tokenizer with fewer ids than rows cuts nothing."""
    assert settle(num_tokens=200, vocab_size=200) == 250


def test_ids_beyond_all_rows_are_nobodys_rows() -> None:
    """A tokenizer with ids that no row can have says nothing of which rows are padding."""
    assert settle(num_tokens=300) == 250


def test_a_vocabulary_larger_than_the_embedding_is_refused() -> None:
    """More tokens than stored rows are refused, from config.json and from the flag."""
    for wrong in ({"stated": 257}, {"asked": 300}):
        with pytest.raises(AccountingError, match="does not fit the embedding"):
            settle(**wrong)


@pytest.mark.parametrize("unknown", [None, "many", 2.5, True, 0])
def test_an_unknown_vocabulary_is_refused(unknown: Any) -> None:
    """Without a true size the padded rows can't be told from tokens, so the export stops and asks for it."""
    with pytest.raises(AccountingError, match="true vocabulary size is not known") as caught:
        settle(stated=unknown)
    assert caught.value.where == {"tensor": EMBEDDING}
    assert "--vocab-size" in str(caught.value.advice)
    assert settle(stated=unknown, vocab_size=250) == 250
    assert settle(stated=unknown, asked=251) == 251


def test_the_flag_needs_no_padding_that_explains_it() -> None:
    """--vocab-size is the user's word: it goes before config.json, whatever the args' padding."""
    assert settle(asked=100, **PADDING) == 100


def test_rows_are_those_of_the_embedding() -> None:
    """The stored rows are counted on the embedding; a stage without one has none."""
    assert num_rows({EMBEDDING: TensorSpec((256, 64), from_torch("float32"))}) == 256
    assert num_rows({}) == 0


def test_args_that_tell_of_padding() -> None:
    """Any of the sizes, or both factors of the usual padding, tell how many rows were added."""
    assert says_padding({"vocab_size": 250})
    assert says_padding({"padded_vocab_size": 256})
    assert says_padding(PADDING)
    assert not says_padding({"make_vocab_size_divisible_by": 64, "vocab_size": None})
