"""Which rows of the embedding are tokens: the rest pads it to what tensor parallelism divides.

Shapes alone never settle it. Each source that counts tokens is asked, and rows that one of them knows to be
tokens are not cut off unless the user says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

from pp_export.core.errors import AccountingError
from pp_export.core.tensors import TensorSpec

EMBEDDING = "embedding.word_embeddings.weight"
_ADVICE = (
    "pass --vocab-size, the number of rows that are tokens (as the model was trained), or give the reference"
    " folder of the model that was trained"
)

_MOST_PADDING = 1024
"""More than any framework adds of its own accord: ms-swift pads to multiples of 128 on however many ranks,
Pai-Megatron-Patch by some hundred rows."""


def num_rows(specs: Mapping[str, TensorSpec]) -> int:
    """Rows of the embedding as it is stored, padding included."""
    return specs[EMBEDDING].shape[0] if EMBEDDING in specs else 0


def true_size(
    rows: int,
    *,
    asked: int | None,
    stated: Any,
    args: Mapping[str, Any],
    num_tokens: int | None,
) -> int:
    """The number of rows that are tokens.

    `rows` are stored; `asked` is the user's word; `stated` what config.json says; `args` are the training
    args; `num_tokens` the tokenizer's highest id and one, None where it can't be counted. Raises
    AccountingError, with each source's number, where they leave rows in doubt.
    """
    trained, padded = args.get("vocab_size"), args.get("padded_vocab_size")
    known = asked or (stated if is_count(stated) else trained)
    if not is_count(known):
        raise AccountingError(
            "the embedding may be padded and its true vocabulary size is not known",
            where={"tensor": EMBEDDING},
            expected="vocab_size in the reference config.json",
            got=f"{rows} rows",
            advice=_ADVICE,
        )
    sources = {
        "--vocab-size": asked,
        "config.json's vocab_size": stated,
        "the training args' vocab_size": trained,
        "the training args' padded_vocab_size": padded,
        "the tokenizer's ids": num_tokens,
        "rows of the embedding": rows,
    }
    numbers = [f"{name}: {number}" for name, number in sources.items() if number is not None]
    multiple = _multiple(args)
    is_doubtful = (is_count(padded) and padded != rows) or (is_count(trained) and trained > rows)
    if not asked and known != rows and is_doubtful:
        raise AccountingError(
            "the training args and the embedding differ in the number of rows",
            where={"tensor": EMBEDDING},
            expected=f"padded_vocab_size {rows}",
            got=f"padded_vocab_size {padded}, vocab_size {trained}",
            advice=_ADVICE,
            findings=numbers,
        )
    if known > rows or not (asked or _explains_padding(known, rows, padded, multiple)):
        raise AccountingError(
            "the vocabulary size does not fit the embedding",
            where={"tensor": EMBEDDING},
            expected=f"a size that pads to {rows} rows" + (f" in steps of {multiple}" if multiple else ""),
            got=f"vocab_size {known}",
            advice=_ADVICE,
            findings=numbers,
        )
    real = max((n for n in (trained, num_tokens) if is_count(n) and n <= rows), default=0)
    if known < real and not asked:
        raise AccountingError(
            "rows of the embedding that are tokens would be cut off",
            where={"tensor": EMBEDDING},
            expected=f"a vocabulary of {real} at least",
            got=f"vocab_size {known}",
            advice=f"pass --vocab-size {real} to keep them, or --vocab-size {known} to cut them",
            findings=numbers,
        )
    return known


def says_padding(args: Mapping[str, Any]) -> bool:
    """Whether the training args tell how many rows were added."""
    counts = (args.get("vocab_size"), args.get("padded_vocab_size"), _multiple(args))
    return any(is_count(count) for count in counts)


def rows_for(size: int, args: Mapping[str, Any]) -> int | None:
    """How many rows Megatron makes of a vocabulary; None where the training args don't tell how it pads."""
    multiple = _multiple(args)
    return math.ceil(size / multiple) * multiple if multiple else None


def is_count(value: Any) -> TypeGuard[int]:
    """Whether `value` is a positive whole number."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _multiple(args: Mapping[str, Any]) -> int:
    """What Megatron pads to a multiple of; 0 where the args don't say it."""
    factors = (args.get("make_vocab_size_divisible_by"), args.get("tensor_model_parallel_size"))
    return math.prod(factor if is_count(factor) else 0 for factor in factors)


def _explains_padding(known: int, rows: int, padded: Any, multiple: int) -> bool:
    """A size is explained by rows that are all tokens, by a padding that is stated, or by the usual one.
    Where more rows are over than anyone pads with, the size is that of another model.
    """
    if rows - known >= max(multiple, _MOST_PADDING):
        return False
    is_stated = is_count(padded) and padded == rows
    return known == rows or is_stated or not multiple or math.ceil(known / multiple) * multiple == rows
