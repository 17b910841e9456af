"""Claims of `pp_export.reference.safe_files`: strict JSON, bounded, from inside the folder or its cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pp_export.reference import safe_files
from pp_export.reference.reference_folder import read_reference
from tests.fixtures.reference_files import CONFIG, INDEX, refusal, write_files


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "Expecting value"),
        ("[1]", "an array"),
        ('{"a": 1, "a": 1}', "'a' twice"),
        ('{"x": {"a": 1, "b": 2, "a": 3}}', "'a' twice"),
        ('{"a": NaN}', "NaN"),
        ('{"a": ' + "9" * 5000 + "}", "integer"),
        ("[" * 100_000, ""),
        ('{"a": ' + "[" * 70 + "]" * 70 + "}", "deep"),
        (b'{"a": "\xff"}', "utf-8"),
        ('{"a": "\\ud800"}', "surrogates"),
        ('\ufeff{"a": 1}', ""),
    ],
)
def test_strict_json(content: str | bytes, reason: str, tmp_path: Path) -> None:
    """Config files are JSON objects without repeated keys, NaN, bombs or text that can't be written again."""
    error = refusal(write_files(tmp_path, {"config.json": content}))
    assert error.where == {"file": str(tmp_path / "config.json")}
    assert reason in (error.got or "")


def test_infinity_and_size_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Infinity is read, because published Mamba configs have it; a file above the limit is refused."""
    write_files(tmp_path, {"config.json": '{"time_step_limit": [0.0, Infinity]}'})
    assert read_reference(tmp_path).config["time_step_limit"] == [0.0, float("inf")]
    monkeypatch.setattr(safe_files, "MAX_CONFIG_BYTES", 20)
    assert "larger" in refusal(tmp_path).what


@pytest.mark.parametrize("name", ["config.json", INDEX, "model.safetensors", "additional_chat_templates"])
def test_no_file_that_is_read_may_be_a_link_out(name: str, tmp_path: Path) -> None:
    """The files that are read for what they say, and the folder of templates, obey the same rule."""
    elsewhere = write_files(
        tmp_path / "elsewhere", {"config.json": CONFIG, INDEX: {"weight_map": {}}, "t/a.jinja": ""}
    )
    save_file({"x": np.zeros(1)}, elsewhere / "model.safetensors")
    folder = write_files(tmp_path / "source", {} if name == "config.json" else {"config.json": CONFIG})
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).symlink_to(elsewhere / ("t" if name == "additional_chat_templates" else name))
    assert refusal(folder).what == "a link leads out of the model folder"


def test_a_blobs_folder_elsewhere_is_no_cache(tmp_path: Path) -> None:
    """A `blobs` that is itself a link doesn't open the rest of the disk to a snapshot."""
    snapshot = write_files(tmp_path / "repository/snapshots/0", {"config.json": CONFIG})
    write_files(tmp_path, {"home/secret": "secret"})
    (tmp_path / "repository/blobs").symlink_to(tmp_path / "home")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/secret")
    assert len(refusal(snapshot).findings) == 1
