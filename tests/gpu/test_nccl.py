"""Claims: over NCCL the export gives the bytes that it gives over Gloo.

A GPU machine need not have megatron-core: the checkpoint here is written by torch alone, under the keys and
in the shapes that megatron-core stores for a Qwen2 model (layers stacked on the first axis).
"""

from __future__ import annotations

import json
import queue
from pathlib import Path
from typing import Any

import pytest
import torch

from pp_export.core import file_names
from pp_export.distributed import process_groups
from tests.fixtures.exports import files_of
from tests.fixtures.processes import run_python, torchrun
from tests.fixtures.stored import write_stored

NUM_GPUS = torch.cuda.device_count()
LAYERS, HIDDEN, HEADS, GROUPS, HEAD_DIM, FFN, VOCAB, PADDED = 4, 256, 8, 2, 32, 512, 1000, 1024
SHAPES = {
    "embedding.word_embeddings.weight": (PADDED, HIDDEN),
    "decoder.layers.self_attention.linear_qkv.layer_norm_weight": (LAYERS, HIDDEN),
    "decoder.layers.self_attention.linear_qkv.weight": (LAYERS, (HEADS + 2 * GROUPS) * HEAD_DIM, HIDDEN),
    "decoder.layers.self_attention.linear_qkv.bias": (LAYERS, (HEADS + 2 * GROUPS) * HEAD_DIM),
    "decoder.layers.self_attention.linear_proj.weight": (LAYERS, HIDDEN, HEADS * HEAD_DIM),
    "decoder.layers.mlp.linear_fc1.layer_norm_weight": (LAYERS, HIDDEN),
    "decoder.layers.mlp.linear_fc1.weight": (LAYERS, 2 * FFN, HIDDEN),
    "decoder.layers.mlp.linear_fc2.weight": (LAYERS, HIDDEN, FFN),
    "decoder.final_layernorm.weight": (HIDDEN,),
    "output_layer.weight": (PADDED, HIDDEN),
}
ARGS = {
    "num_layers": LAYERS,
    "hidden_size": HIDDEN,
    "ffn_hidden_size": FFN,
    "num_attention_heads": HEADS,
    "group_query_attention": True,
    "num_query_groups": GROUPS,
    "kv_channels": HEAD_DIM,
    "norm_epsilon": 1e-5,
    "rotary_base": 20_000,
    "untie_embeddings_and_output_weights": True,
    "make_vocab_size_divisible_by": 128,
    "tensor_model_parallel_size": 1,
}
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "num_hidden_layers": LAYERS,
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "vocab_size": VOCAB,
    "rms_norm_eps": 1e-5,
    "rope_theta": 20_000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}

pytestmark = pytest.mark.skipif(NUM_GPUS == 0, reason="needs an NVIDIA GPU")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that name a checkpoint and its reference."""
    root = tmp_path_factory.mktemp("inputs")
    generator = torch.Generator().manual_seed(0)
    tensors = {
        key: torch.randn(shape, generator=generator).to(torch.bfloat16) for key, shape in SHAPES.items()
    }
    checkpoint = write_stored(root / "iter_0000010", tensors, ARGS)
    reference = root / "reference"
    reference.mkdir()
    (reference / "config.json").write_text(json.dumps(CONFIG))
    return ["--checkpoint", str(checkpoint), "--reference", str(reference)]


def export(inputs: list[str], folder: Path, num_ranks: int, *options: str) -> dict[str, bytes]:
    """The files of an export under torchrun, but the manifest, which tells how they were made."""
    command = [*torchrun(num_ranks, "-m", "pp_export", "export"), *inputs, "--output", str(folder / "export")]
    folder.mkdir()
    run_python([*command, *options], folder / "printed", timeout_s=300).checked()
    files = files_of(folder / "export")
    return {name: data for name, data in files.items() if name != file_names.MANIFEST}


@pytest.fixture(scope="module")
def over_gloo(inputs: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an export by one rank over Gloo."""
    files = export(inputs, tmp_path_factory.mktemp("gloo") / "1", 1, "--backend", "gloo")
    assert file_names.SUMS in files
    return files


def test_one_rank_gives_the_bytes_of_gloo(
    inputs: list[str], over_gloo: dict[str, bytes], tmp_path: Path
) -> None:
    """`--backend nccl` with one rank on a GPU machine gives the files of a CPU export."""
    assert export(inputs, tmp_path / "nccl", 1, "--backend", "nccl") == over_gloo


@pytest.mark.skipif(NUM_GPUS < 2, reason="NCCL refuses two ranks on one GPU")
@pytest.mark.parametrize("leaders", ["1", "all"])
def test_two_ranks_give_the_bytes_of_gloo(
    inputs: list[str], over_gloo: dict[str, bytes], tmp_path: Path, leaders: str
) -> None:
    """Two ranks of one stage, one or both leading, send over NCCL and give the files of a CPU export."""
    grid = ("--pipeline-parallel", "1", "--tensor-parallel", "2", "--leaders-per-stage", leaders)
    report = tmp_path / "report.json"
    options = ("--backend", "nccl", "--max-shard-size", "5GB", "--report", str(report), *grid)
    assert export(inputs, tmp_path / "nccl", 2, *options) == over_gloo
    assert json.loads(report.read_text())["stages"] == [2]


def test_the_carrier_stages_messages_through_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the carrier hands to NCCL lies on the GPU; what arrives there comes to host memory, whole.

    One GPU can't hold two ranks of NCCL, so a queue of device tensors stands in for the wire.
    """
    wire: queue.Queue[torch.Tensor] = queue.Queue()

    def send(tensor: torch.Tensor, to: int, **_: Any) -> None:
        assert tensor.is_cuda
        torch.cuda.current_stream().synchronize()
        wire.put(tensor.clone())

    def receive(tensor: torch.Tensor, sender: int, **_: Any) -> None:
        assert tensor.is_cuda
        tensor.copy_(wire.get())

    dist: Any = torch.distributed
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    try:
        carrier = process_groups._nccl()
        monkeypatch.setattr(dist, "send", send)
        monkeypatch.setattr(dist, "recv", receive)
        for size in (1, 64, 1 << 20, (32 << 20) + 3):
            message = torch.randint(0, 256, (size,), dtype=torch.uint8)
            copy = message.clone()
            carrier.send(message, 1, tag=0)
            message.zero_()  # a sent message may be reused at once
            arrived = torch.zeros(size, dtype=torch.uint8)
            carrier.receive({1: arrived}, tag=0)
            assert torch.equal(arrived, copy)
    finally:
        dist.destroy_process_group()
