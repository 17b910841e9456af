"""Claims: a decoder with another head than a language model's (classes, rewards, values) is exported as its
family is, and answers as it did.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pp_export.core.errors import AccountingError, RuleError
from tests.fixtures import family_proofs
from tests.fixtures.exports import export_here
from tests.fixtures.families import FAMILIES
from tests.fixtures.stored import on_disk, write_stored

NUM_LABELS = 3
CLASSES = {
    "Qwen2MoeForSequenceClassification": "qwen2_moe",
    "Qwen3NextForSequenceClassification": "qwen3_next",
    "Phi3ForSequenceClassification": "phi3",
    "GPT2ForSequenceClassification": "gpt2",
    "StableNothingForSequenceClassification": "",
    "GemmaForTokenClassification": "gemma",
    "MiniMaxM2ForTokenClassification": "",
}


def written(hf_class: str, name: str, folder: Path, *, num_labels: int = NUM_LABELS) -> Any:
    """The model with random values in `folder / model`, its reference, and its checkpoint, of which the head
    stands where the one for words would.
    """
    import transformers

    family = FAMILIES[name]
    model_class: Any = getattr(transformers, hf_class)
    values = family.whole_config() | {"architectures": [hf_class], "num_labels": num_labels}
    model = model_class(model_class.config_class(**values)).float().eval()
    family_proofs.randomize(model)
    model.save_pretrained(folder / "model")
    reference = folder / "reference"
    reference.mkdir()
    (reference / "config.json").write_bytes((folder / "model" / "config.json").read_bytes())
    disk = on_disk(folder / "model")
    stored = family.stored(disk, family.whole_config())
    head = {f"output_layer.{key[6:]}": value for key, value in disk.items() if key.startswith("score.")}
    stored = {key: value.contiguous() for key, value in (stored | head).items()}
    write_stored(folder / "checkpoint", stored, family.whole_args())
    return model


@pytest.mark.parametrize(("hf_class", "name"), [pair for pair in CLASSES.items() if pair[1]])
def test_the_model_comes_back(hf_class: str, name: str, tmp_path: Path) -> None:
    """Every tensor has the name and bytes that transformers gave it, and the loaded class the scores."""
    import transformers

    model = written(hf_class, name, tmp_path)
    output = tmp_path / "export"
    export_here(checkpoint=tmp_path / "checkpoint", reference=tmp_path / "reference", output=output)
    truth, exported = on_disk(tmp_path / "model"), on_disk(output)
    assert sorted(exported) == sorted(truth)
    assert [key for key in truth if not torch.equal(truth[key], exported[key])] == []
    assert "score.weight" in exported
    loaded: Any = getattr(transformers, hf_class).from_pretrained(output, dtype=torch.float32)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        own, scores = model(ids).logits, loaded.eval()(ids).logits
    assert own.shape[-1] == NUM_LABELS
    assert float((own - scores).abs().max()) < 1e-5 * float(own.abs().max())


def test_a_head_with_other_labels_than_config_json_is_refused(tmp_path: Path) -> None:
    """A value head of one row under a config.json of three labels isn't written."""
    written("Phi3ForSequenceClassification", "phi3", tmp_path)
    other = tmp_path / "other"
    written("Phi3ForSequenceClassification", "phi3", other, num_labels=1)
    with pytest.raises(AccountingError) as caught:
        export_here(
            checkpoint=other / "checkpoint", reference=tmp_path / "reference", output=tmp_path / "export"
        )
    assert any("score.weight: the model expects shape [3, 32]" in line for line in caught.value.findings)


@pytest.mark.parametrize("hf_class", [hf_class for hf_class, name in CLASSES.items() if not name])
def test_heads_of_decoders_that_nothing_serves_are_refused(hf_class: str) -> None:
    """A head needs its decoder's table, and what transformers has of it decides the rest."""
    from pp_export.architecture import table_files

    if hf_class.startswith("Stable"):
        with pytest.raises(RuleError, match="no architecture table serves this model class"):
            table_files.for_class(hf_class)
    else:
        assert table_files.for_class(hf_class).serves == (hf_class,)
