"""Claims: an exported model answers as the trained one, for every architecture that has a table.

The truth is Megatron's own: its loader reads the sharded checkpoint, its model computes the logits.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.cpu.conftest import Checkpoint, Reference
from tests.fixtures.exports import export_here
from tests.fixtures.models import MODELS
from tests.fixtures.processes import run_python

TOLERANCE = 1e-5
CASES = {
    "llama": ("llama", "tp2"),
    "mistral": ("mistral", "pp2"),
    "qwen2": ("qwen2", "tp2pp2"),
    "qwen2, uneven stages": ("qwen2", "pp4first1last1"),
    "qwen2, tied embeddings on two stages": ("qwen2_tied", "pp2"),
    "qwen2, one key per layer": ("qwen2_per_layer", "tp2"),
    "qwen3": ("qwen3", "tp2"),
    "qwen3, with an MTP layer on the last of two stages": ("qwen3_mtp", "pp2"),
    "qwen3_moe": ("qwen3_moe", "tp2ep2etp1"),
    "qwen3_moe, keys of Transformer Engine": ("qwen3_moe_te", "tp2pp2"),
    "qwen3_moe, some layers dense": ("qwen3_moe_list", "tp2"),
    "mixtral": ("mixtral", "ep2"),
}
MODEL_OF = {"qwen2_per_layer": "qwen2", "qwen3_moe_te": "qwen3_moe"}
Logits = Callable[[str], dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def megatron_logits(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Logits:
    """`megatron_logits(case)`: input ids and Megatron's logits, all computed by one process."""
    folder = tmp_path_factory.mktemp("logits")
    arguments = [f"{checkpoint(*case)}={MODEL_OF.get(case[0], case[0])}" for case in CASES.values()]
    run_python(
        ["-m", "tests.fixtures.many_logits", str(folder), *arguments], folder / "output", timeout_s=300
    ).checked()
    files = {case: folder / f"{number}.safetensors" for number, case in enumerate(CASES)}
    return lambda case: load_file(files[case])


@pytest.mark.parametrize("case", CASES)
def test_the_exported_model_answers_as_the_trained_one(
    case: str, checkpoint: Checkpoint, reference: Reference, megatron_logits: Logits, tmp_path: Path
) -> None:
    """transformers gets the logits from the exported folder that Megatron gets from the checkpoint."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name, layout = CASES[case]
    model = MODELS[MODEL_OF.get(name, name)]
    output = tmp_path / "export"
    export_here(checkpoint=checkpoint(name, layout), reference=reference(name), output=output)

    loader: Any = AutoModelForCausalLM
    exported, info = loader.from_pretrained(
        output, local_files_only=True, dtype=torch.float32, output_loading_info=True
    )
    assert type(exported).__name__ == model.hf_class
    assert not any(info[kind] for kind in ("missing_keys", "mismatched_keys"))
    assert all(key.startswith("mtp.") for key in info["unexpected_keys"])
    assert bool(info["unexpected_keys"]) == bool(model.num_mtp_layers)
    truth = megatron_logits(case)
    with torch.no_grad():
        logits = exported.eval()(truth["input_ids"]).logits
    assert float(truth["logits"].std()) > 0.1, "logits that are all alike would prove nothing"
    assert float((logits - truth["logits"]).abs().max()) < TOLERANCE

    config = json.loads((output / "config.json").read_text())
    assert config["vocab_size"] == model.vocab_size == 250
    assert exported.get_input_embeddings().weight.shape[0] == 250
    tokenizer: Any = AutoTokenizer.from_pretrained(output, local_files_only=True)
    ids = tokenizer("every parameter is read once")["input_ids"]
    assert tokenizer.decode(ids) == "every parameter is read once"
    assert max(ids) < 250
