"""Which ids a tokenizer can give and which ids configs name, from JSON values that somebody else has read.

An id is a row of the embedding. One at or beyond the number of rows can't be looked up: a model fails on it,
or on a GPU takes the whole process with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pp_export.core.strict_json import is_count

GENERATION_CONFIG = "generation_config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TEMPLATE_TEXT = "chat_template.jinja"
TEMPLATE_JSON = "chat_template.json"
MORE_TEMPLATES = "additional_chat_templates/"
ID_FILES = (TOKENIZER, "vocab.json", "added_tokens.json", TOKENIZER_CONFIG)
"""The JSON files of a tokenizer that list ids; `token_ids` takes their values by these names."""

_TOKENIZER_FILE = re.compile(
    r"tokenizer\.json|tekken\.json|vocab\.(json|txt)|tokenizer.*\.model(\.v\w+)?|.*\.(model|tiktoken)"
)
_SPECIAL = ("bos", "eos", "pad", "unk", "sep", "cls", "mask", "decoder_start", "forced_bos", "forced_eos")
_TEXT_PARTS = ("", "text_config", "language_config", "llm_config")


@dataclass(frozen=True)
class TokenIds:
    """The ids that a tokenizer can give, as far as JSON files list them; counts are highest id and one."""

    vocabulary: int = 0
    """Over the vocabulary itself; 0 where no JSON file lists it, as beside a sentencepiece file."""
    added: Mapping[str, int] | None = None
    """Text -> id of the tokens that were added to it."""
    file: str | None = None
    """The file that lists the highest id."""
    vocabulary_file: str | None = None
    """The file that lists the highest id of the vocabulary."""

    @property
    def at_least(self) -> int:
        """Over all ids that are known: a lower bound where the vocabulary isn't."""
        return max(self.vocabulary, *(number + 1 for number in (self.added or {}).values()), 0)

    @property
    def num_ids(self) -> int | None:
        """Over all ids; None where the vocabulary isn't known."""
        return self.at_least if self.vocabulary else None


def is_tokenizer_file(name: str) -> bool:
    """Whether a file of this name holds a vocabulary, in whatever form."""
    return _TOKENIZER_FILE.fullmatch(name) is not None


def token_ids(files: Mapping[str, Any]) -> TokenIds:
    """What the values of `ID_FILES` list. Loaders read some of these files or others: all of them count."""
    tokenizer = _object(files.get(TOKENIZER))
    words = _object(tokenizer.get("model")).get("vocab")
    vocabularies = {TOKENIZER: _size(words), "vocab.json": _size(files.get("vocab.json"))}
    added = {name: dict(_added(name, files.get(name))) for name in ID_FILES}
    tops = {
        name: max((*added[name].values(), vocabularies.get(name, 0) - 1), default=-1) for name in ID_FILES
    }
    highest = max(tops, key=lambda name: tops[name])
    everything: dict[str, int] = {}
    for tokens in added.values():
        for text, number in tokens.items():
            everything[text] = max(number, everything.get(text, 0))
    largest = max(vocabularies, key=lambda name: vocabularies[name])
    return TokenIds(
        vocabularies[largest],
        everything,
        highest if tops[highest] >= 0 else None,
        largest if vocabularies[largest] else None,
    )


