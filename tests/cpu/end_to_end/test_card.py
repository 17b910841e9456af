"""Claims of `--card`: a README.md with the facts of the export, none of the training's private ones, that its
owner may write on.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import pp_export
from pp_export.core import file_names
from pp_export.core.errors import OptionError
from tests.cpu.conftest import Checkpoint, Reference
from tests.fixtures.exports import export_here, files_of


def test_a_card_has_the_facts_and_no_more(
    checkpoint: Checkpoint, reference: Reference, tmp_path: Path
) -> None:
    """Class, sizes, layout, versions and what was corrected, as report and manifest have them; no path of the
    run; the hub reads its head; all other files are as without.
    """
    folder = checkpoint("qwen2", "tp2pp2")
    given = {"checkpoint": folder, "reference": reference("qwen2")}
    report = export_here(**given, output=tmp_path / "out", card=True)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "# Qwen2ForCausalLM" in text
    assert f"| parameters | {report.total_parameters:,} |" in text
    assert f"| weights | {report.num_files} files, {report.total_size:,} bytes |" in text
    assert "| trained with | TP2 PP2 |" in text
    assert f"pp_export {pp_export.__version__}" in text
    assert all(sentence in text for sentence in report.config_additions)
    assert str(folder) not in text
    assert str(folder.parent) not in text
    head = text.split("---")[1].strip().splitlines()
    assert head[0] == "library_name: transformers"

    export_here(**given, output=tmp_path / "without")
    found, other = files_of(tmp_path / "out"), files_of(tmp_path / "without")
    assert found.keys() - other.keys() == {"README.md"}
    differ = {name for name in other if found[name] != other[name]}
    assert differ <= {file_names.MANIFEST}


def test_its_owner_may_write_on(checkpoint: Checkpoint, reference: Reference, tmp_path: Path) -> None:
    """Neither manifest nor sums list it: the folder stays proved with another text, and without one."""
    out = tmp_path / "out"
    export_here(checkpoint=checkpoint("qwen2", "tp2"), reference=reference("qwen2"), output=out, card=True)
    assert "README.md" not in (out / file_names.SUMS).read_text()
    assert "README.md" not in json.loads((out / file_names.MANIFEST).read_text())["files"]
    (out / "README.md").write_text("my own words")
    assert pp_export.verify(out).ok
    (out / "README.md").unlink()
    assert pp_export.verify(out).ok


def test_nobody_else_s_readme_is_replaced(
    checkpoint: Checkpoint, reference: Reference, tmp_path: Path
) -> None:
    """A folder that keeps its other files keeps its card."""
    with pytest.raises(OptionError, match="--card"):
        export_here(
            checkpoint=checkpoint("qwen2", "tp2"),
            reference=reference("qwen2"),
            output=tmp_path / "out",
            card=True,
            contents="model",
        )
