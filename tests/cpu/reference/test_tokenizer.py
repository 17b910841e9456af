"""Claims of `pp_export.reference.tokenizer`: what a tokenizer lacks is said before anything is exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pp_export.core.errors import ReferenceFolderError
from pp_export.reference.reference_folder import read_reference
from pp_export.reference.tokenizer import TokenizerFacts, check_tokenizer, token_id_notes
from tests.fixtures.reference_files import CONFIG, write_files

WHOLE: dict[str, Any] = {
    "config.json": CONFIG | {"eos_token_id": 3},
    "generation_config.json": {"eos_token_id": [3, 15]},
    "tokenizer.json": {
        "model": {"vocab": {f"w{number}": number for number in range(14)}},
        "added_tokens": [{"id": 14, "content": "<a>"}, {"id": 15, "content": "<b>"}],
    },
    "tokenizer_config.json": {"chat_template": "{{ messages }}"},
}


def facts_of(folder: Path, **changes: Any) -> TokenizerFacts:
    """The facts of WHOLE with some files changed, or left out where None."""
    names = {name.replace("__", "."): value for name, value in changes.items()}
    files = {name: value for name, value in {**WHOLE, **names}.items() if value is not None}
    reference = read_reference(write_files(folder / "reference", files))
    assert set(reference.tokenizer.notes) <= set(reference.notes)
    return reference.tokenizer


def test_a_whole_tokenizer_has_no_notes(tmp_path: Path) -> None:
    """A tokenizer whose ids are all below the vocabulary size is counted, and nothing is said of it."""
    facts = facts_of(tmp_path)
    assert (facts.is_there, facts.num_ids, facts.ids.file) == (True, 16, "tokenizer.json")
    assert facts.files == ("tokenizer.json",)
    assert facts.notes == ()
    assert token_id_notes(facts, 16) == []
    check_tokenizer(facts, tmp_path)


def test_ids_beyond_the_vocabulary_are_said(tmp_path: Path) -> None:
    """Tokens and special ids that the final vocabulary has no row for are named, with file and numbers."""
    first, second = token_id_notes(facts_of(tmp_path), 15)
    assert all(words in first for words in ("tokenizer.json", "up to 15", "15 rows", "'<b>'"))
    assert "'<a>'" not in first
    assert all(words in second for words in ("generation_config.json: eos_token_id is 15;", "below 15"))


def test_a_vocabulary_that_is_not_json_is_not_counted(tmp_path: Path) -> None:
    """Beside a sentencepiece file the number of ids is unknown, and said to be; added ids count all the
    same.
    """
    decoder = {"added_tokens_decoder": {"20": {"content": "<x>"}}}
    facts = facts_of(tmp_path, tokenizer__json=None, tokenizer__model=b"\x0a", tokenizer_config__json=decoder)
    assert (facts.is_there, facts.num_ids, facts.ids.at_least) == (True, None, 21)
    beyond, unknown = token_id_notes(facts, 16)
    assert "tokenizer_config.json has ids up to 20" in beyond
    assert "tokenizer.model" in unknown
    assert "isn't known" in unknown
    assert [note for note in token_id_notes(facts, 21) if "up to" in note] == []


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    """No tokenizer and no generation config are sentences in the notes, and the tokenizer can be required."""
    facts = facts_of(tmp_path, tokenizer__json=None, generation_config__json=None)
    assert not facts.is_there
    assert any("no tokenizer" in note for note in facts.notes)
    assert any("no generation_config.json" in note for note in facts.notes)
    with pytest.raises(ReferenceFolderError, match="has no tokenizer") as refused:
        check_tokenizer(facts, tmp_path)
    assert "--require-tokenizer" in str(refused.value.advice)


def test_a_tokenizer_that_is_no_json_is_none(tmp_path: Path) -> None:
    """A cut tokenizer.json is copied, as all data, but said to fail, and doesn't count as a tokenizer."""
    facts = facts_of(tmp_path, tokenizer__json='{"model": ')
    assert not facts.is_there
    assert any("tokenizer.json" in note and "fail" in note for note in facts.notes)


def test_two_templates_are_said(tmp_path: Path) -> None:
    """A chat template that differs between two of its places is said."""
    facts = facts_of(tmp_path, chat_template__jinja="{{ other }}")
    assert any("different chat templates" in note and "chat_template.jinja" in note for note in facts.notes)


def test_paths_that_are_copied_are_said(tmp_path: Path) -> None:
    """Older releases keep in tokenizer_config.json from where a tokenizer was loaded: copied with all of the
    file, and told, unless it is a name of the Hub.
    """
    config = {"name_or_path": "/home/someone/run", "tokenizer_file": None}
    (note,) = facts_of(tmp_path / "path", tokenizer_config__json=config).notes
    assert note.startswith("tokenizer_config.json: name_or_path may be a path")
    assert facts_of(tmp_path / "hub", tokenizer_config__json={"name_or_path": "Qwen/Qwen3-8B"}).notes == ()


def test_a_required_tokenizer_is_asked_for_by_an_option(tmp_path: Path) -> None:
    """`require_tokenizer` refuses a reference without one; by default it is exported."""
    from pp_export.options.kinds import TargetOptions
    from pp_export.steps.pending import PendingInputs

    folder = write_files(tmp_path / "reference", {"config.json": CONFIG})
    for required in (True, False):
        pending = PendingInputs.start(
            TargetOptions(reference=folder, output=tmp_path / "out", require_tokenizer=required)
        )
        try:
            if required:
                with pytest.raises(ReferenceFolderError, match="has no tokenizer"):
                    pending.check()
            else:
                pending.check()
        finally:
            pending.cancel()
