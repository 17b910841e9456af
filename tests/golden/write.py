"""Writes a tiny checkpoint with whichever megatron-core release is on the path.

    PYTHONPATH=RELEASE torchrun --nproc-per-node N tests/golden/write.py KIND [KIND ...] [--out tests/golden]

Each kind of `KINDS` becomes the folder `OUT/<release>-<kind>`: the tracker file, the iteration that the
release stored with its own `dist_checkpointing.save`, and `expected.safetensors`, every tensor whole, under
Megatron's name with the layer's and the expert's number in the whole model. Those tensors are the ones drawn
here. This file slices them itself, and what the release then reads back from its own checkpoint has to be the
same bits.

It needs torch, numpy, packaging, psutil, einops, typing_extensions, safetensors and a release from 0.8 to
0.19, and no GPU. It imports nothing of the exporter: those environments don't hold it.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import inspect
import os
import re
import shutil
import sys
import types
import typing
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy
import packaging.version
import safetensors.torch
import torch
import torch.distributed

ITERATION = 10
LAYERS, HIDDEN, HEADS, GROUPS, HEAD_DIM, VOCAB, POSITIONS = 2, 16, 4, 2, 4, 32, 64
EXPERTS, TOP_K, EXPERT_FFN = 4, 2, 8

_LOCAL_LAYER = re.compile(r"^decoder\.layers\.(\d+)\.")
_LOCAL_EXPERT = re.compile(r"\.experts\.local_experts\.(\d+)\.")
_GROUPED = re.compile(r"\.experts\.weight([12])$")
_STACKED = (
    (re.compile(r"^decoder\.layers\.(?!\d)"), "decoder.layers.{}."),
    (re.compile(r"\.experts\.experts\.(?!\d)"), ".experts.{}."),
)
_OPTIMIZED = ("self_attention.linear_qkv.weight", "decoder.final_layernorm.weight")


@dataclass(frozen=True)
class Kind:
    """What to build and how to store it. It takes tp x pp x ep ranks."""

    tp: int = 1
    pp: int = 1
    ep: int = 1
    ffn: int = 24
    dtype: torch.dtype = torch.bfloat16
    moe_layers: tuple[int, ...] = ()  # one 0 or 1 for each layer; empty for a dense model
    listed: bool = False  # give Megatron the list of layers, which makes it store each layer by itself
    grouped: bool = False  # one parameter for all experts of a rank, the `GroupedMLP` of releases up to 0.16
    singleton: bool = False  # `singleton_local_shards`: one key per layer, expert and half of a GLU
    legacy: bool = False  # the `torch` format, one file per rank
    trained: bool = False  # stored by Megatron-LM's own `save_checkpoint`, which the wheels hold from 0.17 on


KINDS = {
    "dense": Kind(tp=2),
    "moe": Kind(tp=2, ffn=EXPERT_FFN, moe_layers=(1, 1)),
    "moe-ep": Kind(ep=2, ffn=EXPERT_FFN, moe_layers=(1, 1)),
    "moe-mixed": Kind(tp=2, moe_layers=(0, 1), listed=True),
    "moe-singleton": Kind(tp=2, moe_layers=(0, 1), listed=True, singleton=True),
    "grouped": Kind(tp=2, ffn=EXPERT_FFN, moe_layers=(1, 1), grouped=True),
    "grouped-ep": Kind(ep=2, ffn=EXPERT_FFN, moe_layers=(1, 1), grouped=True),
    "trained": Kind(tp=2, dtype=torch.float32, trained=True),
    "legacy": Kind(tp=2, legacy=True),
    "legacy-pp": Kind(pp=2, legacy=True),
    "legacy-moe-ep": Kind(ep=2, ffn=EXPERT_FFN, moe_layers=(1, 1), legacy=True),
    "legacy-grouped-tp-pp": Kind(tp=2, pp=2, ffn=EXPERT_FFN, moe_layers=(1, 1), grouped=True, legacy=True),
    "legacy-grouped-ep": Kind(ep=2, ffn=EXPERT_FFN, moe_layers=(1, 1), grouped=True, legacy=True),
    "legacy-trained": Kind(tp=2, dtype=torch.float32, legacy=True, trained=True),
}


# What the releases need in place of a GPU, of Triton and of what newer libraries dropped


def _nothing(*_args: Any, **_kwargs: Any) -> None:
    """Take any arguments and do nothing."""


def _cpu(*_args: Any, **_kwargs: Any) -> str:
    """Name the only device there is."""
    return "cpu"


def _cuda_state(*_args: Any, **_kwargs: Any) -> torch.Tensor:
    """Stand in for the state of a CUDA generator, a byte tensor of this size."""
    return torch.arange(16, dtype=torch.uint8)


def _gpu(*_args: Any, **_kwargs: Any) -> types.SimpleNamespace:
    """Describe a GPU to the checks of the arguments."""
    return types.SimpleNamespace(major=9, minor=0)


def _no_fork(*_args: Any, **_kwargs: Any) -> AbstractContextManager[None]:
    """Stand in for the fork of the CUDA generator."""
    return nullcontext()


def _not_compiled(function: Callable[..., Any] | None = None, **_options: Any) -> Callable[..., Any]:
    """Decorate like `torch.compile` and leave the function as it is."""
    return _not_compiled if function is None else function


def _write_item(*args: Any) -> Any:
    """Call torch's function of that name with the arguments that it has gained since 0.8 and since 0.12.

    Up to 0.10 the way from the GPU to here made a view of a parameter a tensor of its own.
    """
    from torch.distributed.checkpoint import filesystem

    write: Any = filesystem._write_item
    *transforms, stream, data, item, path = args
    if isinstance(data, torch.Tensor):
        data = data.clone()
    first = transforms or [filesystem._StorageWriterTransforms()]
    return write(*first, stream, data, item, path, filesystem.SerializationFormat.TORCH_SAVE)


class RMSNorm(torch.nn.RMSNorm):
    """The norm of releases before 0.10, whose own for layers without Apex knows LayerNorm only."""

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **_options: Any) -> None:
        super().__init__(hidden_size, eps=eps)


def apply_shims() -> None:
    """Let any of the releases be imported and save in this process."""
    torch.compile = _not_compiled  # type: ignore[assignment]
    torch.cuda.synchronize = _nothing
    torch.cuda.current_device = _cpu  # type: ignore[assignment]
    torch.cuda.get_rng_state = _cuda_state
    torch.cuda.get_device_properties = _gpu  # type: ignore[assignment]
    # Releases before 0.11 read their own `common.pt` with the default that torch had then.
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
    # Megatron-LM's arguments insist on it.
    os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
    if release() < (0, 10):
        # These take `packaging` from a module that setuptools no longer has.
        resources = types.ModuleType("pkg_resources")
        resources.packaging = packaging  # type: ignore[attr-defined]
        sys.modules["pkg_resources"] = resources
    # GroupedMLP only asks whether its kernels exist.
    kernels = types.ModuleType("grouped_gemm")
    kernels.ops = None  # type: ignore[attr-defined]
    sys.modules["grouped_gemm"] = kernels
    # From 0.17 on the releases are for Python 3.12.
    if not hasattr(typing, "override"):
        import typing_extensions

        typing.override = typing_extensions.override  # type: ignore[attr-defined]

    if release() >= (0, 18):
        # These import Triton for kernels that nothing here runs; torch shall not find it.
        triton = ("triton", "triton.language")
        sys.modules.update(dict.fromkeys(triton, mock.MagicMock(__spec__=None, __version__="3.5.0")))
        importlib.import_module("megatron.core.models.gpt.gpt_layer_specs")
        for name in triton:
            del sys.modules[name]

    from megatron.core.dist_checkpointing.strategies import filesystem_async
    from megatron.core.models.gpt import gpt_layer_specs
    from megatron.core.tensor_parallel.random import CudaRNGStatesTracker
    from megatron.core.transformer import transformer_block

    CudaRNGStatesTracker.fork = _no_fork
    if release() < (0, 9):
        from megatron.core.dist_checkpointing.strategies.torch import MCoreSavePlanner

        # Newer torch plans these by itself.
        MCoreSavePlanner._add_non_coordinator_iobytes_request = _nothing
    if release() < (0, 13):
        filesystem_async._write_item = _write_item
    if release() < (0, 10):
        gpt_layer_specs.LNImpl = RMSNorm
        transformer_block.LayerNormImpl = RMSNorm


def release() -> tuple[int, ...]:
    """The version of megatron-core, as numbers."""
    return packaging.version.Version(importlib.metadata.version("megatron-core")).release


def _known(function: Callable[..., Any], **options: Any) -> dict[str, Any]:
    """Those of the options that this release's function takes."""
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in options.items() if name in parameters}


