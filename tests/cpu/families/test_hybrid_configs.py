"""Claims: the config.json of hybrid models as their makers publish it is understood, and stays readable for
the class's own code on the Hub.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import pp_export
from pp_export.core.errors import AccountingError
from tests.fixtures import family_proofs
from tests.fixtures.exports import export_here
from tests.fixtures.families import FAMILIES

# As in NVIDIA's repositories, whose code takes no `layers_block_type`.
AS_PUBLISHED: dict[str, Any] = {
    "hybrid_override_pattern": "M*-M",
    "num_hidden_layers": 4,
    "attention_head_dim": 8,
    "rms_norm_eps": 1e-5,
    "time_step_limit": [0.0, float("inf")],
    "time_step_min": 0.001,
    "use_mamba_kernels": True,
}
_RELEASE_5 = ("layers_block_type", "layer_types", "head_dim", "mtp_layers_block_type")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the small Nemotron-H and its checkpoint."""
    folder = tmp_path_factory.mktemp("nemotron_h")
    family_proofs.write_model(FAMILIES["nemotron_h"], folder)
    return folder


def export(folder: Path, tmp_path: Path, **changed: Any) -> dict[str, Any]:
    """The exported config.json, for a reference in the spelling of the Hub with what is `changed`."""
    stated = json.loads((folder / "reference" / "config.json").read_text())
    old = {key: value for key, value in stated.items() if key not in _RELEASE_5}
    reference = tmp_path / "reference"
    reference.mkdir()
    (reference / "config.json").write_text(json.dumps({**old, **AS_PUBLISHED, **changed}))
    export_here(checkpoint=folder / "checkpoint", reference=reference, output=tmp_path / "out")
    config: dict[str, Any] = json.loads((tmp_path / "out" / "config.json").read_text())
    return config


def test_the_pattern_stays_a_pattern(folder: Path, tmp_path: Path) -> None:
    """What the Hub's code reads is there, and nothing that it can't take; head sizes are said both ways."""
    config = export(folder, tmp_path)
    assert config["hybrid_override_pattern"] == "M*-M"
    assert "layers_block_type" not in config
    assert (config["head_dim"], config["attention_head_dim"]) == (8, 8)
    assert config["time_step_limit"] == [0.0, float("inf")]


def test_infinity_is_loaded_however_it_is_written(folder: Path, tmp_path: Path) -> None:
    """`verify --load` takes Python's spelling, and that of release 5 of transformers."""
    export(folder, tmp_path)
    assert pp_export.verify(tmp_path / "out", load=True).faults == ()
    export_here(
        checkpoint=folder / "checkpoint", reference=folder / "reference", output=tmp_path / "of release 5"
    )
    assert "__float__" in (tmp_path / "of release 5" / "config.json").read_text()
    assert pp_export.verify(tmp_path / "of release 5", load=True).faults == ()


def test_a_count_that_the_pattern_refutes_is_corrected(folder: Path, tmp_path: Path) -> None:
    """transformers goes by the pattern, other loaders by `num_hidden_layers`."""
    assert export(folder, tmp_path, num_hidden_layers=5)["num_hidden_layers"] == 4


@pytest.mark.parametrize(
    ("changed", "setting"),
    [
        ({"hybrid_override_pattern": "M-*M"}, "hybrid_layers"),
        ({"time_step_limit": [0.0, 0.1]}, "time_step_limit"),
        ({"time_step_min": 0.01}, "time_step_min"),
        ({"mamba_hidden_act": "gelu"}, "mamba_activation"),
        ({"attention_head_dim": 4}, "head_dim"),
    ],
)
def test_another_function_is_refused(
    changed: dict[str, Any], setting: str, folder: Path, tmp_path: Path
) -> None:
    """A config.json that says another function than the checkpoint's, or two, stops the export."""
    with pytest.raises(AccountingError, match="not the config of this checkpoint") as caught:
        export(folder, tmp_path, **changed)
    assert any(finding.startswith(f"{setting}:") for finding in caught.value.findings)
