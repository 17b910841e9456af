"""Claims: with `--weights master` the weights are those that the optimizer updates, in float32.

megatron-core stores them beside the model, sharded as that is; the fixture gives them values of their own,
and none to some parameters.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import pp_export
from pp_export.core.errors import CheckpointError
from tests.cpu.conftest import Checkpoint, Reference
from tests.fixtures.exports import export_here
from tests.fixtures.stored import on_disk

TRAINED = (
    *("embed_tokens.weight", "q_proj.weight", "k_proj.weight", "v_proj.weight"),
    *("gate_proj.weight", "up_proj.weight", "model.norm.weight"),
)


def export_of(folder: Path, reference: Path, output: Path, **options: Any) -> Any:
    return export_here(checkpoint=folder, reference=reference, output=output, **options)


@pytest.mark.parametrize("layout", ["tp1", "tp2pp2"])
def test_they_are_the_optimizer_s_own(
    layout: str, checkpoint: Checkpoint, reference: Reference, tmp_path: Path
) -> None:
    """Of parameters that the optimizer has, the export has its values, from any layout; all others are the
    model's, and are named. The manifest says so.
    """
    folder, hf = checkpoint("qwen2", layout), reference("qwen2")
    plain = on_disk(Path(export_of(folder, hf, tmp_path / "plain", dtype="float32").output))
    report = export_of(folder, hf, tmp_path / "masters", weights="master", dtype="float32")
    masters = on_disk(tmp_path / "masters")
    assert masters.keys() == plain.keys()
    for name, value in plain.items():
        expected = value * 1.001 if name.endswith(TRAINED) else value
        assert torch.equal(masters[name], expected), name
    assert any("the optimizer's own weights" in note and "linear_proj" in note for note in report.notes)
    manifest = json.loads((tmp_path / "masters" / "export_manifest.json").read_text())
    assert manifest["provenance"]["weights"] == "master"
    assert pp_export.verify(tmp_path / "masters").ok


def test_a_checkpoint_without_them_is_refused(
    checkpoint: Checkpoint, reference: Reference, tmp_path: Path
) -> None:
    """Nothing else stands in for weights that aren't there: neither moments nor the model's."""
    golden = Path(__file__).parents[2] / "golden"
    for folder, told in (
        (golden / "0.19.2-trained", "no float32 weights|other shapes"),
        (golden / "0.16.1-legacy-pp", "one file per rank"),
    ):
        with pytest.raises(CheckpointError, match=told):
            pp_export.plan(folder, reference=reference("qwen2"), weights="master")
