"""What the reference's tokenizer can give, and what is missing or contradicts itself beside it.

A tokenizer is copied and never loaded: only its JSON files are read, for the ids that they list. Nothing here
refuses a reference, since weights are right whatever a tokenizer says; sentences for the report tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pp_export.core.errors import ReferenceFolderError
from pp_export.core.file_names import CONFIG
from pp_export.core.strict_json import MAX_JSON_BYTES, MAX_TEMPLATE_BYTES, JsonError, parse_object
from pp_export.core.token_ids import (
    GENERATION_CONFIG,
    ID_FILES,
    TEMPLATE_JSON,
    TokenIds,
    chat_templates,
    is_tokenizer_file,
    named_ids,
    special_ids,
    template_notes,
    token_ids,
)
from pp_export.reference.config_json import PATH_KEYS, may_be_path
from pp_export.reference.safe_files import read_bytes


@dataclass(frozen=True)
class TokenizerFacts:
    """What the files that are copied say of the tokenizer and of special tokens."""

    files: tuple[str, ...] = ()
    """The files that hold a vocabulary and can be read; without any, there is no tokenizer."""
    ids: TokenIds = TokenIds()
    named: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    """Key of config.json -> the id, or ids, of a special token, and the file beside config.json that says
    it.
    """
    special: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """`file: key` -> the ids that config.json or generation_config.json names."""
    notes: tuple[str, ...] = ()
    """Sentences for the report."""

    @property
    def is_there(self) -> bool:
        """Whether there is a tokenizer."""
        return bool(self.files)

    @property
    def num_ids(self) -> int | None:
        """Highest id and one; None where the vocabulary is in no JSON file, so that `ids.at_least` is all
        that is known.
        """
        return self.ids.num_ids


NO_TOKENIZER = "There is no tokenizer in the export: none was given with --tokenizer."


def read_tokenizer(
    folder: Path, assets: Sequence[str], config: Mapping[str, Any], whose: str = "reference"
) -> TokenizerFacts:
    """The facts of a folder, of `whose` kind, of which `assets` are copied; each file is read once."""
    values: dict[str, Any] = {CONFIG: config}
    notes = []
    for name in assets:
        try:
            if name in (*ID_FILES, GENERATION_CONFIG, TEMPLATE_JSON):
                values[name] = parse_object(read_bytes(folder, name, MAX_JSON_BYTES), allow_infinity=True)
            elif name.endswith(".jinja"):
                values[name] = read_bytes(folder, name, MAX_TEMPLATE_BYTES).decode("utf-8", "replace")
        except JsonError as error:
            notes.append(f"{name} is copied, but loaders will fail on it: {error}.")
        except ReferenceFolderError as error:
            notes.append(f"{name} is copied unread: {error.what}.")
    # Of what can't be read, a tokenizer is none; binary ones are never read.
    files = tuple(
        name for name in assets if is_tokenizer_file(name) and (name in values or name not in ID_FILES)
    )
    if not files:
        notes.append(f"The {whose} has no tokenizer, so the export has none.")
    if GENERATION_CONFIG not in assets:
        notes.append(
            f"The {whose} has no {GENERATION_CONFIG}: generation will end and sample as {CONFIG} and the"
            " loader's defaults say."
        )
    notes += [
        f"{name}: {key} may be a path of the machine that wrote it, and is copied like all of the file."
        for name, value in values.items()
        if name != CONFIG and isinstance(value, dict)
        for key in PATH_KEYS
        if may_be_path(value.get(key))
    ]
    notes += [f"{sentence}." for sentence in template_notes(chat_templates(values))]
    special = {
        f"{name}: {key}": ids
        for name in (CONFIG, GENERATION_CONFIG)
        for key, ids in special_ids(values.get(name, {})).items()
    }
    return TokenizerFacts(files, token_ids(values), named_ids(values), special, tuple(notes))


def token_id_notes(facts: TokenizerFacts, vocab_size: int) -> list[str]:
    """Sentences on ids that a vocabulary of `vocab_size` rows doesn't have, and on ids that nobody could
    count.
    """
    notes = []
    if facts.ids.at_least > vocab_size:
        beyond = facts.ids.at_least - 1
        tokens = sorted(text for text, number in (facts.ids.added or {}).items() if number >= vocab_size)
        named = (
            f" (added: {', '.join(map(ascii, tokens[:3]))}{', ...' * (len(tokens) > 3)})" if tokens else ""
        )
        notes.append(
            f"{facts.ids.file} has ids up to {beyond}{named}; the vocabulary has {vocab_size} rows, and"
            " the model fails on the others."
        )
    for place, ids in facts.special.items():
        wrong = [number for number in ids if number >= vocab_size]
        if wrong:
            numbers = ", ".join(map(str, wrong))
            notes.append(f"{place} is {numbers}; the vocabulary has ids below {vocab_size} only.")
    if facts.is_there and facts.num_ids is None:
        notes.append(
            f"{', '.join(facts.files)}: lists its ids in no JSON file, so whether the vocabulary of"
            f" {vocab_size} has all of them isn't known."
        )
    return notes


def check_tokenizer(facts: TokenizerFacts, folder: Path | None) -> None:
    """Raise where there is no tokenizer in the reference, or in what stands for it: for
    `--require-tokenizer`.
    """
    if not facts.is_there:
        raise ReferenceFolderError(
            "the reference has no tokenizer" if folder is not None else "no tokenizer is given",
            where={} if folder is None else {"reference": folder},
            expected="tokenizer.json, or another file that holds a vocabulary, that can be read",
            advice="copy the tokenizer's files into the folder of --reference or --tokenizer, or leave"
            " --require-tokenizer out",
            findings=facts.notes,
        )
