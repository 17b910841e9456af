"""Claims of `pp_export.verification.tokens`: ids without a row are faults where they will be used."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from pp_export.verification import Verification, verify_folder
from tests.fixtures.hf_folders import as_stranger, found, seal

KIND = "token-beyond-vocabulary"
ROWS = 40  # of the embedding in the fixture's folder


def with_files(folder: Path, **files: Any) -> Verification:
    """What verification says with these files instead; None removes one, a text is written as it is."""
    for key, value in files.items():
        path = folder / key.replace("__", ".")
        if value is None:
            path.unlink()
        else:
            path.write_text(value if isinstance(value, str) else json.dumps(value))
    seal(folder)
    return verify_folder(folder)


def vocabulary(size: int, **added: int) -> dict[str, Any]:
    """A tokenizer.json."""
    tokens = [{"content": f"<{text}>", "id": number} for text, number in added.items()]
    return {"model": {"vocab": {f"w{number}": number for number in range(size)}}, "added_tokens": tokens}


def notes_on_tokens(result: Verification) -> list[str]:
    return [note for note in result.notes if "definition" not in note]


def test_ids_that_have_rows_are_whole(folder: Path) -> None:
    """Ids up to the last row of the embedding are no fault and no note."""
    result = with_files(folder, tokenizer__json=vocabulary(ROWS - 1, last=ROWS - 1))
    assert (result.faults, notes_on_tokens(result)) == ((), [])


def test_a_vocabulary_beyond_the_rows_is_a_fault(folder: Path) -> None:
    """Ordinary text leads to ids of the vocabulary, so one without a row is a fault, with both numbers."""
    decoder = {"added_tokens_decoder": {"50": {"content": "<x>"}}}
    result = with_files(folder, tokenizer__json=vocabulary(ROWS + 1), tokenizer_config__json=decoder)
    assert found(result) == {("tokenizer.json", None, KIND)}
    assert "ids up to 40" in result.faults[0].message
    assert "model.embed_tokens.weight has 40 rows" in result.faults[0].message


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_special_ids_beyond_the_rows_are_faults(folder: Path, file: str) -> None:
    """A bos, eos or pad that has no row is a fault, in a list too; a negative one is nobody's id."""
    config = json.loads((folder / file).read_bytes())
    special = {"eos_token_id": [3, ROWS], "pad_token_id": -1, "image_token_id": 99}
    result = with_files(folder, **{file.replace(".", "__"): config | special})
    assert found(result) == {(file, None, KIND)}
    assert "eos_token_id is 40" in result.faults[0].message


def test_added_tokens_are_faults_where_they_are_used(folder: Path) -> None:
    """An added token without a row is a fault if a chat template needs it, else a note."""
    added = vocabulary(ROWS, start=ROWS, spare=ROWS + 1)
    result = with_files(folder, tokenizer__json=added)
    assert result.faults == ()
    (note,) = notes_on_tokens(result)
    assert "2 added tokens without a row" in note
    assert "'<start>' (40)" in note
    result = with_files(folder, chat_template__jinja="<start>{{ messages }}")
    assert found(result) == {("tokenizer.json", None, KIND)}
    assert "'<start>' (40)" in result.faults[0].message
    assert "spare" not in result.faults[0].message


def test_ids_that_nobody_can_count_are_said(folder: Path) -> None:
    """With a binary vocabulary alone a note says that not all ids were checked; added ones were."""
    decoder = {"added_tokens_decoder": {"38": {"content": "<x>"}}}
    result = with_files(folder, tokenizer__json=None, tokenizer__model="x", tokenizer_config__json=decoder)
    (note,) = notes_on_tokens(result)
    assert all(words in note for words in ("tokenizer.model", "not all of its ids", "up to 38"))


def test_what_is_missing_is_noted(folder: Path) -> None:
    """No tokenizer and no generation config are notes, since there are models without."""
    result = with_files(folder, tokenizer__json=None, generation_config__json=None)
    assert result.faults == ()
    assert any("no tokenizer" in note for note in result.notes)
    assert any("no generation_config.json" in note for note in result.notes)


def test_two_templates_are_noted(folder: Path) -> None:
    """Chat templates that differ between two files are a note, since each loader takes its own."""
    result = with_files(
        folder, tokenizer_config__json={"chat_template": "a"}, chat_template__jinja="{{ messages }}"
    )
    assert result.faults == ()
    assert any("different chat templates" in note for note in result.notes)


def test_a_tokenizer_must_be_json(folder: Path) -> None:
    """A cut tokenizer.json is a fault, in a folder of another maker too; a quick look doesn't read it."""
    (as_stranger(folder) / "tokenizer.json").write_text('{"model": ')
    assert found(verify_folder(folder)) == {("tokenizer.json", None, "bad-json")}
    assert verify_folder(folder, quick=True).ok


def test_without_an_embedding_vocab_size_counts(folder: Path) -> None:
    """Where no tensor has an embedding's name, config.json's vocab_size takes its place, else a note."""
    for path in folder.glob("*.safetensors"):
        path.unlink()
    (as_stranger(folder) / "model.safetensors.index.json").unlink()
    assert any("were not checked" in note for note in verify_folder(folder).notes)
    (folder / "config.json").write_text('{"vocab_size": 39}')
    assert ("tokenizer.json", None, KIND) in found(verify_folder(folder))


def test_a_large_tokenizer_takes_a_second(folder: Path) -> None:
    """250,000 tokens and as many merges (10 MB and more) are read once, in seconds."""
    merges = [[f"a{number}", f"b{number}"] for number in range(250_000)]
    large = vocabulary(250_000)
    large["model"]["merges"] = merges
    (as_stranger(folder) / "tokenizer.json").write_text(json.dumps(large))
    assert (folder / "tokenizer.json").stat().st_size > 10_000_000
    started = time.process_time()
    assert found(verify_folder(folder)) == {("tokenizer.json", None, KIND)}
    assert time.process_time() - started < 4
