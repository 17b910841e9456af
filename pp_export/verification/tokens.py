"""Tokenizer, token ids and chat templates of a folder against the rows of its embedding.

A fault is what makes a loader fail or answer wrongly in ordinary use: an id without a row that the vocabulary
itself can give, that config.json or generation_config.json names as special, or whose text is in a chat
template. Notes are what may be meant: a token that was added and that nothing here uses (Gemma's text models
have one for images), two chat templates of which each loader takes its own, a model without a tokenizer, ids
that nobody can count because only a binary file has them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pp_export.core.file_names import CONFIG
from pp_export.core.strict_json import MAX_JSON_BYTES, MAX_TEMPLATE_BYTES
from pp_export.core.token_ids import (
    GENERATION_CONFIG,
    ID_FILES,
    MORE_TEMPLATES,
    TEMPLATE_JSON,
    TEMPLATE_TEXT,
    TokenIds,
    chat_templates,
    is_tokenizer_file,
    special_ids,
    template_notes,
    token_ids,
    vocab_size_of,
)
from pp_export.verification.findings import MalformedError, brief, shown
from pp_export.verification.survey import Survey

_EMBEDDING = re.compile(r"(.*\.)?(embed_tokens|word_embeddings|wte|embed_in|tok_embeddings|shared)\.weight")
_NUM_SHOWN = 3
_MAX_SOUGHT = 1000  # a hostile folder may have a million tokens, each to be looked for in a megabyte


def check_tokens(survey: Survey) -> None:
    """Read every JSON file of the tokenizer once, and note faults and notes."""
    names = survey.listing.sizes
    values = {name: survey.parse(name, MAX_JSON_BYTES, allow_infinity=True) for name in _read(survey)}
    files = {**values, **_template_texts(survey)}
    ids = token_ids(files)
    templates = chat_templates(files)
    survey.notes += template_notes(templates)
    vocabularies = [name for name in names if is_tokenizer_file(name)]
    if not vocabularies:
        survey.notes.append("there is no tokenizer")
    if GENERATION_CONFIG not in names:
        survey.notes.append(f"there is no {GENERATION_CONFIG}: generation goes by {CONFIG} and defaults")
    num_rows, where = _num_rows(survey)
    if not num_rows:
        survey.notes.append("token ids were not checked: neither an embedding nor a vocab_size was found")
        return
    special = {CONFIG: survey.config or {}, GENERATION_CONFIG: values.get(GENERATION_CONFIG) or {}}
    for file, config in special.items():
        for key, numbers in special_ids(config).items():
            if wrong := [number for number in numbers if number >= num_rows]:
                text = f"{key} is {brief(wrong)[1:-1]}; {where}"
                survey.fault("token-beyond-vocabulary", file, text)
    texts = [text[:MAX_TEMPLATE_BYTES] for places in templates.values() for text in places.values()]
    _check_ids(survey, ids, num_rows, where, texts)
    if vocabularies and ids.num_ids is None:
        known = f"ids up to {ids.at_least - 1} are known and were" if ids.at_least else "none was"
        survey.notes.append(
            f"{', '.join(map(shown, vocabularies))}: no JSON file lists the vocabulary, so not all of its ids"
            f" could be checked; {known}"
        )


def _check_ids(survey: Survey, ids: TokenIds, num_rows: int, where: str, templates: list[str]) -> None:
    if ids.vocabulary > num_rows:
        text = f"its vocabulary has ids up to {ids.vocabulary - 1}; {where}"
        survey.fault("token-beyond-vocabulary", str(ids.vocabulary_file), text)
    file = str(ids.file)
    added = {text: number for text, number in (ids.added or {}).items() if number >= num_rows}
    needed = [text for text in list(added)[:_MAX_SOUGHT] if any(text in each for each in templates)]
    if needed:
        text = f"{_some(needed, added)}, used by the chat template; {where}"
        survey.fault("token-beyond-vocabulary", file, text)
    rest = [text for text in added if text not in needed]
    if rest:
        text = f"{_some(rest, added)}; {where}: the model fails on text with such a token"
        survey.notes.append(f"{file}: {text}")


def _num_rows(survey: Survey) -> tuple[int, str]:
    """Rows of the embedding as it is stored, else config.json's vocab_size; 0 if there is neither."""
    rows = {
        entry.name: entry.shape[0]
        for header in survey.headers.values()
        for entry in header.tensors
        if len(entry.shape) == 2 and _EMBEDDING.fullmatch(entry.name)
    }
    if rows:
        name = max(rows, key=lambda each: rows[each])
        return rows[name], f"{shown(name)} has {rows[name]} rows"
    size = vocab_size_of(survey.config or {}) or 0
    return size, f"{CONFIG} has vocab_size {size}"


def _read(survey: Survey) -> list[str]:
    return [name for name in (*ID_FILES, GENERATION_CONFIG, TEMPLATE_JSON) if name in survey.listing.sizes]


def _template_texts(survey: Survey) -> dict[str, Any]:
    texts = {}
    for name in survey.listing.sizes:
        is_more = name.startswith(MORE_TEMPLATES) and name.endswith(".jinja")
        if name == TEMPLATE_TEXT or is_more:
            try:
                data = survey.listing.read(name, MAX_TEMPLATE_BYTES)
            except MalformedError as broken:
                survey.notes.append(f"{shown(name)}: {broken.message}")
                continue
            texts[name] = data.decode("utf-8", "replace")
    return texts


def _some(tokens: list[str], ids: Mapping[str, int]) -> str:
    named = ", ".join(f"{brief(token)} ({ids[token]})" for token in tokens[:_NUM_SHOWN])
    more = f" and {len(tokens) - _NUM_SHOWN:,} more" if len(tokens) > _NUM_SHOWN else ""
    return f"{len(tokens)} added tokens without a row: {named}{more}"
