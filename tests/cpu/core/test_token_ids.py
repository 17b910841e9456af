"""Claims of `pp_export.core.token_ids`: ids are counted as the tokenizers library counts them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pp_export.core.token_ids import (
    TEMPLATE_JSON,
    TEMPLATE_TEXT,
    TOKENIZER,
    TOKENIZER_CONFIG,
    chat_templates,
    is_tokenizer_file,
    special_ids,
    template_notes,
    token_ids,
    vocab_size_of,
)
from tests.fixtures.mutations import JSON_VALUES

WORDS = ["the", "quick", "brown", "fox", "<unk>"]


def tokenizers_of_all_kinds() -> dict[str, Any]:
    """A tokenizer of each model that the library has, without added tokens."""
    from tokenizers import Tokenizer, models

    words = {word: number for number, word in enumerate(WORDS)}
    return {
        "bpe": Tokenizer(models.BPE(vocab=words, merges=[])),
        "wordpiece": Tokenizer(models.WordPiece(vocab=words, unk_token="<unk>")),
        "wordlevel": Tokenizer(models.WordLevel(vocab=words, unk_token="<unk>")),
        "unigram": Tokenizer(models.Unigram([(word, -1.0) for word in WORDS], 4)),
    }


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "wordlevel", "unigram"])
def test_ids_are_counted_as_the_library_counts(kind: str) -> None:
    """For every kind of model, with and without added tokens, the number of ids is the library's."""
    tokenizer = tokenizers_of_all_kinds()[kind]
    for num_added in (0, 3):
        tokenizer.add_special_tokens([f"<extra{number}>" for number in range(num_added)])
        ids = token_ids({TOKENIZER: json.loads(tokenizer.to_str())})
        known = tokenizer.get_vocab(with_added_tokens=True)
        assert ids.num_ids == ids.at_least == max(known.values()) + 1 == len(WORDS) + num_added
        assert ids.vocabulary == len(WORDS)
        assert ids.added == {word: number for word, number in known.items() if word not in WORDS}
        assert ids.file == TOKENIZER


def test_ids_with_holes_are_counted_to_the_highest() -> None:
    """The number of ids is the highest and one, not the number of tokens."""
    assert token_ids({"vocab.json": {"a": 7, "b": 0}}).num_ids == 8


def test_every_file_counts() -> None:
    """Whichever file a loader reads, its ids are counted, and the file with the highest is named."""
    files = {
        TOKENIZER: {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 2, "content": "<s>"}]},
        "vocab.json": {"a": 0, "b": 4},
        "added_tokens.json": {"<t>": 5},
        TOKENIZER_CONFIG: {"added_tokens_decoder": {"9": {"content": "<u>"}, "x": {"content": "y"}}},
    }
    for names, expected, file in (
        ([TOKENIZER], 3, TOKENIZER),
        (["vocab.json"], 5, "vocab.json"),
        ([TOKENIZER, "vocab.json", "added_tokens.json"], 6, "added_tokens.json"),
        (list(files), 10, TOKENIZER_CONFIG),
    ):
        ids = token_ids({name: files[name] for name in names})
        assert (ids.num_ids, ids.file) == (expected, file)
    assert token_ids(files).added == {"<s>": 2, "<t>": 5, "<u>": 9}


def test_without_a_vocabulary_there_is_a_lower_bound() -> None:
    """Beside a sentencepiece file only the added tokens are known: no number of ids, but at least so many."""
    ids = token_ids({TOKENIZER_CONFIG: {"added_tokens_decoder": {"32000": {"content": "<|im_start|>"}}}})
    assert (ids.num_ids, ids.at_least, ids.vocabulary) == (None, 32001, 0)
    nothing = token_ids({})
    assert (nothing.num_ids, nothing.at_least, nothing.file) == (None, 0, None)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([TOKENIZER, "vocab.json", "added_tokens.json", TOKENIZER_CONFIG]), JSON_VALUES
    )
)
def test_any_json_is_read(files: dict[str, Any]) -> None:
    """No JSON value makes it raise, and what it gives are whole numbers and texts."""
    ids = token_ids({**files, TOKENIZER: {"model": {"vocab": files}, "added_tokens": files}})
    assert ids.at_least >= ids.vocabulary >= 0
    assert all(type(number) is int for numbers in special_ids(files).values() for number in numbers)
    assert all(isinstance(note, str) for note in template_notes(chat_templates(files)))
    assert vocab_size_of(files) is None


def test_special_ids_of_text() -> None:
    """One id or several, at the top and in a text config; no image tokens, no -1, no true."""
    config = {
        "bos_token_id": 1,
        "eos_token_id": [2, 3],
        "pad_token_id": -1,
        "image_token_id": 9,
        "sep_token_id": None,
        "cls_token_id": True,
        "text_config": {"eos_token_id": 4},
        "vision_config": {"eos_token_id": 5},
    }
    assert special_ids(config) == {
        "bos_token_id": (1,),
        "eos_token_id": (2, 3),
        "text_config.eos_token_id": (4,),
    }


def test_vocab_size_is_that_of_the_language_model() -> None:
    """The inner config's goes before the outer one's; 0 and texts are none."""
    assert vocab_size_of({"vocab_size": 5}) == 5
    assert vocab_size_of({"vocab_size": 5, "text_config": {"vocab_size": 7}}) == 7
    assert vocab_size_of({"vocab_size": 0}) is vocab_size_of({"vocab_size": "5"}) is vocab_size_of({}) is None


def test_templates_that_differ_are_named() -> None:
    """A template in two files is named where the texts differ by more than a newline at the end, by name."""
    named = [{"name": "default", "template": "a"}, {"name": "rag", "template": "b"}]
    same = {
        TOKENIZER_CONFIG: {"chat_template": "a"},
        TEMPLATE_TEXT: "a\n",
        TEMPLATE_JSON: {"chat_template": "a"},
    }
    assert template_notes(chat_templates(same)) == []
    (note,) = template_notes(chat_templates({**same, TEMPLATE_TEXT: "c"}))
    assert all(name in note for name in (TOKENIZER_CONFIG, TEMPLATE_TEXT, TEMPLATE_JSON, "default"))
    more = {
        TOKENIZER_CONFIG: {"chat_template": named},
        TEMPLATE_TEXT: "a",
        "additional_chat_templates/rag.jinja": "c",
    }
    (note,) = template_notes(chat_templates(more))
    assert "(rag)" in note
    assert template_notes(chat_templates({TEMPLATE_TEXT: "a"})) == []


def test_files_that_hold_a_vocabulary() -> None:
    """Vocabularies are told from what lies beside them, such as a signature."""
    for name in (
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer.model.v3",
        "spiece.model",
        "vocab.txt",
        "qwen.tiktoken",
        "tekken.json",
    ):
        assert is_tokenizer_file(name)
    for name in (
        "tokenizer_config.json",
        "model.sig",
        "merges.txt",
        "model.safetensors",
        "special_tokens_map.json",
        "vocab.bin",
    ):
        assert not is_tokenizer_file(name)
