"""A model in Qwen2's shape, without megatron-core, with the keys, shapes and cuts that megatron-core gives.

A live part says of every parameter that it is a piece of the stack of all layers, as megatron-core's do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.fixtures.parts import Part, entry
from tests.fixtures.stored import write_stored

COLUMN, ROW, GLU, WHOLE = "column", "row", "glu", "whole"
_BLOCK = 1 << 20
_LAYERS = "decoder.layers."


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model. The padded vocabulary can be cut in two, as everything else."""

    layers: int
    hidden: int
    heads: int
    groups: int
    head_dim: int
    ffn: int
    vocab: int
    padded: int

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...], str]]:
        """Key, shape (of one layer) and cut of every parameter; a layer's begin with `decoder.layers`."""
        width, rows = self.heads * self.head_dim, (self.heads + 2 * self.groups) * self.head_dim
        yield "embedding.word_embeddings.weight", (self.padded, self.hidden), COLUMN
        yield "decoder.layers.self_attention.linear_qkv.layer_norm_weight", (self.hidden,), WHOLE
        yield "decoder.layers.self_attention.linear_qkv.weight", (rows, self.hidden), COLUMN
        yield "decoder.layers.self_attention.linear_qkv.bias", (rows,), COLUMN
        yield "decoder.layers.self_attention.linear_proj.weight", (self.hidden, width), ROW
        yield "decoder.layers.mlp.linear_fc1.layer_norm_weight", (self.hidden,), WHOLE
        yield "decoder.layers.mlp.linear_fc1.weight", (2 * self.ffn, self.hidden), GLU
        yield "decoder.layers.mlp.linear_fc2.weight", (self.hidden, self.ffn), ROW
        yield "decoder.final_layernorm.weight", (self.hidden,), WHOLE
        yield "output_layer.weight", (self.padded, self.hidden), COLUMN

    def config_json(self) -> dict[str, Any]:
        """The reference's config.json."""
        return {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.groups,
            "vocab_size": self.vocab,
            "rms_norm_eps": 1e-5,
            "rope_theta": 20_000.0,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        }

    def transformer_config(self, tensor_parallel: int) -> dict[str, Any]:
        """What megatron-core's config of the model says, as far as it matters."""
        return {
            "num_layers": self.layers,
            "hidden_size": self.hidden,
            "ffn_hidden_size": self.ffn,
            "num_attention_heads": self.heads,
            "num_query_groups": self.groups,
            "kv_channels": self.head_dim,
            "layernorm_epsilon": 1e-5,
            "tensor_model_parallel_size": tensor_parallel,
        }

    def args(self) -> dict[str, Any]:
        """The training args that the checkpoint keeps."""
        config = self.transformer_config(1)
        return {
            "norm_epsilon": config.pop("layernorm_epsilon"),
            "group_query_attention": True,
            "rotary_base": 20_000,
            "untie_embeddings_and_output_weights": True,
            "make_vocab_size_divisible_by": 128,
            **config,
        }


SIZES = {
    "full": Sizes(28, 2048, 16, 4, 128, ffn=8192, vocab=63_900, padded=64_000),  # 3.93 GB
    "medium": Sizes(4, 2048, 16, 4, 128, ffn=8192, vocab=63_900, padded=64_000),  # 1.01 GB
    "small": Sizes(4, 256, 8, 2, 32, ffn=512, vocab=1000, padded=1024),
}


class Model(Part):
    """The part of the model that one tensor parallel rank of a job holds, on `device`."""

    def __init__(self, sizes: Sizes, rank: int, tensor_parallel: int, device: str) -> None:
        super().__init__({}, **sizes.transformer_config(tensor_parallel))
        self.rotary_base, self.share_embeddings_and_output_weights = 20_000, False
        self.values = torch.nn.ParameterList()
        self._block, self._rank, self._parts = _block(device), rank, tensor_parallel
        entries: list[Any] = []
        for key, shape, cut in sizes.tensors():
            if key.startswith(_LAYERS):
                for layer in range(sizes.layers):
                    entries += self._entries(key, shape, cut, (sizes.layers, layer))
            else:
                entries += self._entries(key, shape, cut, None)
        self.state = {"model": entries}

    def _entries(
        self, key: str, shape: tuple[int, ...], cut: str, layer: tuple[int, int] | None
    ) -> Iterator[Any]:
        """What megatron-core says of a parameter; gate and up are an entry each, as its factory cuts them."""
        dim = 1 if cut == ROW else 0
        own, offset = list(shape), [0] * len(shape)
        if cut != WHOLE:
            own[dim] //= self._parts
        parameter = torch.nn.Parameter(_filled(tuple(own), self._block), requires_grad=False)
        self.values.append(parameter)
        count = 2 if cut == GLU else 1
        for number, values in enumerate(parameter.detach().chunk(count, dim)):
            if cut != WHOLE:
                offset[dim] = (number * self._parts + self._rank) * values.shape[dim]
            before, at = ((layer[0],), (layer[1],)) if layer else ((), ())
            yield entry(
                key,
                values,
                global_shape=(*before, *shape),
                global_offset=(*at, *offset),
                prepend_axis_num=len(before),
                replica_id=(0, self._rank if cut == WHOLE else 0, 0),
            )


def write_checkpoint(folder: Path, sizes: Sizes) -> Path:
    """The same model as a checkpoint, by one process, under the keys of layers that are not all alike: as in
    a job's, each layer is an item. A whole stack of layers would be one, for one rank to read.
    """
    block = _block("cpu")
    tensors = {
        key.replace(_LAYERS, f"{_LAYERS}{layer}."): _filled(shape, block)
        for key, shape, _ in sizes.tensors()
        for layer in range(sizes.layers if key.startswith(_LAYERS) else 1)
    }
    return write_stored(folder, tensors, sizes.args())


def _block(device: str) -> torch.Tensor:
    """Random values, of which all tensors are made: billions of them would take a CPU long."""
    return torch.randn(_BLOCK, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16).to(device)


def _filled(shape: tuple[int, ...], block: torch.Tensor) -> torch.Tensor:
    values = torch.empty(shape, dtype=block.dtype, device=block.device)
    for piece in torch.split(values.view(-1), len(block)):
        piece.copy_(block[: len(piece)])
    return values
