"""Claims: the script that proves an export of a user's own checkpoint says what holds and what doesn't."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import pp_export
from tests.fixtures import card, family_proofs
from tests.fixtures.families import FAMILIES
from tests.fixtures.releases import transformers_5
from tests.fixtures.stored import on_disk

pytestmark = transformers_5


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Hunyuan 3 with its MTP layer in `model`, its reference, and the checkpoint of its import."""
    folder = tmp_path_factory.mktemp("imported")
    family_proofs.write_model(FAMILIES["hy_v3_mtp"], folder)
    return folder


def test_a_round_trip_is_proved_bit_for_bit(
    imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every tensor of the folder that was imported is compared, MTP layers too; the card has no paths."""
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        answers = family_proofs.random_model(FAMILIES["hy_v3_mtp"])(ids).logits
    pp_export.record_logits(tmp_path / "recorded", ids, answers)
    arguments = [str(imported / "checkpoint"), "--reference", str(imported / "reference")]
    arguments += ["--same-as", str(imported / "model"), "--logits", "--json", str(tmp_path / "card.json")]
    arguments += ["--recording", str(tmp_path / "recorded")]
    assert card.main([*arguments, "--max-shard-size", "60KB"]) == 0
    told = json.loads((tmp_path / "card.json").read_text())
    truth = on_disk(imported / "model")
    size = sum(value.nbytes for value in truth.values())
    assert told["compared"] == {"with": "model", "tensors": len(truth), "bytes": size, "differing": 0}
    assert told["export"]["tensors"] == len(truth)
    assert (told["ok"], told["faults"], told["model"]) == (True, [], "HYV3ForCausalLM")
    assert told["logits"]["largest_difference"] == 0.0
    assert told["logits"]["difference_from_recording"] < told["logits"]["tolerance"]
    assert told["command"].endswith("--output export --max-shard-size 60KB")
    shown = capsys.readouterr().out
    assert shown.startswith("## HYV3ForCausalLM\n")
    assert f"tensors {len(truth):,}; bytes {size:,}; differing 0" in shown
    assert "all of it holds" in shown
    assert str(imported) not in shown + (tmp_path / "card.json").read_text()


def test_what_differs_is_named(imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A flipped bit, a tensor of another type, one that is missing, one too many: each by its name."""
    shutil.copytree(imported / "model", tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    names = sorted(tensors)
    tensors[names[0]].view(-1)[0] += 1
    tensors[names[1]] = tensors[names[1]].double()
    del tensors[names[2]]
    tensors["more.weight"] = tensors[names[3]].clone()
    save_file(tensors, file, {"format": "pt"})
    arguments = [str(imported / "checkpoint"), "--reference", str(imported / "reference")]
    assert (
        card.main([*arguments, "--same-as", str(tmp_path / "model"), "--output", str(tmp_path / "out")]) == 1
    )
    shown = capsys.readouterr().out
    for text in (
        f"{names[0]} has other bytes",
        f"{names[1]} is torch.float32",
        f"{names[2]} isn't in model",
        "more.weight is missing from the export",
        "**4 faults**",
    ):
        assert text in shown
    assert (tmp_path / "out" / "config.json").exists()