def special_ids(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Key -> ids of the special tokens of text that config.json or generation_config.json names.

    Tokens that stand for images or sound are left out, because models put other vectors in their place. So
    are negative numbers, by which configs say that there is no such token.
    """
    found: dict[str, tuple[int, ...]] = {}
    for part in _TEXT_PARTS:
        values = _object(config.get(part)) if part else config
        for key in (f"{name}_token_id" for name in _SPECIAL):
            value = values.get(key)
            numbers = tuple(number for number in _list(value) or [value] if is_count(number))
            if numbers:
                found[f"{part}.{key}" if part else key] = numbers
    return found


def named_ids(files: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    """Key of config.json -> the id or ids of the token that begins, ends or pads, and the file that says it:
    generation_config.json by its number, else tokenizer_config.json by its text. What neither says is left
    out.
    """
    ids = _ids_by_text(files)
    found: dict[str, tuple[Any, str]] = {}
    for name in ("bos", "eos", "pad"):
        key = f"{name}_token_id"
        number = _object(files.get(GENERATION_CONFIG)).get(key)
        token = _object(files.get(TOKENIZER_CONFIG)).get(f"{name}_token")
        text = token if isinstance(token, str) else _object(token).get("content")
        if is_count(number) or (_list(number) and all(map(is_count, _list(number)))):
            found[key] = (number, GENERATION_CONFIG)
        elif isinstance(text, str) and text in ids:
            found[key] = (ids[text], TOKENIZER_CONFIG)
    return found


def _ids_by_text(files: Mapping[str, Any]) -> dict[str, int]:
    """Every token that the values of `ID_FILES` list; of two with one text, the one that was added."""
    words = _object(_object(files.get(TOKENIZER)).get("model")).get("vocab")
    everything = {text: number for number, text in enumerate(_list(words)) if isinstance(text, str)}
    everything |= {**_object(files.get("vocab.json")), **_object(words)}
    for name in ID_FILES:
        everything |= dict(_added(name, files.get(name)))
    return {text: number for text, number in everything.items() if is_count(number)}


def vocab_size_of(config: Mapping[str, Any]) -> int | None:
    """The vocab_size of the language model that a config.json describes; None where it says none."""
    sizes = [
        _object(config.get(part)).get("vocab_size") if part else config.get("vocab_size")
        for part in _TEXT_PARTS
    ]
    return next((size for size in reversed(sizes) if is_count(size) and size > 0), None)


def chat_templates(files: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Name of a chat template (`default`, if it has no other) -> file -> text.

    `files` has the values of `TOKENIZER_CONFIG` and `TEMPLATE_JSON`, and the texts of *.jinja.
    """
    templates: dict[str, dict[str, str]] = {}
    for file, value in files.items():
        if file.endswith(".jinja") and isinstance(value, str):
            found = {
                "default" if file == TEMPLATE_TEXT else file.rpartition("/")[2].removesuffix(".jinja"): value
            }
        else:
            found = _named(_object(value).get("chat_template"))
        for name, text in found.items():
            templates.setdefault(name, {})[file] = text
    return templates


def template_notes(templates: Mapping[str, Mapping[str, str]]) -> list[str]:
    """A sentence for each template that stands in two files and not alike."""
    return [
        f"{' and '.join(places)} have different chat templates ({name}): which one is used depends on the"
        " loader and its release"
        for name, places in templates.items()
        # Jinja drops one newline at the end.
        if len({text.removesuffix("\n") for text in places.values()}) > 1
    ]


def _named(value: Any) -> dict[str, str]:
    if isinstance(value, str):
        return {"default": value}
    pairs = [(_object(each).get("name"), _object(each).get("template")) for each in _list(value)]
    pairs += list(_object(value).items())
    return {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}


def _size(words: Any) -> int:
    """Highest id and one: of a map from words to ids, or of a list of words, where the position is the id."""
    if isinstance(words, list):
        return len(words)
    return max((number for number in _object(words).values() if is_count(number)), default=-1) + 1


def _added(name: str, value: Any) -> list[tuple[str, int]]:
    pairs: list[tuple[Any, Any]] = []
    if name == TOKENIZER:
        tokens = [_object(each) for each in _list(_object(value).get("added_tokens"))]
        pairs = [(token.get("content"), token.get("id")) for token in tokens]
    elif name == "added_tokens.json":
        pairs = list(_object(value).items())
    elif name == TOKENIZER_CONFIG:
        decoder = _object(_object(value).get("added_tokens_decoder"))
        pairs = [(_object(token).get("content"), _number(key)) for key, token in decoder.items()]
    return [(text, number) for text, number in pairs if isinstance(text, str) and is_count(number)]


def _number(key: str) -> int | None:
    return int(key) if re.fullmatch(r"[0-9]{1,18}", key) else None


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