# The model


def build_model(kind: Kind) -> Any:
    """Build this rank's `GPTModel`, with storage but no meaningful values."""
    from megatron.core import parallel_state as mpu
    from megatron.core.models.gpt import gpt_layer_specs as specs
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer.transformer_config import TransformerConfig

    moe: dict[str, Any] = {}
    if kind.moe_layers:
        moe = {
            "num_moe_experts": EXPERTS,
            "moe_ffn_hidden_size": EXPERT_FFN,
            "moe_layer_freq": list(kind.moe_layers) if kind.listed else 1,
            "moe_router_topk": TOP_K,
            "moe_router_load_balancing_type": "none",
            "moe_token_dispatcher_type": "allgather",
            "moe_grouped_gemm": kind.grouped,
            "moe_use_legacy_grouped_gemm": kind.grouped,
        }
    options = {
        "num_layers": LAYERS,
        "hidden_size": HIDDEN,
        "ffn_hidden_size": kind.ffn,
        "num_attention_heads": HEADS,
        "num_query_groups": GROUPS,
        "kv_channels": HEAD_DIM,
        "layernorm_epsilon": 1e-6,
        "normalization": "RMSNorm",
        "gated_linear_unit": True,
        "activation_func": torch.nn.functional.silu,
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "params_dtype": kind.dtype,
        "pipeline_dtype": kind.dtype,
        "bf16": kind.dtype is torch.bfloat16,
        "tensor_model_parallel_size": kind.tp,
        "pipeline_model_parallel_size": kind.pp,
        "expert_model_parallel_size": kind.ep,
        "use_cpu_initialization": True,
        "perform_initialization": False,
        "bias_activation_fusion": False,
        "bias_dropout_fusion": False,
        "masked_softmax_fusion": False,
        "apply_rope_fusion": False,
        "persist_layer_norm": False,
        "gradient_accumulation_fusion": False,
    }
    config = TransformerConfig(**_known(TransformerConfig, **options, **moe))
    if kind.listed:
        block = specs.get_gpt_decoder_block_spec
        spec = block(config, use_transformer_engine=False, **_known(block, normalization="RMSNorm"))
    else:
        layer = specs.get_gpt_layer_local_spec
        wanted = {
            "num_experts": EXPERTS if kind.moe_layers else None,
            "moe_grouped_gemm": kind.grouped,
            "moe_use_legacy_grouped_gemm": kind.grouped,
            "normalization": "RMSNorm",
        }
        spec = layer(**_known(layer, **wanted))
    model = GPTModel(
        config=config,
        transformer_layer_spec=spec,
        vocab_size=VOCAB,
        max_sequence_length=POSITIONS,
        pre_process=mpu.is_pipeline_first_stage(),
        post_process=mpu.is_pipeline_last_stage(),
        share_embeddings_and_output_weights=False,
        position_embedding_type="rope",
        rotary_base=1_000_000,
    )
    # The norms are plain torch modules that don't know params_dtype; training casts the whole model.
    return model.to(kind.dtype)


