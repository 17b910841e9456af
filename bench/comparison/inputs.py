"""The inputs: one for each kind of save that becomes a Hugging Face folder, with what is right for it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from bench.naive import convert, load
from tests.fixtures.launch import ROOT, run_writer

Tensors = dict[str, torch.Tensor]
MEGATRON, SAFETENSORS, VERL = "megatron", "safetensors", "verl"
KINDS = {
    MEGATRON: "a torch_dist checkpoint of Megatron-LM's, TP2 PP2, by megatron-core",
    SAFETENSORS: "safetensors of 2 ranks, by torch's HuggingFaceStorageWriter",
    VERL: "verl's FSDP checkpoint of 2 ranks (`model_world_size_2_rank_N.pt`)",
}
_TOY, _LAYOUT = "qwen2", "tp2pp2"


@dataclass(frozen=True)
class Input:
    """A save, the Hugging Face folder of its model, and the tensors that are right."""

    kind: str
    source: Path
    reference: Path
    truth: Tensors


def make(work: Path, kinds: list[str]) -> list[Input]:
    """Write what is not in `work` yet: values are random, and what was drawn is what is right."""
    made = []
    if MEGATRON in kinds:
        made.append(_megatron(work / MEGATRON))
    if {SAFETENSORS, VERL} & set(kinds):
        made += [each for each in _of_ranks(work / "ranks") if each.kind in kinds]
    return made


def _megatron(folder: Path) -> Input:
    if not (folder / "reference").exists():
        run_writer(_TOY, [_LAYOUT], folder, world_size=4, optimizer=False)
        _python("-m", "tests.fixtures.reference", _TOY, str(folder / "reference"))
    config = json.loads((folder / "reference" / "config.json").read_text())
    # By the usual converter's rules. That pp_export gives the same is the first row of the table, and that
    # its exports answer as megatron-core's model does is tested (tests/cpu/end_to_end/test_parity.py).
    truth = {name: value.clone() for name, value in convert(load(folder / _LAYOUT), config)}
    return Input(MEGATRON, folder / _LAYOUT, folder / "reference", truth)


def _of_ranks(folder: Path) -> list[Input]:
    if not (folder / "saves").exists():
        _write_model(folder / "model")
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        writer = ["-m", "tests.fixtures.write_rank_shards", str(folder / "model"), str(folder / "new")]
        _python(*launcher, *writer, "hf", "verl")
        (folder / "new").rename(folder / "saves")
    truth: Tensors = {}
    for file in (folder / "model").glob("*.safetensors"):
        truth |= load_file(file)
    sources = {SAFETENSORS: folder / "saves" / "hf", VERL: folder / "saves" / "verl"}
    return [Input(kind, source, folder / "model", truth) for kind, source in sources.items()]


def _write_model(folder: Path) -> None:
    """A random model in Qwen2's shape (0.13 GB in bfloat16), in several files, with config.json."""
    import transformers

    torch.manual_seed(0)
    config_class: Any = transformers.Qwen2Config
    config = config_class(
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=32_000,
        tie_word_embeddings=False,
    )
    model_class: Any = transformers.Qwen2ForCausalLM
    model = model_class(config).to(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.05)
    model.save_pretrained(folder, max_shard_size="40MB")


def _python(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True)
