"""Claims: tables of classes that transformers doesn't have make what a reference's index and files say.

Nobody but other loaders knows these classes, so what their tensors are called is written down in the fixture;
tables and transforms know nothing of that.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pp_export.core.errors import AccountingError
from tests.fixtures.exports import export_here
from tests.fixtures.index_families import INDEX_FAMILIES, prove
from tests.fixtures.releases import transformers_5

pytestmark = transformers_5


@pytest.mark.parametrize("name", INDEX_FAMILIES)
def test_the_reference_s_own_tensors_come_back(name: str, tmp_path: Path) -> None:
    """Every tensor has the name, shape and bytes that the reference's files have, MTP layers too."""
    assert prove(INDEX_FAMILIES[name], tmp_path)["tensors"] > 40


@pytest.mark.parametrize(
    ("name", "arg"), [(name, arg) for name, case in INDEX_FAMILIES.items() for arg in case.family.lies]
)
def test_another_function_is_refused(name: str, arg: str, tmp_path: Path) -> None:
    """Training args of another function, with the same tensors, stop the export."""
    case = INDEX_FAMILIES[name]
    disk = case.write(tmp_path)
    case.write_checkpoint(disk, tmp_path / "other", case.family.whole_args() | {arg: case.family.lies[arg]})
    with pytest.raises(AccountingError):
        export_here(
            checkpoint=tmp_path / "other", reference=tmp_path / "reference", output=tmp_path / "export"
        )
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize("name", INDEX_FAMILIES)
def test_a_tensor_that_the_index_has_is_missed(name: str, tmp_path: Path) -> None:
    """With one layer's norm gone from the checkpoint, its name is told."""
    case = INDEX_FAMILIES[name]
    disk = case.write(tmp_path)
    gone = next(key for key in disk if key.endswith("layers.1.post_attention_layernorm.weight"))
    left = {key: disk[key] for key in disk if key != gone}
    case.write_checkpoint(left, tmp_path / "other", case.family.whole_args())
    with pytest.raises(AccountingError) as caught:
        export_here(
            checkpoint=tmp_path / "other", reference=tmp_path / "reference", output=tmp_path / "export"
        )
    assert any(finding.startswith(gone) for finding in caught.value.findings)


def test_mimo_answers_as_qwen2(tmp_path: Path) -> None:
    """Without its MTP layers MiMo is Qwen2: transformers' class of that name loads the export, and gives the
    logits of the reference's tensors.
    """
    import transformers

    qwen2: Any = transformers.Qwen2ForCausalLM

    case = INDEX_FAMILIES["mimo"]
    disk = case.write(tmp_path)
    inputs = {kind: tmp_path / kind for kind in ("checkpoint", "reference")}
    export_here(**inputs, output=tmp_path / "export", mtp="drop")
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    assert config["num_nextn_predict_layers"] == 0
    own: Any = qwen2(transformers.Qwen2Config(**case.family.whole_config())).eval()
    own.load_state_dict({key: value for key, value in disk.items() if "mtp_layers" not in key})
    loaded = qwen2.from_pretrained(tmp_path / "export", dtype=torch.float32).eval()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(own(ids).logits, loaded(ids).logits)
