"""Claims of `pp_export.reference.reference_folder`: the right files are copied unchanged, none is run."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pp_export.core.errors import ReferenceFolderError
from pp_export.reference.own_weights import read_specs
from pp_export.reference.reference_folder import copy_assets, read_reference
from tests.fixtures.reference_files import (
    CONFIG,
    INDEX,
    hub_cache,
    opened_meanwhile,
    refusal,
    with_code,
    write_files,
)

COPIED = [
    *("LICENSE", "Qwen LICENSE AGREEMENT", "NOTICE.txt", "USE_POLICY.md", "license.txt"),
    *(
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "tokenizer.model.v3",
        "tekken.json",
        "spiece.model",
    ),
    *(
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "qwen.tiktoken",
        "special_tokens_map.json",
        "added_tokens.json",
    ),
    *("chat_template.jinja", "chat_template.json", "tool_use.jinja", "additional_chat_templates/rag.jinja"),
    *(
        "generation_config.json",
        "processor_config.json",
        "preprocessor_config.json",
        "video_preprocessor_config.json",
    ),
]


LEFT = [
    *(
        "README.md",
        ".gitattributes",
        ".cache/x",
        "original/tokenizer.model",
        "model-00001-of-00002.safetensors",
    ),
    *(
        "pytorch_model.bin",
        "tokenizer.model.pkl",
        "vocab.bin",
        "tokenizer.pt",
        "tokenizer.index.json",
        "figure.png",
    ),
    *(
        "hf_quant_config.json",
        "quantize_config.json",
        "modeling_toy.py",
        "tokenizer.py",
        "tokenizer\n.json",
        "$(x).model",
    ),
    *(
        "additional_chat_templates/notes.txt",
        "additional_chat_templates/evil\n.jinja",
        "export_manifest.json",
        "SHA256SUMS",
    ),
]


def test_what_is_copied_and_what_is_left(tmp_path: Path) -> None:
    """Tokenizers, templates, processors and licences travel unchanged; all else stays, with a reason."""
    content = {name: f"content of {name}".encode() for name in COPIED + LEFT}
    content |= {name: b'{"a":  1.0}' for name in COPIED if name.endswith("config.json")}
    source = write_files(tmp_path / "source", {"config.json": CONFIG} | content)
    reference = read_reference(source)
    assert sorted(reference.assets) == sorted(COPIED)
    assert len(reference.left) == len(LEFT)
    assert all(": " in reason and reason.isprintable() for reason in reference.left)
    assert reference.config == CONFIG
    assert (reference.weights, read_specs(reference.folder, reference.weights)) == (None, None)
    assert any("chat_template.jinja" in note and "never rendered" in note for note in reference.notes)

    staging = tmp_path / "staging"
    staging.mkdir()
    copy_assets(reference, staging)
    written = {path.relative_to(staging).as_posix(): path for path in staging.rglob("*") if not path.is_dir()}
    assert {name: path.read_bytes() for name, path in written.items()} == {
        name: content[name] for name in COPIED
    }
    assert not any(path.is_symlink() for path in written.values())


def test_missing_folder_and_missing_config(tmp_path: Path) -> None:
    """A folder that isn't there, or has no config.json, is an error that names it."""
    assert refusal(tmp_path / "nowhere").where == {"reference": str(tmp_path / "nowhere")}
    assert refusal(tmp_path).where == {"file": str(tmp_path / "config.json")}


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.binary(max_size=40), st.text('{}[]",:ae\\u01tN', max_size=25).map(str.encode)))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """Whatever config.json and the index contain, the answer is a reference or our own error."""
    with tempfile.TemporaryDirectory() as name:
        for file in ("config.json", INDEX):
            write_files(Path(name), {"config.json": CONFIG} | {file: data})
            try:
                read_reference(Path(name))
            except ReferenceFolderError:
                continue


