"""The parallel sizes of a run, which of its ranks wrote files, and the args that all of them must share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pp_export.core.errors import CheckpointError
from pp_export.megatron import pipeline_layout

# Sizes and switches that decide what lies where, or that the model's own sizes are taken from.
DECISIVE = (
    *(
        "tensor_model_parallel_size",
        "expert_model_parallel_size",
        "expert_tensor_parallel_size",
        *pipeline_layout.ALL,
    ),
    *("hidden_size", "ffn_hidden_size", "num_attention_heads", "group_query_attention", "num_query_groups"),
    *("kv_channels", "max_position_embeddings", "padded_vocab_size", "untie_embeddings_and_output_weights"),
    *(
        "swiglu",
        "quick_geglu",
        "add_bias_linear",
        "add_qkv_bias",
        "qk_layernorm",
        "normalization",
        "norm_epsilon",
    ),
    *("apply_layernorm_1p", "position_embedding_type", "rotary_base", "rotary_percent", "rotary_interleaved"),
    *("num_experts", "moe_layer_freq", "moe_ffn_hidden_size", "moe_router_topk", "moe_grouped_gemm"),
    *("moe_shared_expert_intermediate_size", "moe_mlp_glu_interleave_size"),
    *("moe_shared_expert_glu_interleave_size", "moe_latent_size", "mtp_use_repeated_layer"),
    *("multi_latent_attention", "q_lora_rank", "kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim"),
    *("v_head_dim", "params_dtype", "bf16", "fp16", "transformer_impl"),
)


@dataclass(frozen=True)
class TrainingGrid:
    """The parallel sizes of the run that wrote the files."""

    tensor: int
    pipeline: int
    expert: int
    expert_tensor: int

    @classmethod
    def of(cls, args: Mapping[str, Any]) -> TrainingGrid:
        """As the training args say; CheckpointError where no set of files can hold such a model."""
        tensor = _size(args, "tensor_model_parallel_size")
        grid = cls(
            tensor,
            _size(args, "pipeline_model_parallel_size"),
            _size(args, "expert_model_parallel_size"),
            _size(args, "expert_tensor_parallel_size", default=tensor),
        )
        if args.get("num_experts") and grid.tensor % grid.expert_tensor:
            raise CheckpointError(
                "ranks with different parts of the experts wrote to the same file, and one part is lost",
                expected="an expert tensor parallel size that divides the tensor parallel size",
                got=f"{grid.expert_tensor} and {grid.tensor}",
                advice="if the run still has the model in memory, save it with --ckpt-format torch_dist",
            )
        return grid

    def folder(self, pipeline: int, expert: int, tensor: int) -> str:
        """The name of the folder that the ranks at this place write to."""
        name = f"mp_rank_{tensor:02d}"
        name += f"_{pipeline:03d}" if self.pipeline > 1 else ""
        return name + (f"_{expert:03d}" if self.expert > 1 else "")

    def required(self) -> Iterator[tuple[int, int, int]]:
        """The places (pipeline, expert, tensor) that are written to in any case.

        The ranks of the first dense replica and of the first replica of the experts write. In a stage they
        count through tensor parallel ranks, and through (expert, expert tensor) ones; so not every pair is
        there.
        """
        writers = range(max(self.tensor, self.expert * self.expert_tensor))
        for pipeline in range(self.pipeline):
            for rank in writers:
                yield pipeline, rank // self.expert_tensor % self.expert, rank % self.tensor

    def places(self) -> Iterator[tuple[int, int, int]]:
        """All places there can be."""
        for pipeline in range(self.pipeline):
            for expert in range(self.expert):
                for tensor in range(self.tensor):
                    yield pipeline, expert, tensor


def _size(args: Mapping[str, Any], name: str, default: int = 1) -> int:
    value = default if args.get(name) is None else args[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(
            "the training args are damaged", expected=f"{name}: a whole number", got=repr(value)
        )
    return value
