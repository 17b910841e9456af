"""Claims: of a model that was cut or grown after its reference, the checkpoint's sizes are refused, or count
when the checkpoint is to decide; what only the reference could tell of each layer isn't guessed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pp_export.core.errors import AccountingError
from tests.cpu.conftest import Checkpoint, Reference
from tests.fixtures.exports import export_here, files_of

LAYERS = 9
FULL, SLIDING = "full_attention", "sliding_attention"


def grown(reference: Path, folder: Path, layer_types: list[str]) -> Path:
    """The reference as of a model with more layers, and wider ones."""
    folder.mkdir()
    for file in files_of(reference):
        (folder / file).write_bytes((reference / file).read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config |= {"num_hidden_layers": LAYERS, "intermediate_size": 200, "layer_types": layer_types}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_checkpoint_decides_when_asked(
    checkpoint: Checkpoint, reference: Reference, tmp_path: Path
) -> None:
    """Layers and widths of the checkpoint are in config.json, whose lists by layer fit, and the model answers
    as the one that was exported with the right reference.
    """
    from transformers import AutoModelForCausalLM

    source = checkpoint("qwen3", "tp2")
    larger = grown(reference("qwen3"), tmp_path / "larger", [FULL] * LAYERS)
    with pytest.raises(AccountingError, match="not the config of this checkpoint") as caught:
        export_here(checkpoint=source, reference=larger, output=tmp_path / "export")
    assert "num_layers: the checkpoint was trained with 6, config.json says 9" in caught.value.findings
    export_here(checkpoint=source, reference=larger, output=tmp_path / "export", config_from="checkpoint")
    export_here(checkpoint=source, reference=reference("qwen3"), output=tmp_path / "truth")
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    assert (config["num_hidden_layers"], config["layer_types"]) == (6, [FULL] * 6)
    loader: Any = AutoModelForCausalLM
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        own, truth = (
            loader.from_pretrained(tmp_path / name).eval()(ids).logits for name in ("export", "truth")
        )
    assert torch.equal(own, truth)


def test_layers_of_several_kinds_are_not_guessed(
    checkpoint: Checkpoint, reference: Reference, tmp_path: Path
) -> None:
    """Where the reference's layers differ, nothing tells which of them are left."""
    mixed = grown(reference("qwen3"), tmp_path / "mixed", [FULL] * 8 + [SLIDING])
    with pytest.raises(AccountingError) as caught:
        export_here(
            checkpoint=checkpoint("qwen3", "tp2"),
            reference=mixed,
            output=tmp_path / "export",
            config_from="checkpoint",
        )
    assert any("layer_types tells of 9 layers one by one" in finding for finding in caught.value.findings)