def test_code_left_out(tmp_path: Path) -> None:
    """Without code no Python file is copied, and every auto_map is gone from configs else the same."""
    reference = read_reference(with_code(tmp_path / "source"), code=False)
    assert reference.config == CONFIG | {"llm_config": {}}
    staging = tmp_path / "staging"
    staging.mkdir()
    copy_assets(reference, staging)
    assert sorted(path.name for path in staging.iterdir()) == [
        "processor_config.json",
        "tokenizer_config.json",
    ]
    assert (staging / "tokenizer_config.json").read_text() == '{\n  "z": "é",\n  "a": 1\n}\n'
    changed = [note for note in reference.notes if "auto_map is removed" in note]
    assert [note.split(":")[0] for note in changed] == [
        "config.json",
        "processor_config.json",
        "tokenizer_config.json",
    ]
    assert "modeling_toy.py: code is left out" in reference.left


def test_code_without_auto_map_is_left(tmp_path: Path) -> None:
    """Python files that no config refers to are not copied."""
    reference = read_reference(
        write_files(tmp_path, {"config.json": CONFIG, "convert.py": "", "tokenizer_config.json": {}})
    )
    assert reference.assets == ("tokenizer_config.json",)
    assert reference.left == ("convert.py: no auto_map refers to it",)


def test_hub_cache(tmp_path: Path) -> None:
    """A snapshot of the Hub's cache is a reference, also through a link to it; files are written."""
    files = {"config.json": CONFIG, "tokenizer.json": b"{ }", "additional_chat_templates/rag.jinja": b"{{x}}"}
    snapshot = hub_cache(tmp_path / "cache", files)
    (tmp_path / "toy").symlink_to(snapshot)
    reference = read_reference(tmp_path / "toy")
    (tmp_path / "staging").mkdir()
    copy_assets(reference, tmp_path / "staging")
    copies = [tmp_path / "staging" / name for name in files if name != "config.json"]
    assert [copy.read_bytes() for copy in copies] == [b"{ }", b"{{x}}"]
    assert not any(copy.is_symlink() for copy in copies)


def test_links_that_lead_out_are_refused(tmp_path: Path) -> None:
    """A link to a file elsewhere, to a missing one or to a device is refused unopened; all are listed."""
    outside = write_files(tmp_path, {"outside.json": b"secret", "elsewhere/a.jinja": b"secret"})
    for folder in (
        write_files(tmp_path / "plain", {"config.json": CONFIG}),
        hub_cache(tmp_path, {"config.json": CONFIG}),
    ):
        (folder / "tokenizer.json").symlink_to(outside / "outside.json")
        (folder / "vocab.json").symlink_to("../../../outside.json")
        (folder / "merges.txt").symlink_to("/dev/zero")
        (folder / "added_tokens.json").symlink_to("nowhere.json")
        (folder / "inside.model").symlink_to("config.json")
        (folder / "README.md").symlink_to(outside / "outside.json")
        (folder / "loop.model").symlink_to("loop.model")
        os.mkfifo(folder / "pipe.model")
        with opened_meanwhile() as opened:
            error = refusal(folder)
        assert sorted(finding.split(":")[0] for finding in error.findings) == sorted(
            ["tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json", "loop.model", "pipe.model"]
        )
        assert not [path for path in opened if "outside" in path or path.startswith("/dev/zero")]


def test_a_link_planted_after_reading_is_not_followed(tmp_path: Path) -> None:
    """Files are checked again when they are copied."""
    source = write_files(tmp_path / "source", {"config.json": CONFIG, "tokenizer.json": "{}"})
    reference = read_reference(source)
    (source / "tokenizer.json").unlink()
    (source / "tokenizer.json").symlink_to(write_files(tmp_path, {"outside": "secret"}) / "outside")
    (tmp_path / "staging").mkdir()
    with pytest.raises(ReferenceFolderError, match="leads out"):
        copy_assets(reference, tmp_path / "staging")
    assert not list((tmp_path / "staging").iterdir())
