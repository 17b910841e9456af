"""Claims of `pp_export.verification.agreement`: what a manifest must cover, and what may be others'."""

from __future__ import annotations

from pathlib import Path

import pytest

from pp_export.verification import verify_folder
from tests.fixtures.damage import Damage, add, add_weights, edit, flip, in_tensor, remove, sealed_edit
from tests.fixtures.hf_folders import DOWN, INDEX, MANIFEST, MIDDLE, SUMS, found, seal


@pytest.fixture
def mixed(folder: Path) -> Path:
    """A folder whose weights alone are pp_export's, as `contents: weights` makes it."""
    others = ["config.json", "tokenizer.json", "assets/template.jinja"]
    for name in others:
        (folder / name).unlink()
    seal(folder)
    sealed_edit(MANIFEST, "contents", value="weights")(folder)
    return folder


def add_others(folder: Path) -> None:
    """What a framework puts beside the weights."""
    for name in ("config.json", "tokenizer.json", "notes.txt", "assets/more/template.jinja"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")


def test_files_of_others_are_noted(mixed: Path) -> None:
    """Files that the manifest doesn't cover are named in a note, each, and are no fault, at both depths."""
    add_others(mixed)
    for quick in (True, False):
        result = verify_folder(mixed, quick=quick)
        assert (result.faults, result.ok) == ((), True)
        (note,) = (note for note in result.notes if "not covered" in note)
        assert note.startswith(f"not covered by {MANIFEST}: ")
        names = "assets/more/template.jinja, config.json, notes.txt, tokenizer.json"
        assert note.endswith(names)


def test_weights_alone_need_no_config_yet(mixed: Path) -> None:
    """Before others have added it, a missing config.json is a note; in a whole export it is a fault."""
    result = verify_folder(mixed)
    assert (result.faults, result.ok) == ((), True)
    assert any("config.json" in note and "weights only" in note for note in result.notes)
    sealed_edit(MANIFEST, "contents", value="folder")(mixed)
    assert found(verify_folder(mixed)) == {("config.json", None, "missing-file")}


def test_a_config_of_others_must_be_one(mixed: Path) -> None:
    """A config.json that is there is read, also where it is not ours."""
    (mixed / "config.json").write_text("{")
    assert found(verify_folder(mixed)) == {("config.json", None, "bad-json")}


@pytest.mark.parametrize(
    "name", ["model.safetensors", "pytorch_model.bin", "pytorch_model-00001-of-00002.bin"]
)
def test_weights_of_others_are_a_fault(mixed: Path, name: str) -> None:
    """Weights that the manifest doesn't list are no other file: a loader might take them."""
    add_others(mixed)
    add_weights(name)(mixed)
    assert (name, None, "unlisted-file") in found(verify_folder(mixed))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ((MIDDLE, DOWN, "wrong-digest"), flip(MIDDLE, in_tensor(DOWN))),
        ((MIDDLE, None, "missing-file"), remove(MIDDLE)),
        ((MIDDLE, None, "wrong-size"), edit(MIDDLE, lambda data: data + b"\0")),
        ((INDEX, None, "missing-file"), remove(INDEX)),
        ((SUMS, None, "missing-file"), remove(SUMS)),
        ((".tmpA1b2C3", None, "leftover-file"), add(".tmpA1b2C3")),
    ],
    ids=lambda value: value[2] if isinstance(value, tuple) else "",
)
def test_damaged_weights_beside_others_are_found(
    mixed: Path, name: tuple[str, str | None, str], damage: Damage
) -> None:
    """What the manifest does cover is checked as in any export, whatever lies beside it."""
    add_others(mixed)
    damage(mixed)
    assert name in found(verify_folder(mixed))


@pytest.mark.parametrize("contents", ["folder", "", None, 1, ["weights"]])
def test_only_known_words_allow_files_of_others(mixed: Path, contents: object) -> None:
    """With any other value of `contents` an unlisted file is a fault."""
    add_others(mixed)
    sealed_edit(MANIFEST, "contents", value=contents)(mixed)
    assert ("notes.txt", None, "unlisted-file") in found(verify_folder(mixed))


ADDED = [
    *("README.md", "LICENSE", "NOTICE.txt", "docs/use.md", "assets/loss.png", "model.sig"),
    *("model.sigstore.json", "SHA256SUMS.asc", "onnx/model.onnx", "onnx/model.onnx_data"),
]
NOT_ADDED = [
    *("model.bin", "onnx/model.bin", "x.onnx", "README.py", "kernels.so", "sig/model.sig", "README.md.pkl"),
    *("chat_template.jinja", "special_tokens_map.json", "added_tokens.json", "a.md/b", "training_args.bin"),
]


def test_what_people_add_later_is_noted(folder: Path) -> None:
    """A card, a licence, pictures, a signature, and ONNX in a folder of its own, are no fault of a whole
    export, and are named; subject to no digest.
    """
    for name in ADDED:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    result = verify_folder(folder)
    assert (result.faults, result.ok) == ((), True)
    assert f"not covered by {MANIFEST}: {', '.join(sorted(ADDED))}" in result.notes


@pytest.mark.parametrize("name", NOT_ADDED)
def test_what_loaders_may_take_is_a_fault(folder: Path, name: str) -> None:
    """Weights, code, templates, tokenizers and whatever has another name are faults where nobody listed
    them.
    """
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("{}")
    assert found(verify_folder(folder)) == {(name, None, "unlisted-file")}


def test_a_listed_card_is_held_to_its_record(folder: Path) -> None:
    """A name that could be added later is no excuse for a file that the manifest lists."""
    (folder / "README.md").write_text("card")
    seal(folder)
    assert verify_folder(folder).faults == ()
    (folder / "README.md").write_text("bard")
    assert found(verify_folder(folder)) == {("README.md", None, "wrong-digest")}
    (folder / "README.md").unlink()
    assert found(verify_folder(folder)) == {("README.md", None, "missing-file")}
