"""Claims: layers for multi-token prediction (MTP) are exported as they were trained, left out, or missed, but
never in silence.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import pp_export
from pp_export.core.errors import AccountingError
from tests.cpu.conftest import Checkpoint, Reference
from tests.fixtures import family_proofs
from tests.fixtures.exports import RememberedDefinition, export_here
from tests.fixtures.families import FAMILIES
from tests.fixtures.processes import run_python, torchrun
from tests.fixtures.releases import transformers_5
from tests.fixtures.stored import on_disk

INDEX = "model.safetensors.index.json"
pytestmark = transformers_5


@pytest.fixture(scope="module")
def deepseek(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a DeepSeek-V3 of three layers and an MTP layer with copies, see `write_model`."""
    folder = tmp_path_factory.mktemp("deepseek")
    family_proofs.write_model(FAMILIES["deepseek_v3_mtp"], folder)
    return folder


def changed(reference: Path, folder: Path, **keys: Any) -> Path:
    """The reference with other keys in config.json."""
    folder.mkdir()
    for file in reference.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text()) | keys
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_dropped_layers_are_said_to_be_none(deepseek: Path, tmp_path: Path) -> None:
    """`--mtp drop` leaves out the tensors and the copies, and config.json promises none."""
    output = tmp_path / "export"
    export_here(
        checkpoint=deepseek / "checkpoint", reference=deepseek / "reference", output=output, mtp="drop"
    )
    index = json.loads((output / INDEX).read_text())["weight_map"]
    assert not [name for name in index if name.startswith("model.layers.3.")]
    assert json.loads((output / "config.json").read_text())["num_nextn_predict_layers"] == 0


def test_layers_that_the_reference_lacks_are_promised_by_the_export(deepseek: Path, tmp_path: Path) -> None:
    """A reference without MTP layers gives a folder that has them all, and whose config.json says so."""
    reference = changed(deepseek / "reference", tmp_path / "reference", num_nextn_predict_layers=0)
    (reference / INDEX).unlink()
    output = tmp_path / "export"
    done = export_here(checkpoint=deepseek / "checkpoint", reference=reference, output=output, mtp="require")
    index = json.loads((output / INDEX).read_text())["weight_map"]
    assert {"model.layers.3.enorm.weight", "model.layers.3.embed_tokens.weight"} < set(index)
    assert json.loads((output / "config.json").read_text())["num_nextn_predict_layers"] == 1
    assert any("Nothing but the table says which tensors MTP layers have" in note for note in done.notes)


def test_layers_that_the_class_lacks_are_no_fault(deepseek: Path, tmp_path: Path) -> None:
    """`verify --load` knows them by config.json, whatever number transformers expects them to have."""
    inputs = {"checkpoint": deepseek / "checkpoint", "reference": deepseek / "reference"}
    export_here(**inputs, output=tmp_path / "export")
    found = pp_export.verify(tmp_path / "export", load=True)
    assert found.faults == ()
    assert found.depth.endswith("load")


def test_a_promise_that_the_checkpoint_breaks_is_refused(
    checkpoint: Checkpoint, reference: Reference, tmp_path: Path
) -> None:
    """config.json counts MTP layers and the checkpoint has none: refused, or dropped from config.json."""
    promising = changed(reference("qwen3"), tmp_path / "reference", num_nextn_predict_layers=1)
    inputs = {"checkpoint": checkpoint("qwen3", "tp2"), "reference": promising}
    with pytest.raises(AccountingError, match=r"config\.json promises MTP layers") as caught:
        export_here(**inputs, output=tmp_path / "refused")
    assert "--mtp drop" in str(caught.value.advice)
    assert not (tmp_path / "refused").exists()
    export_here(**inputs, output=tmp_path / "export", mtp="drop")
    written = json.loads((tmp_path / "export" / "config.json").read_text())
    assert written["num_nextn_predict_layers"] == 0


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("model.layers.3.embed_tokens.weight", None),
        ("model.layers.3.eh_proj.weight", "model does not have it"),
    ],
)
def test_the_index_of_the_reference_decides(
    deepseek: Path, tmp_path: Path, name: str, what: str | None
) -> None:
    """A copy that the reference's index doesn't have isn't made; of trained tensors none may be missing."""
    reference = changed(deepseek / "reference", tmp_path / "reference")
    index = json.loads((reference / INDEX).read_text())
    del index["weight_map"][name]
    (reference / INDEX).write_text(json.dumps(index))
    inputs = {"checkpoint": deepseek / "checkpoint", "reference": reference, "output": tmp_path / "export"}
    if what is not None:
        with pytest.raises(AccountingError) as caught:
            export_here(**inputs)
        assert any(name in finding and what in finding for finding in caught.value.findings)
        return
    export_here(**inputs)
    assert name not in json.loads((tmp_path / "export" / INDEX).read_text())["weight_map"]


