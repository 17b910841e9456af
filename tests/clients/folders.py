"""Writes what the clients are asked about: exports with random values, each beside what transformers answers.

    root/NAME/export   the folder
    root/NAME/truth.safetensors   `logits` of `IDS`, of transformers' model that the values were drawn in

The classes of tests/fixtures/families.py are joined by those whose parity with Megatron is proved elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pp_export.architecture.quantization import FP8_BLOCK, SCHEMES
from tests.clients.known import IDS, LOGITS, LOGPROBS, NUM_GREEDY, TOKENS, config_of
from tests.fixtures import adapters, decoders
from tests.fixtures.exports import export_here
from tests.fixtures.families import FAMILIES
from tests.fixtures.family_parts import Family, Layer, decoder, llama, rope
from tests.fixtures.family_proofs import random_model, write_model
from tests.fixtures.reference import write_tokenizer
from tests.fixtures.stored import on_disk
from tests.fixtures.wide_families import WIDE

TOLERANCE = 1e-4
TRUTH = "truth.safetensors"
_MOE_ARGS: dict[str, Any] = {
    "num_experts": 4,
    "moe_router_topk": 2,
    "moe_layer_freq": 1,
    "moe_router_score_function": "softmax",
    "moe_router_pre_softmax": False,
    "moe_router_topk_scaling_factor": None,
}
_TIED = ({"tie_word_embeddings": True}, {"untie_embeddings_and_output_weights": False})


def _qwen3(layer: Layer) -> None:
    llama(layer)
    layer.norms_of_queries_and_keys()


def _experts_behind_norm(layer: Layer) -> None:
    layer.normed_attention()
    layer.norms_of_queries_and_keys()
    layer.move(pre_mlp_layernorm="post_attention_layernorm")


def _qwen3_moe(layer: Layer) -> None:
    _experts_behind_norm(layer)
    layer.move(mlp__router="mlp.gate")
    layer.experts("mlp.experts")


def _mixtral(layer: Layer) -> None:
    _experts_behind_norm(layer)
    layer.move(mlp__router="block_sparse_moe.gate")
    layer.experts("block_sparse_moe.experts", "w1", "w3", "w2")


_CONFIG, _ARGS = {**rope(), "rms_norm_eps": 1e-5}, {"add_bias_linear": False}
_QWEN2 = Family("Qwen2ForCausalLM", _CONFIG, {**_ARGS, "add_qkv_bias": True}, decoder(llama))
USUAL: dict[str, Family] = {
    "llama": Family("LlamaForCausalLM", _CONFIG, _ARGS, decoder(llama)),
    "mistral": Family("MistralForCausalLM", {**_CONFIG, "sliding_window": None}, _ARGS, decoder(llama)),
    "qwen2": _QWEN2,
    "qwen2_tied": Family(
        "Qwen2ForCausalLM",
        {**_CONFIG, **_TIED[0]},
        {**_ARGS, **_TIED[1], "add_qkv_bias": True},
        decoder(llama),
    ),
    "qwen3": Family("Qwen3ForCausalLM", _CONFIG, {**_ARGS, "qk_layernorm": True}, decoder(_qwen3)),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        {
            **_CONFIG,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "norm_topk_prob": True,
            "mlp_only_layers": [],
        },
        {**_ARGS, **_MOE_ARGS, "qk_layernorm": True, "moe_ffn_hidden_size": 24},
        decoder(_qwen3_moe),
    ),
    "mixtral": Family(
        "MixtralForCausalLM",
        {**_CONFIG, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
        {**_ARGS, **_MOE_ARGS, "moe_ffn_hidden_size": 48},
        decoder(_mixtral),
    ),
}
DAMAGED = replace(
    _QWEN2,
    config={**_CONFIG, "hidden_size": 128, "intermediate_size": 192, "head_dim": 32},
    args={**_QWEN2.args, "hidden_size": 128, "ffn_hidden_size": 192, "kv_channels": 32},
)
"""What faults are made in: of sizes that vLLM takes."""
DAMAGED_TIED = replace(DAMAGED, config={**DAMAGED.config, **_TIED[0]}, args={**DAMAGED.args, **_TIED[1]})
QUANTIZED = (FP8_BLOCK, *(scheme for scheme in SCHEMES if scheme != FP8_BLOCK))
ALL: dict[str, Family] = {**USUAL, **FAMILIES}


def write_exports(root: Path, families: Mapping[str, Family], *, tokens: bool = False) -> None:
    """Export each; with `tokens`, the truth has those that transformers chooses, too."""
    for name, family in families.items():
        folder = root / name
        folder.mkdir(parents=True)
        write_model(family, folder)
        _write_tokenizer(folder / "reference", family.whole_config()["vocab_size"])
        export_here(
            checkpoint=folder / "checkpoint", reference=folder / "reference", output=folder / "export"
        )
        write_truth(random_model(family), folder, tokens=tokens)


def _write_tokenizer(folder: Path, vocab_size: int) -> None:
    """Of the class that published folders name, which either release of transformers has."""
    write_tokenizer(folder, vocab_size)
    file = folder / "tokenizer_config.json"
    file.write_text(
        json.dumps({**json.loads(file.read_text()), "tokenizer_class": "PreTrainedTokenizerFast"})
    )


def write_truth(model: Any, folder: Path, *, tokens: bool = False) -> None:
    """What a model in transformers answers."""
    ids = torch.tensor([IDS])
    with torch.no_grad():
        truth = {LOGITS: model.eval()(ids).logits.float().contiguous()}
        if tokens:
            chosen = model.generate(
                ids, do_sample=False, max_new_tokens=NUM_GREEDY, min_new_tokens=NUM_GREEDY
            )
            truth[TOKENS] = chosen[0, len(IDS) :].clone()
    save_file(truth, folder / TRUTH)


def write_older_exports(root: Path, names: Iterable[str]) -> None:
    """Exports anew with the references that release 4 of transformers wrote (`root/NAME/older/config.json`),
    into `root/NAME/older_export`.
    """
    for name in names:
        folder = root / name
        _write_tokenizer(folder / "older", config_of(folder / "older")["vocab_size"])
        index = folder / "reference" / "model.safetensors.index.json"
        if index.exists():
            (folder / "older" / index.name).write_text(index.read_text())
        export_here(
            checkpoint=folder / "checkpoint", reference=folder / "older", output=folder / "older_export"
        )


def write_quantized(scheme: str, folder: Path) -> None:
    """A dense model with linear layers in 8 bits, with what transformers answers of the values stored."""
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    write_model(WIDE["seed_oss"], folder)
    export_here(
        checkpoint=folder / "checkpoint",
        reference=folder / "reference",
        output=folder / "export",
        quantize=scheme,
    )
    is_compressed = scheme != FP8_BLOCK
    how = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if is_compressed else {}
    loader: Any = AutoModelForCausalLM
    write_truth(loader.from_pretrained(folder / "export", dtype=torch.float32, **how), folder, tokens=True)


def write_adapter(folder: Path, *, tokens: bool = False) -> None:
    """`export/base` and `export/adapter`, with what PEFT answers for both."""
    peft = adapters.of_peft()
    plain = decoders.write_pair(folder / "plain")
    export_here(**plain)
    said = {"lora_alpha": adapters.ALPHA, "lora_rank": adapters.RANK}
    pair = decoders.write_pair(
        folder / "trained", said, tensors=decoders.decoder() | adapters.as_bridge(peft)
    )
    export_here(**pair, lora="adapter")
    (folder / "export").mkdir()
    plain["output"].rename(folder / "export" / "base")
    pair["output"].rename(folder / "export" / "adapter")
    write_truth(adapters.with_peft(folder / "export" / "base", peft), folder, tokens=tokens)


def truth_of(folder: Path) -> dict[str, torch.Tensor]:
    truth: dict[str, torch.Tensor] = load_file(folder / TRUTH)
    return truth


def is_right(
    answer: Mapping[str, torch.Tensor],
    truth: Mapping[str, torch.Tensor],
    export: Path,
    tolerance: float = TOLERANCE,
) -> bool:
    """Whether the logits, all the same but for the order of additions, or every bit of every tensor on the
    disk, came out of a client. With another `tolerance` the tokens chosen don't count.
    """
    if LOGPROBS in answer:
        expected = truth[LOGITS][0, :-1].log_softmax(-1)
        same = tolerance > TOLERANCE or answer[TOKENS].tolist() == truth[TOKENS].tolist()
        return same and _close(answer[LOGPROBS], expected, tolerance)
    if LOGITS in answer:
        return _close(answer[LOGITS], truth[LOGITS], tolerance)
    tensors = on_disk(export)
    return tensors.keys() == answer.keys() and all(
        torch.equal(answer[name], value) and answer[name].dtype == value.dtype
        for name, value in tensors.items()
    )


def _close(got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    """Engines that pad the vocabulary give logits of what pads it, too."""
    got = got[..., : expected.shape[-1]]
    if got.shape != expected.shape:
        return False
    return float((got - expected).abs().max()) <= tolerance * float(expected.abs().max())
