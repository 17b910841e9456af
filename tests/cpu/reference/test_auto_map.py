"""Claims of `pp_export.reference.auto_map`: code is copied as data, completely or not at all."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pp_export.core.errors import ReferenceFolderError
from pp_export.reference.reference_folder import copy_assets, read_reference
from tests.fixtures.reference_files import (
    AUTO_MAP,
    CONFIG,
    MODELING,
    opened_meanwhile,
    refusal,
    with_code,
    write_files,
)
from tests.fixtures.releases import parser_of_3_11

JSON_VALUES = st.recursive(
    st.none() | st.text("ab./-_\0 ", max_size=12) | st.sampled_from(["a.B", "o/r--a.B", "../a.B"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xy"), inner, max_size=2),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None)
@given(JSON_VALUES, st.booleans())
def test_any_auto_map_is_read_or_refused(value: Any, code: bool) -> None:
    """No auto_map makes the reader fail but by our own error, and without code it is always gone."""
    with tempfile.TemporaryDirectory() as name:
        folder = write_files(Path(name), {"config.json": CONFIG | {"auto_map": value}, "a.py": ""})
        try:
            reference = read_reference(folder, code=code)
        except ReferenceFolderError:
            assert code
        else:
            assert ("auto_map" in reference.config) is code


def test_code_is_copied_and_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python files that auto_map needs are copied unchanged and reported; none is imported or run."""
    marker = tmp_path / "marker"
    monkeypatch.setenv("MARKER", str(marker))
    monkeypatch.chdir(with_code(tmp_path / "source"))
    modules = set(sys.modules)
    reference = read_reference(tmp_path / "source")
    (tmp_path / "staging").mkdir()
    copy_assets(reference, tmp_path / "staging")
    scripts = {path.name for path in (tmp_path / "staging").glob("*.py")}
    assert scripts == {path.name for path in (tmp_path / "source").glob("*.py")}
    assert (tmp_path / "staging/modeling_toy.py").read_text() == MODELING
    tokenizer_config = "tokenizer_config.json"
    assert (tmp_path / "staging" / tokenizer_config).read_bytes() == Path(tokenizer_config).read_bytes()
    assert reference.config["auto_map"] == AUTO_MAP
    assert any("never run" in note for note in reference.notes)
    assert any("'other/repo--processing_toy.Toy'" in note for note in reference.notes)
    assert not marker.exists()
    assert not {module for module in set(sys.modules) - modules if "toy" in module or "layers" in module}


def test_every_missing_module_is_listed(tmp_path: Path) -> None:
    """All modules that auto_map names, or that those import relatively at any depth, must be there."""
    folder = with_code(tmp_path)
    for name in ("configuration_toy.py", "tokenization_toy.py", "kernels.py", "inner.py"):
        (folder / name).unlink()
    write_files(
        folder,
        {"layers.py": "from .sub.deep import x\nfrom ..outside import y", "late.py": "from .layers import z"},
    )
    assert sorted(refusal(folder).findings) == [
        "../outside.py is missing, named by layers.py",
        "configuration_toy.py is missing, named by auto_map of config.json",
        "inner.py is missing, named by auto_map of config.json",
        "kernels.py is missing, named by modeling_toy.py",
        "sub/deep.py is missing, named by layers.py",
        "tokenization_toy.py is missing, named by auto_map of tokenizer_config.json",
    ]


@pytest.mark.parametrize(
    "name", ["../evil.Toy", "/tmp/evil.Toy", "a.b.Toy", "evil", "..Toy", "a/b.Toy", "a\0.Toy", ""]
)
def test_auto_map_is_module_and_class(name: str, tmp_path: Path) -> None:
    """What isn't module.Class is refused, and no path is made of it."""
    write_files(tmp_path, {"evil.py": "", "source/config.json": CONFIG | {"auto_map": {"AutoModel": name}}})
    with opened_meanwhile() as opened:
        error = refusal(tmp_path / "source")
    assert error.findings == (f"config.json: auto_map names {name!r}, which isn't module.Class",)
    assert not [path for path in opened if "evil" in path]


@pytest.mark.parametrize(
    "script",
    [
        "def f(:",
        "x = 1\0",
        "(" * 5000,
        "-" * 100_000 + "1",
        pytest.param("a" + ".b" * 50_000, marks=parser_of_3_11),
        "x = '\\d'",
        "\ud800",
    ],
)
def test_code_that_cannot_be_parsed(script: str, tmp_path: Path) -> None:
    """Code in another Python, or made to overwhelm a parser, is copied and reported, not an error."""
    data = script.encode(errors="surrogatepass")
    folder = write_files(
        tmp_path, {"config.json": CONFIG | {"auto_map": {"AutoModel": "a.Toy"}}, "a.py": data}
    )
    reference = read_reference(folder)
    assert reference.assets == ("a.py",)
    assert any("can't be parsed" in note for note in reference.notes) or script == "x = '\\d'"
