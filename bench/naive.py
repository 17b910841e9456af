"""The converter of today, as projects carry it beside their training code.

    python -m bench.naive CHECKPOINT REFERENCE OUTPUT

One process loads the whole model with `torch.distributed.checkpoint`, renames by rules written by hand for
one architecture (Qwen2), and saves shards of 5 GB. Nothing is checked, and nothing is verified afterwards.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_state

SHARD_BYTES = 5 * 10**9

Named = tuple[str, torch.Tensor]


def load(folder: Path) -> dict[str, torch.Tensor]:
    """Every model tensor of the checkpoint's latest iteration, whole and in memory."""
    iteration = int((folder / "latest_checkpointed_iteration.txt").read_text())
    reader = FileSystemReader(str(folder / f"iter_{iteration:07d}"))
    state = {
        key: torch.empty(item.size, dtype=item.properties.dtype)
        for key, item in reader.read_metadata().state_dict_metadata.items()
        if isinstance(item, TensorStorageMetadata) and not key.startswith("optimizer.")
    }
    load_state(state, storage_reader=reader, no_dist=True)
    return state


def convert(state: dict[str, torch.Tensor], config: dict[str, Any]) -> Iterator[Named]:
    """The tensors under their Hugging Face names."""
    vocab_size = config["vocab_size"]
    yield "model.embed_tokens.weight", state["embedding.word_embeddings.weight"][:vocab_size]
    for layer in range(config["num_hidden_layers"]):
        for name, tensor in _convert_layer(state, layer, config):
            yield f"model.layers.{layer}.{name}", tensor
    yield "model.norm.weight", state["decoder.final_layernorm.weight"]
    if "output_layer.weight" in state:
        yield "lm_head.weight", state["output_layer.weight"][:vocab_size]


def _convert_layer(state: dict[str, torch.Tensor], layer: int, config: dict[str, Any]) -> Iterator[Named]:
    groups, heads = config["num_key_value_heads"], config["num_attention_heads"]
    size = config["hidden_size"] // heads
    for kind in ("weight", "bias"):
        fused = state[f"decoder.layers.self_attention.linear_qkv.{kind}"][layer]
        grouped = fused.reshape(groups, heads // groups + 2, size, *fused.shape[1:])
        query, key, value = torch.split(grouped, [heads // groups, 1, 1], dim=1)
        for name, part in (("q", query), ("k", key), ("v", value)):
            yield f"self_attn.{name}_proj.{kind}", part.reshape(-1, *fused.shape[1:])
    gate, up = state["decoder.layers.mlp.linear_fc1.weight"][layer].chunk(2)
    yield "mlp.gate_proj.weight", gate
    yield "mlp.up_proj.weight", up
    for name, source in (
        ("input_layernorm", "self_attention.linear_qkv.layer_norm_weight"),
        ("self_attn.o_proj", "self_attention.linear_proj.weight"),
        ("post_attention_layernorm", "mlp.linear_fc1.layer_norm_weight"),
        ("mlp.down_proj", "mlp.linear_fc2.weight"),
    ):
        yield f"{name}.weight", state[f"decoder.layers.{source}"][layer]


def save(tensors: Iterator[Named], folder: Path) -> None:
    """Shards of at most SHARD_BYTES, and the index."""
    shards: list[dict[str, torch.Tensor]] = [{}]
    filled = total = 0
    for name, tensor in tensors:
        if shards[-1] and filled + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor.contiguous()
        filled, total = filled + tensor.nbytes, total + tensor.nbytes
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def main() -> None:
    """Convert what the command line names."""
    source, reference, output = map(Path, sys.argv[1:])
    config = json.loads((reference / "config.json").read_text())
    output.mkdir()
    save(convert(load(source), config), output)
    for file in reference.iterdir():
        shutil.copy(file, output)


if __name__ == "__main__":
    main()