# Values


def draw(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Draw a whole parameter; a norm lies around one and a bias around zero, but on neither."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    values = torch.randn(shape, generator=generator)
    if "norm" in name:
        values = values * 0.2 + 1.0
    elif len(shape) == 1:
        values = values * 0.3
    else:
        values = values * shape[-1] ** -0.5
    return values.to(dtype)


def _split_dim(name: str) -> int | None:
    """The dim that tensor parallel ranks share, None for a parameter that each has whole."""
    if name.endswith(("linear_proj.weight", "linear_fc2.weight")):
        return 1
    if re.search(r"linear_qkv\.(weight|bias)$|linear_fc1\.weight$|^output_layer\.|word_embeddings\.", name):
        return 0
    return None


def own_slice(name: str, whole: torch.Tensor, rank: int, size: int) -> torch.Tensor:
    """What tensor parallel rank `rank` of `size` holds of a parameter: of a GLU its gates, then its ups."""
    dim = _split_dim(name)
    if dim is None:
        return whole
    parts = whole.chunk(2) if name.endswith("linear_fc1.weight") else (whole,)
    return torch.cat([part.chunk(size, dim)[rank] for part in parts], dim)


def whole_shape(name: str, own: torch.Size, size: int) -> tuple[int, ...]:
    """The shape of a parameter of which one of `size` tensor parallel ranks holds `own`."""
    dim = _split_dim(name)
    return tuple(n * size if i == dim else n for i, n in enumerate(own))


def fill(model: Any, kind: Kind, names: Callable[[str], str]) -> dict[str, torch.Tensor]:
    """Give this rank's parameters their values and return the whole tensors that those are cut from."""
    from megatron.core import parallel_state as mpu

    tp_rank, pp_rank = mpu.get_tensor_model_parallel_rank(), mpu.get_pipeline_model_parallel_rank()
    experts = EXPERTS // kind.ep
    first_expert = mpu.get_expert_model_parallel_rank() * experts
    wholes: dict[str, torch.Tensor] = {}

    def value(name: str, shape: torch.Size) -> torch.Tensor:
        wholes[name] = draw(name, whole_shape(name, shape, kind.tp), kind.dtype)
        return own_slice(name, wholes[name], tp_rank, kind.tp)

    for own_name, parameter in model.named_parameters():
        name = _LOCAL_LAYER.sub(
            lambda match: f"decoder.layers.{int(match[1]) + pp_rank * LAYERS // kind.pp}.", own_name
        )
        grouped = _GROUPED.search(name)
        if grouped is None:
            name = _LOCAL_EXPERT.sub(lambda match: f".experts.{int(match[1]) + first_expert}.", name)
            parameter.data.copy_(value(names(name), parameter.shape))
            continue
        # All experts of the rank lie behind one another, each one the transpose of a linear layer's weight.
        shape = (experts, HIDDEN, -1) if grouped[1] == "1" else (experts, -1, HIDDEN)
        for e, expert in enumerate(parameter.data.view(shape)):
            single = _GROUPED.sub(f".experts.{first_expert + e}.linear_fc{grouped[1]}.weight", name)
            expert.copy_(value(single, expert.T.shape).T)
    return wholes


def stored_name(name: str) -> str:
    """A parameter's name in torch_dist, where a local layer's norms are named like Transformer Engine's."""
    name = name.replace(".input_layernorm.", ".self_attention.linear_qkv.layer_norm_")
    return name.replace(".pre_mlp_layernorm.", ".mlp.linear_fc1.layer_norm_")


def same_name(name: str) -> str:
    """A parameter's name in the legacy format, which is its own."""
    return name


# What training stores beside the weights


def training_args(kind: Kind) -> argparse.Namespace:
    """The arguments that the Megatron-LM of this release had, as far as they tell what the model is."""
    from megatron.core.enums import ModelType

    minor = release()[1]
    args: dict[str, Any] = {
        "num_layers": LAYERS,
        "encoder_num_layers": LAYERS,
        "hidden_size": HIDDEN,
        "ffn_hidden_size": kind.ffn,
        "num_attention_heads": HEADS,
        "kv_channels": HEAD_DIM,
        "group_query_attention": True,
        "num_query_groups": GROUPS,
        "max_position_embeddings": POSITIONS,
        "seq_length": POSITIONS,
        "position_embedding_type": "rope",
        "use_rotary_position_embeddings": True,
        "rotary_base": 1_000_000,
        "rotary_percent": 1.0,
        "rotary_interleaved": False,
        "rotary_seq_len_interpolation_factor": None,
        "make_vocab_size_divisible_by": 16,
        "vocab_size": None,
        "padded_vocab_size": VOCAB,
        "normalization": "RMSNorm",
        "norm_epsilon": 1e-6,
        "apply_layernorm_1p": False,
        "swiglu": True,
        "squared_relu": False,
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "qk_layernorm": False,
        "untie_embeddings_and_output_weights": True,
        "params_dtype": kind.dtype,
        "bf16": kind.dtype is torch.bfloat16,
        "fp16": False,
        "model_type": ModelType.encoder_or_decoder,
        "transformer_impl": "local",
        "tensor_model_parallel_size": kind.tp,
        "pipeline_model_parallel_size": kind.pp,
        "virtual_pipeline_model_parallel_size": None,
        "num_layers_per_virtual_pipeline_stage": None,
        "expert_model_parallel_size": kind.ep,
        "context_parallel_size": 1,
        "sequence_parallel": False,
        "use_distributed_optimizer": minor < 16,
        "world_size": kind.tp * kind.pp * kind.ep,
        "data_parallel_size": kind.ep,
        "rank": 0,
        "iteration": ITERATION,
        "consumed_train_samples": 8 * ITERATION,
        "optimizer": "adam",
        "tokenizer_type": "HuggingFaceTokenizer",
        "num_experts": EXPERTS if kind.moe_layers else None,
        "moe_router_topk": TOP_K,
        "moe_grouped_gemm": kind.grouped,
        "use_dist_ckpt": not kind.legacy,
        "save": "/checkpoints/run",
    }
    since: dict[int, dict[str, Any]] = {
        9: {"ckpt_format": "torch" if kind.legacy else "torch_dist", "multi_latent_attention": False},
        10: {
            "moe_layer_freq": list(kind.moe_layers) if kind.listed else 1,
            "moe_ffn_hidden_size": EXPERT_FFN if kind.moe_layers else None,
            "moe_shared_expert_intermediate_size": None,
            "expert_tensor_parallel_size": kind.tp,
            "decoder_first_pipeline_num_layers": None,
            "decoder_last_pipeline_num_layers": None,
        },
        11: {
            "moe_router_score_function": "softmax",
            "moe_router_enable_expert_bias": False,
            "account_for_embedding_in_pipeline_split": False,
            "account_for_loss_in_pipeline_split": False,
            "use_rope_scaling": False,
        },
        12: {"mtp_num_layers": None},
        13: {"pipeline_model_parallel_layout": None},
        15: {"softmax_type": "vanilla"},
        16: {"attention_output_gate": False, "linear_attention_freq": None},
    }
    for first, fields in since.items():
        if minor >= first:
            args |= fields
    if minor < 9 and not kind.legacy:
        args["dist_ckpt_format"] = "torch_dist"
    if minor >= 11:
        from megatron.core.transformer.enums import AttnBackend

        args["attention_backend"] = AttnBackend.auto
        if minor < 17:
            args["moe_use_legacy_grouped_gemm"] = kind.grouped
    return argparse.Namespace(**args)


def common_state(kind: Kind) -> dict[str, Any]:
    """The part of a checkpoint that every rank has alike and that is no tensor."""
    return {
        "args": training_args(kind),
        "checkpoint_version": 3.0,
        "iteration": ITERATION,
        "num_floating_point_operations_so_far": 123_456_789,
        "opt_param_scheduler": {"max_lr": 3e-4, "num_steps": 8 * ITERATION, "lr_decay_style": "cosine"},
    }


def param_groups() -> list[dict[str, Any]]:
    """Adam's settings."""
    return [
        {
            "lr": 2.5e-4,
            "betas": (0.9, 0.95),
            "eps": 1e-8,
            "weight_decay": 0.1,
            "step": ITERATION,
            "params": [0],
        }
    ]


def rng_states() -> list[dict[str, Any]]:
    """Random generators of one rank; Python's and torch's, which are big, are in the kinds `trained` only."""
    return [
        {
            "np_rng_state": numpy.random.RandomState(1234).get_state(),
            "cuda_rng_state": _cuda_state(),
            "rng_tracker_states": {"model-parallel-rng": _cuda_state()},
        }
    ]


def optimizer_tensors(sharded: dict[str, Any]) -> dict[str, Any]:
    """Adam's first moment of some parameters.

    Up to 0.15 the distributed optimizer stores it flat, in what `flattened_range` says that the rank owns.
    """
    from megatron.core.dist_checkpointing.optimizer import make_sharded_optimizer_tensor

    state: dict[str, Any] = {}
    for name, entry in sharded.items():
        if not name.endswith(_OPTIMIZED) or not hasattr(entry, "local_shape"):
            continue
        values = entry.data.detach().float() * 1e-3 + 1e-5
        tensor = make_sharded_optimizer_tensor(entry, values, "optimizer.state.exp_avg")
        if release() < (0, 16):
            flat = slice(0, values.numel())
            tensor = replace(tensor, data=values.flatten(), flattened_range=flat)
        state[f"optimizer.state.exp_avg.{name}"] = tensor
    return state


# Saving


def save_torch_dist(model: Any, kind: Kind, folder: Path) -> None:
    """Store as training does with `--ckpt-format torch_dist`."""
    from megatron.core import dist_checkpointing
    from megatron.core import parallel_state as mpu
    from megatron.core.dist_checkpointing.mapping import ShardedObject
    from megatron.core.dist_checkpointing.serialization import get_default_save_sharded_strategy

    metadata = {"singleton_local_shards": kind.singleton, "chained_optim_avoid_prefix": True}
    sharded = model.sharded_state_dict(**({"metadata": metadata} if release() >= (0, 14) else {}))
    state = common_state(kind) | {
        "model": sharded,
        "optimizer": {"optimizer": {"param_groups": param_groups()}, **optimizer_tensors(sharded)},
        "rng_state": ShardedObject(
            "rng_state",
            rng_states(),
            (kind.pp, kind.tp),
            (mpu.get_pipeline_model_parallel_rank(), mpu.get_tensor_model_parallel_rank()),
            replica_id=mpu.get_data_parallel_rank(with_context_parallel=True),
        ),
    }
    if torch.distributed.get_rank() == 0:
        folder.mkdir()
    torch.distributed.barrier()
    save = dist_checkpointing.save
    strategy = get_default_save_sharded_strategy("torch_dist")
    save(state, str(folder), strategy, **_known(save, content_metadata=metadata))
    torch.distributed.barrier()


def save_legacy(model: Any, kind: Kind, folder: Path) -> None:
    """Store as training does with `--ckpt-format torch`: what each rank holds, in a file of its own."""
    from megatron.core import parallel_state as mpu

    parts = [f"mp_rank_{mpu.get_tensor_model_parallel_rank():02d}"]
    if kind.pp > 1:
        parts.append(f"{mpu.get_pipeline_model_parallel_rank():03d}")
    if kind.ep > 1:
        parts.append(f"{mpu.get_expert_model_parallel_rank():03d}")
    states = {i: {"exp_avg": p.detach().float() * 1e-3} for i, p in enumerate(list(model.parameters())[:2])}
    state = common_state(kind) | {
        "model": model.state_dict_for_save_checkpoint(),
        "optimizer": {"optimizer": {"state": states, "param_groups": param_groups()}},
        "rng_state": rng_states(),
    }
    path = folder / "_".join(parts) / "model_optim_rng.pt"
    path.parent.mkdir(parents=True)
    torch.save(state, path)
    torch.distributed.barrier()


def trained_args(kind: Kind) -> argparse.Namespace:
    """The arguments as Megatron-LM itself parses and completes them."""
    from megatron.training import arguments

    line = f"""
        --num-layers {LAYERS} --hidden-size {HIDDEN} --ffn-hidden-size {kind.ffn} --kv-channels {HEAD_DIM}
        --num-attention-heads {HEADS} --group-query-attention --num-query-groups {GROUPS} --add-qkv-bias
        --max-position-embeddings {POSITIONS} --seq-length {POSITIONS} --position-embedding-type rope
        --rotary-base 1000000 --swiglu --normalization RMSNorm --norm-epsilon 1e-6 --disable-bias-linear
        --untie-embeddings-and-output-weights --make-vocab-size-divisible-by 16 --transformer-impl local
        --tensor-model-parallel-size {kind.tp} --pipeline-model-parallel-size {kind.pp}
        --use-cpu-initialization --no-masked-softmax-fusion --no-bias-swiglu-fusion --no-rope-fusion
        --no-persist-layer-norm --no-gradient-accumulation-fusion --micro-batch-size 1 --global-batch-size 8
        --train-iters 100 --lr 3e-4 --mock-data --tokenizer-type NullTokenizer --vocab-size {VOCAB - 1}
        --save . --save-interval {ITERATION} --ckpt-format {"torch" if kind.legacy else "torch_dist"}
    """
    with mock.patch.object(sys, "argv", ["pretrain_gpt.py", *line.split()]):
        args: argparse.Namespace = arguments.parse_args()
    arguments.validate_args(args)
    # Building the tokenizer sets this one.
    args.padded_vocab_size = VOCAB
    return args


def trained_optimizer(model: Any) -> Any:
    """Megatron's optimizer, of a model of which most is frozen, to keep the file small."""
    from megatron.core.optimizer import OptimizerConfig
    from megatron.core.optimizer.optimizer import FP32Optimizer

    parameters = [value for name, value in model.named_parameters() if name.endswith(_OPTIMIZED)]
    adam = torch.optim.AdamW([{"params": parameters, "wd_mult": 1.0, "lr_mult": 1.0}], lr=3e-4)

    def start(optimizer: Any, _config: Any = None) -> None:
        for parameter in parameters:
            for moment in ("exp_avg", "exp_avg_sq"):
                optimizer.state[parameter][moment] = parameter.detach() * 1e-3 + 1e-5

    start(adam)
    # The constructor wants one number on a GPU.
    tensor = torch.tensor
    with mock.patch.object(
        torch, "tensor", lambda *args, **options: tensor(*args, **options | {"device": "cpu"})
    ):
        return FP32Optimizer(adam, OptimizerConfig(lr=3e-4), start)


def save_trained(model: Any, kind: Kind) -> None:
    """Store by Megatron-LM's `save_checkpoint`, into the current folder."""
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
    from megatron.training import checkpointing, global_vars

    args = trained_args(kind)
    args.consumed_train_samples = 8 * ITERATION
    global_vars.set_args(args)
    optimizer = trained_optimizer(model)
    scheduler = OptimizerParamScheduler(
        optimizer, 0.0, 3e-4, 3e-5, 16, 800, "cosine", 0.1, 0.1, 800, "constant"
    )
    scheduler.step(8 * ITERATION)
    checkpointing.save_checkpoint(ITERATION, [model], optimizer, scheduler, 123_456_789)


# What the release reads back


def _unstacked(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters under one stored key, with the numbers of layer and expert in their names."""
    for stacked, single in _STACKED:
        if stacked.search(name):
            for i, part in enumerate(tensor):
                yield from _unstacked(stacked.sub(single.format(i), name), part)
            return
    yield re.sub(r"\.experts\.experts\.", ".experts.", name), tensor


def read_back(folder: Path) -> dict[str, torch.Tensor]:
    """Every model tensor, whole, as the release itself finds it in its checkpoint."""
    from megatron.core import dist_checkpointing

    wanted = {
        key: tensor
        for key, tensor in dist_checkpointing.load_tensors_metadata(str(folder)).items()
        if not key.startswith("optimizer.")
    }
    loaded = dist_checkpointing.load(wanted, str(folder), validate_access_integrity=False)
    tensors = {k: v for k, v in loaded.items() if isinstance(v, torch.Tensor)}
    found = {name: part for key in tensors for name, part in _unstacked(key, tensors[key])}
    for name in [name for name in found if name.endswith("_w")]:
        found[name[:-2]] = torch.cat([found.pop(name), found.pop(f"{name[:-2]}_v")])
    return found


def _check(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Raise unless both hold the same bits under the same names."""
    if found.keys() != expected.keys():
        raise RuntimeError(f"stored other tensors than drawn: {sorted(found.keys() ^ expected.keys())}")
    different = [
        n for n in found if found[n].dtype != expected[n].dtype or not torch.equal(found[n], expected[n])
    ]
    if different:
        raise RuntimeError(f"the release reads back other values: {different}")


def write(kind: Kind, checkpoint: Path) -> None:
    """Write one golden checkpoint: the ranks of this launch together."""
    from megatron.core import parallel_state as mpu

    mpu.destroy_model_parallel()
    start = mpu.initialize_model_parallel
    sizes = {
        "tensor_model_parallel_size": kind.tp,
        "pipeline_model_parallel_size": kind.pp,
        "expert_model_parallel_size": kind.ep,
    }
    start(**sizes, **_known(start, create_gloo_process_groups=False))
    if torch.distributed.get_rank() == 0:
        shutil.rmtree(checkpoint, ignore_errors=True)
        checkpoint.mkdir(parents=True)
    torch.distributed.barrier()
    # The path that a release is given ends up in its `.metadata`.
    os.chdir(checkpoint)
    folder = Path(f"iter_{ITERATION:07d}")
    model = build_model(kind)
    wholes = fill(model, kind, same_name if kind.legacy else stored_name)
    everyones: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyones, wholes)
    merged = {name: tensor for own in everyones for name, tensor in own.items()}
    expected = {name: merged[name] for name in sorted(merged)}
    if kind.trained:
        save_trained(model, kind)
    elif kind.legacy:
        save_legacy(model, kind, folder)
    else:
        save_torch_dist(model, kind, folder)
    if not kind.legacy:
        _check(read_back(folder), expected)
    if torch.distributed.get_rank() == 0:
        Path("expected.safetensors").write_bytes(safetensors.torch.save(expected))
        Path("latest_checkpointed_iteration.txt").write_text(str(ITERATION))
    torch.distributed.barrier()


def main() -> None:
    """Write the kinds of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("kinds", nargs="+", choices=KINDS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    out = options.out.resolve()
    apply_shims()
    torch.distributed.init_process_group("gloo")
    version = ".".join(map(str, release()))
    for kind in options.kinds:
        write(KINDS[kind], out / f"{version}-{kind}")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
