"""Catalogs of large models, built directly: no file, no value, only what a checkpoint says of itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pp_export.architecture.sizes import ModelSizes
from pp_export.checkpoint.catalog import Catalog, Description, StoredBox, StoredItem, StoredTensor
from pp_export.core.dtypes import from_torch
from pp_export.core.tensors import Shape
from tests.fixtures.catalogs import COLUMN, GLU, ROW, WHOLE, cut_boxes

_DTYPE = from_torch("bfloat16")
_RECORD_BYTES = 1 << 10
"""What torch.save puts around a tensor's bytes, about."""


@dataclass(frozen=True)
class Model:
    """A decoder with Qwen3-MoE's tensors, or Llama's where there are no experts, and the layout of the
    training job that stored it: `tensor` x `expert` x `pipeline` ranks, experts cut `expert_tensor` times.
    """

    name: str
    num_layers: int
    hidden: int
    heads: int
    groups: int
    head_dim: int
    ffn: int
    vocab: int
    num_experts: int = 0
    tensor: int = 8
    expert: int = 1
    pipeline: int = 1
    expert_tensor: int = 1

    @property
    def table(self) -> str:
        """The packaged architecture table that fits."""
        return "qwen3_moe" if self.num_experts else "llama"

    @property
    def sizes(self) -> ModelSizes:
        values = {
            "num_attention_heads": self.heads,
            "num_query_groups": self.groups,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab,
        }
        return ModelSizes(values, "training args", self.vocab, self.vocab)

    def tensors(self) -> Iterator[tuple[str, Shape, str, int, int]]:
        """Key, shape and cut of every stored tensor, and the pipeline and the expert rank that stored it."""
        vocabulary = (self.vocab, self.hidden)
        yield "embedding.word_embeddings.weight", vocabulary, COLUMN, 0, 0
        for layer in range(self.num_layers):
            stage = layer * self.pipeline // self.num_layers
            for key, shape, cut in self._attention(f"decoder.layers.{layer}."):
                yield key, shape, cut, stage, 0
            at = f"decoder.layers.{layer}.mlp."
            if not self.num_experts:
                yield f"{at}linear_fc1.weight", (2 * self.ffn, self.hidden), GLU, stage, 0
                yield f"{at}linear_fc2.weight", (self.hidden, self.ffn), ROW, stage, 0
                continue
            yield f"{at}router.weight", (self.num_experts, self.hidden), WHOLE, stage, 0
            for number in range(self.num_experts):
                expert = number * self.expert // self.num_experts
                key = f"{at}experts.experts.{number}."
                yield f"{key}linear_fc1.weight", (2 * self.ffn, self.hidden), GLU, stage, expert
                yield f"{key}linear_fc2.weight", (self.hidden, self.ffn), ROW, stage, expert
        yield "decoder.final_layernorm.weight", (self.hidden,), WHOLE, self.pipeline - 1, 0
        yield "output_layer.weight", vocabulary, COLUMN, self.pipeline - 1, 0

    def _attention(self, at: str) -> Iterator[tuple[str, Shape, str]]:
        rows = (self.heads + 2 * self.groups) * self.head_dim
        norms = ("self_attention.linear_qkv.layer_norm_weight", "mlp.linear_fc1.layer_norm_weight")
        if self.num_experts:
            norms = ("input_layernorm.weight", "pre_mlp_layernorm.weight")
        yield f"{at}self_attention.linear_qkv.weight", (rows, self.hidden), COLUMN
        yield f"{at}self_attention.linear_proj.weight", (self.hidden, self.heads * self.head_dim), ROW
        for name in norms:
            yield f"{at}{name}", (self.hidden,), WHOLE
        if self.num_experts:
            yield f"{at}self_attention.q_layernorm.weight", (self.head_dim,), WHOLE
            yield f"{at}self_attention.k_layernorm.weight", (self.head_dim,), WHOLE

    def catalog(self) -> Catalog:
        """What the job stored, each rank in a file of its own, one box after another."""
        ends: dict[tuple[int, int, int], int] = {}
        files: dict[tuple[int, int, int], int] = {}
        items: list[StoredItem] = []
        tensors = []
        for key, shape, cut, stage, expert in self.tensors():
            parts = self.expert_tensor if ".experts." in key else self.tensor
            boxes = []
            for number, box in enumerate(cut_boxes(shape, cut, parts)):
                rank = (stage, expert, number % parts)
                begin, length = ends.get(rank, 0), box.volume * _DTYPE.itemsize + _RECORD_BYTES
                ends[rank] = begin + length
                boxes.append(StoredBox(box, len(items)))
                items.append(StoredItem(files.setdefault(rank, len(files)), begin, length))
            tensors.append(StoredTensor(key, shape, _DTYPE, tuple(boxes)))
        about = Description("folder", "torch_dist", "a benchmark", 1, None, {}, {}, reader="DCP")
        names = tuple(f"__{number}_0.distcp" for number in range(len(files)))
        return Catalog(about, names, tuple(items), tuple(tensors))


MODELS = {
    model.name: model
    for model in (
        Model("llama-3.1-405b", 126, 16384, 128, 8, 128, 53248, 128256, tensor=8, pipeline=16),
        Model("qwen3-235b-a22b", 94, 4096, 64, 4, 128, 1536, 151936, 128, tensor=4, expert=8, pipeline=8),
        Model("deepseek-v3", 61, 7168, 128, 128, 128, 2048, 129280, 256, tensor=2, expert=64, pipeline=16),
        Model(
            *("moe-1m", 164, 2048, 32, 4, 128, 512, 151936, 1024),
            tensor=4,
            expert=64,
            pipeline=4,
            expert_tensor=2,
        ),
    )
}
"""DeepSeek-V3 in shape only: attention of Qwen3's form, experts in all layers."""


def toy(num_layers: int, num_experts: int) -> Model:
    """A model of `6 * num_layers * num_experts` boxes and a few."""
    return Model(
        f"moe-{num_layers}x{num_experts}",
        *(num_layers, 2048, 32, 4, 128, 512, 151936, num_experts),
        tensor=4,
        expert=min(64, num_experts),
        pipeline=min(4, num_layers),
        expert_tensor=2,
    )