def test_a_tensor_that_only_the_reference_has_is_missed(deepseek: Path, tmp_path: Path) -> None:
    """What the reference's MTP layer has and no row makes is not lost in silence."""
    reference = changed(deepseek / "reference", tmp_path / "reference")
    index = json.loads((reference / INDEX).read_text())
    index["weight_map"]["model.layers.3.mlp.new.weight"] = "further.safetensors"
    (reference / INDEX).write_text(json.dumps(index))
    with pytest.raises(AccountingError) as caught:
        export_here(checkpoint=deepseek / "checkpoint", reference=reference, output=tmp_path / "export")
    assert "model.layers.3.mlp.new.weight is expected, and no rule makes it" in caught.value.findings


def test_copies_are_the_same_from_every_grid(deepseek: Path, tmp_path: Path) -> None:
    """Copies that other ranks write than the original equal it, in files of other sizes too."""
    inputs = {"checkpoint": str(deepseek / "checkpoint"), "reference": str(deepseek / "reference")}
    export_here(**{key: Path(value) for key, value in inputs.items()}, output=tmp_path / "alone")
    RememberedDefinition.write(tmp_path / "answers.json")
    grids: tuple[dict[str, Any], ...] = (
        {"tensor_parallel": 2},
        {"pipeline_parallel": 2},
        {"expert_parallel": 2, "max_shard_size": "20KB"},
    )
    jobs: list[dict[str, Any]] = [
        {**inputs, **grid, "output": str(tmp_path / f"of{n}")} for n, grid in enumerate(grids)
    ]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    command = torchrun(2, "-m", "tests.fixtures.many_exports", str(tmp_path / "jobs.json"))
    run_python([*command, str(tmp_path / "answers.json")], tmp_path / "output").checked()
    truth = on_disk(tmp_path / "alone")
    copy, original = "model.layers.3.embed_tokens.weight", "model.embed_tokens.weight"
    assert truth[copy].equal(truth[original])
    for job in jobs:
        made: dict[str, Any] = {}
        for file in sorted(Path(job["output"]).glob("*.safetensors")):
            made |= load_file(file)
        assert made.keys() == truth.keys()
        assert [name for name in truth if not truth[name].equal(made[name])] == []


@pytest.mark.parametrize("name", ["ernie4_5_moe", "seed_oss"])
def test_a_class_without_names_for_them_says_so(name: str, tmp_path: Path) -> None:
    """One sentence instead of a list of tensors; without them the model is exported as any other."""
    family = FAMILIES[name]
    with_layer = replace(
        family,
        stored=lambda disk, config: (
            family.stored(disk, config) | {"mtp.layers.0.enorm.weight": torch.ones(32)}
        ),
    )
    family_proofs.write_model(with_layer, tmp_path)
    inputs = {"checkpoint": tmp_path / "checkpoint", "reference": tmp_path / "reference"}
    with pytest.raises(AccountingError, match="MTP layers of this class can't be exported") as caught:
        export_here(**inputs, output=tmp_path / "refused")
    assert "--mtp drop" in str(caught.value.advice)
    done = export_here(**inputs, output=tmp_path / "export", mtp="drop")
    assert "mtp.layers.0.enorm.weight" in done.dropped


@pytest.mark.parametrize("name", ["glm4_moe_two_mtp", "hy_v3_mtp"])
def test_a_pruned_model_keeps_its_mtp_layers(name: str, tmp_path: Path) -> None:
    """When the checkpoint decides, those of a larger reference count on from the last layer that is left."""
    family_proofs.write_model(FAMILIES[name], tmp_path)
    count = FAMILIES[name].whole_config()["num_hidden_layers"]
    reference = changed(tmp_path / "reference", tmp_path / "larger", num_hidden_layers=count + 2)
    config = json.loads((reference / "config.json").read_text())
    (reference / "config.json").write_text(json.dumps({**config, "mlp_layer_types": None}))
    truth = json.loads((tmp_path / "reference" / INDEX).read_text())["weight_map"]

    def numbered(key: str, first: int, by: int) -> str:
        return re.sub(r"layers\.(\d+)", lambda m: f"layers.{int(m[1]) + by * (int(m[1]) >= first)}", key)

    own = [key for key in truth if numbered(key, count, 2) == key]
    more = [numbered(key, count - 1, by) for key in own for by in (0, 1, 2)]
    index = dict.fromkeys([*more, *(numbered(key, count, 2) for key in truth)], "further.safetensors")
    (reference / INDEX).write_text(json.dumps({"weight_map": index}))
    inputs = {"checkpoint": tmp_path / "checkpoint", "reference": reference}
    with pytest.raises(AccountingError, match="not the config of this checkpoint"):
        export_here(**inputs, output=tmp_path / "refused")
    export_here(**inputs, output=tmp_path / "export", config_from="checkpoint")
    exported = on_disk(tmp_path / "export")
    assert sorted(exported) == sorted(truth)
    values = on_disk(tmp_path / "model")
    assert [key for key in exported if not exported[key].equal(values[key])] == []
