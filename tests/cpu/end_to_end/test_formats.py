"""Claims: one model, stored as other frameworks and formats store it, gives the same folder byte for byte.

torch's own writer makes the folders. Keys, halves and configs are those that each framework's sources give;
where no release that runs here can write a format itself, the docstring says so.
"""

from __future__ import annotations

import json
import pickle
import re
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.distributed.checkpoint.metadata import TensorProperties

import pp_export
from pp_export.checkpoint.formats import describe_checkpoint
from pp_export.core import file_names
from pp_export.core.errors import AccountingError, CheckpointError
from tests.cpu.conftest import Checkpoint, Reference
from tests.fixtures.exports import export_here, remembering
from tests.fixtures.models import MODELS, ToyModel
from tests.fixtures.stored import canonical_values, read_stored, write_plain, write_stored

MODEL_NAMES = ("qwen2", "qwen3_moe")
Tensors = dict[str, torch.Tensor]
_NORMS = {
    ".self_attention.linear_qkv.layer_norm_weight": ".input_layernorm.weight",
    ".mlp.linear_fc1.layer_norm_weight": ".pre_mlp_layernorm.weight",
}


class Source:
    """A real checkpoint of a model, its tensors by canonical name, and the sums of its export."""

    def __init__(self, name: str, checkpoint: Path, reference: Path, folder: Path) -> None:
        self.model: ToyModel = MODELS[name]
        self.checkpoint, self.reference, self.folder = checkpoint, reference, folder
        self.stored, self.args = read_stored(checkpoint)
        self.tensors = canonical_values(self.stored)
        self.sums = self.export(checkpoint, "truth")

    def export(self, checkpoint: Path, name: str) -> str:
        output = self.folder / name
        export_here(checkpoint=checkpoint, reference=self.reference, output=output)
        with remembering():
            compared = pp_export.diff(checkpoint, output)
        assert compared.identical, compared
        return (output / file_names.SUMS).read_text()


@pytest.fixture(scope="module", params=MODEL_NAMES)
def source(
    request: pytest.FixtureRequest,
    checkpoint: Checkpoint,
    reference: Reference,
    tmp_path_factory: pytest.TempPathFactory,
) -> Source:
    """A dense model and one with experts, saved by megatron-core."""
    name = request.param
    return Source(name, checkpoint(name, "tp1"), reference(name), tmp_path_factory.mktemp(f"formats-{name}"))


def local_names(tensors: Tensors) -> Tensors:
    """The names of a module's own parameters, as torch sees them: norms apart, experts in a list."""
    found = {}
    for name, values in tensors.items():
        own = re.sub(r"\.experts\.(?=\d)", ".experts.local_experts.", name)
        for stored, bare in _NORMS.items():
            own = own.replace(stored, bare)
        found[own] = values
    return found


def halves(tensors: Tensors) -> Tensors:
    """Gate and up projection under keys of their own, grouped experts with their number behind the weight."""
    found = {}
    for name, values in tensors.items():
        key = re.sub(r"\.experts\.(\d+)\.(linear_fc\d)\.weight", r".experts.\2.weight\1", name)
        if ".linear_fc1.weight" in key:
            found[f"{key}_w"], found[f"{key}_v"] = (half.clone() for half in values.chunk(2))
        else:
            found[key] = values
    return found


def transformer_config(model: ToyModel) -> dict[str, Any]:
    """The `model` section of a run_config.yaml, as Megatron-Bridge's providers are written to YAML."""
    return {
        "_target_": "megatron.bridge.models.gpt_provider.GPTModelProvider",
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "ffn_hidden_size": model.ffn_size,
        "num_attention_heads": model.num_heads,
        "num_query_groups": model.num_query_groups,
        "kv_channels": model.kv_channels,
        "num_moe_experts": model.num_experts,
        "moe_ffn_hidden_size": model.expert_ffn_size,
        "moe_router_topk": model.router_topk,
        "moe_mlp_glu_interleave_size": 4 if model.num_experts else None,
        "layernorm_epsilon": model.norm_epsilon,
        "layernorm_zero_centered_gamma": False,
        "normalization": "RMSNorm",
        "gated_linear_unit": True,
        "activation_func": {"_target_": "torch.nn.functional.silu", "_call_": False},
        "rotary_base": model.rotary_base,
        "rotary_interleaved": False,
        "share_embeddings_and_output_weights": model.tied,
        "should_pad_vocab": True,
        "make_vocab_size_divisible_by": model.vocab_divisor,
        "vocab_size": model.vocab_size,
        "params_dtype": {"_target_": "getattr", "_args_": ["torch", "float32"]},
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
    }


def run_config(model: ToyModel) -> str:
    return yaml.safe_dump({"_target_": "x.Config", "model": transformer_config(model), "checkpoint": {}})


# --- who wrote it


def test_megatron_bridge(source: Source, tmp_path: Path) -> None:
    """A Bridge folder has sizes in run_config.yaml, no args, and rows that are already disentangled.

    Bridge doesn't run without a GPU; megatron-core wrote the tensors, and the config has its providers'
    words.
    """
    root = tmp_path / "bridge"
    shutil.copytree(source.checkpoint, root)
    folder = root / "iter_0000010"
    torch.save({"iteration": 10, "checkpoint_version": 3.0}, folder / "common.pt")
    (folder / "run_config.yaml").write_text(run_config(source.model))
    torch.save({"step": torch.tensor(10)}, folder / "train_state.pt")
    description = describe_checkpoint(root, None).description
    assert description.writer == "Megatron-Bridge, megatron-core 0.16 to 0.18"
    assert description.iteration == 10
    assert description.args is not None
    assert description.args["num_experts"] == source.model.num_experts
    assert source.export(root, "bridge") == source.sums


def test_a_run_config_is_held_against_the_reference(source: Source, tmp_path: Path) -> None:
    """Sizes of a Bridge run that the reference contradicts stop the export, with both values."""
    root = tmp_path / "bridge"
    shutil.copytree(source.checkpoint, root)
    config = transformer_config(source.model) | {"num_query_groups": 2, "gated_linear_unit": False}
    (root / "iter_0000010" / "run_config.yaml").write_text(yaml.safe_dump({"model": config}))
    with pytest.raises(AccountingError) as caught:
        source.export(root, "wrong")
    assert any("num_query_groups" in f and "2" in f for f in caught.value.findings)
    assert any(finding.startswith("activation: ") for finding in caught.value.findings)


@pytest.mark.parametrize("text", ["model: !!python/object/apply:os.system [x]", "[", "- 1", "model: 3"])
def test_a_run_config_is_data_only(source: Source, tmp_path: Path, text: str) -> None:
    """A config that isn't plain YAML with a model section is refused by name, and nothing of it is run."""
    root = tmp_path / "bridge"
    shutil.copytree(source.checkpoint, root)
    (root / "iter_0000010" / "run_config.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=r"run_config\.yaml") as caught:
        describe_checkpoint(root, None)
    assert caught.value.where["file"].endswith("run_config.yaml")


def test_nemo_2(source: Source, tmp_path: Path) -> None:
    """NeMo 2 keeps the tensors in `weights`, with a prefix, and the config in `context`.

    Key level: NeMo doesn't run without a GPU. Its optimizer's keys have the prefix inside.
    """
    tensors = {f"module.{key}": values for key, values in source.stored.items()}
    tensors["optimizer.state.exp_avg.module.output_layer.weight"] = torch.zeros(3)
    write_stored(tmp_path / "nemo" / "weights", tensors, None)
    context = tmp_path / "nemo" / "context"
    context.mkdir()
    value = {"_target_": "nemo.x.Model", "config": transformer_config(source.model)}
    (context / "model.yaml").write_text(yaml.safe_dump(value))
    catalog = describe_checkpoint(tmp_path / "nemo", None)
    assert catalog.description.writer == "NeMo 2"
    assert catalog.description.other["optimizer"][0] == 1
    assert source.export(tmp_path / "nemo", "nemo") == source.sums


@pytest.mark.parametrize("prefix", ["model.", "model.module.", "model.module.module.", "module."])
def test_prefixes_of_frameworks(source: Source, tmp_path: Path, prefix: str) -> None:
    """Whatever a framework puts before Megatron's names, stacked or not, is found and taken away."""
    tensors = {f"{prefix}{key}": values for key, values in source.stored.items()}
    folder = write_stored(tmp_path / "iter_0000010", tensors, source.args)
    assert source.export(folder, f"prefix-{prefix}") == source.sums


def test_torch_2_15(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Newer torch pickles a sixth field (strides) of a tensor's properties, which this release can't load.

    Key level: the state that torch 2.15 pickles, put in by this release's classes.
    """
    folder = write_stored(tmp_path / "iter_0000010", source.stored, source.args)
    five: Callable[[Any], tuple[Any, ...]] = TensorProperties.__getstate__
    monkeypatch.setattr(TensorProperties, "__getstate__", lambda properties: (*five(properties), (1,)))
    edited(folder, lambda metadata: None)
    with pytest.raises(ValueError, match="too many values"):
        pickle.loads((folder / ".metadata").read_bytes())
    assert describe_checkpoint(folder, None).description.writer == "torch 2.15 or newer"
    assert source.export(folder, "torch-2.15") == source.sums


# --- plain DCP


def nested(prefix: str, tensors: Tensors, args: dict[str, Any], ckpt_format: str) -> dict[str, Any]:
    """The state that Megatron-LM gives to torch's DCP: named as a dict in a dict."""
    return {
        "model": {f"{prefix}{name}": values for name, values in tensors.items()},
        "args": Namespace(**args | {"ckpt_format": ckpt_format}),
        "iteration": 10,
        "checkpoint_version": 3.0,
        "optimizer": {"state": {"output_layer.weight": {"exp_avg": torch.zeros(3)}}},
        "rng_state": [{"torch_rng_state": torch.zeros(4, dtype=torch.uint8)}],
    }


def test_torch_dcp(source: Source, tmp_path: Path) -> None:
    """FSDP2's format: whole tensors under the modules' own names, args as an item, no metadata.json."""
    state = nested("", local_names(source.tensors), source.args, "torch_dcp")
    folder = write_plain(tmp_path / "iter_0000010", state)
    description = describe_checkpoint(folder, None).description
    assert (description.format, description.iteration) == ("torch_dcp", 10)
    assert {"optimizer", "rng_state"} <= set(description.other)
    assert source.export(folder, "torch_dcp") == source.sums


def test_fsdp_dtensor(source: Source, tmp_path: Path) -> None:
    """Megatron-FSDP's format: halves of fc1 apart, experts by global number, `model.module.` before all.

    Key level, after megatron-core's fsdp_dtensor_checkpoint.py: Megatron-FSDP doesn't run without a GPU.
    """
    state = nested("module.", halves(source.tensors), source.args, "fsdp_dtensor")
    folder = write_plain(tmp_path / "iter_0000010", state)
    assert describe_checkpoint(folder, None).description.format == "fsdp_dtensor"
    assert source.export(folder, "fsdp_dtensor") == source.sums


def test_halves_that_don_t_belong_together_are_refused(source: Source, tmp_path: Path) -> None:
    """A gate without its up projection, or of another size, is refused by the name of the tensor."""
    tensors = halves(source.tensors)
    name = next(name for name in tensors if name.endswith("_v"))
    for number, broken in enumerate((None, tensors[name][:-1].clone())):
        changed = {n: v for n, v in tensors.items() if n != name} | (
            {name: broken} if broken is not None else {}
        )
        folder = write_plain(tmp_path / str(number), nested("module.", changed, source.args, "fsdp_dtensor"))
        with pytest.raises(CheckpointError, match="do not belong together") as caught:
            describe_checkpoint(folder, None)
        assert "linear_fc1.weight" in caught.value.where["tensor"]


# --- what can't be exported


def edited(folder: Path, change: Callable[[Any], object]) -> Path:
    """The folder with `.metadata` changed through torch's own classes."""
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    change(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    return folder


def test_flattened_tensors_are_refused(source: Source, tmp_path: Path) -> None:
    """A weight that early FSDP stored flat, as `mcore_data` tells, is refused with both shapes; others
    aren't.
    """
    key = "decoder.final_layernorm.weight"
    folder = write_stored(tmp_path / "iter_0000010", source.stored, source.args)

    def flatten(metadata: Any) -> None:
        metadata.mcore_data = {
            key: {"nd_reformulated_orig_global_shape": (8, 8)},
            "output_layer.weight": {},
        }

    with pytest.raises(CheckpointError, match="stored flattened") as caught:
        describe_checkpoint(edited(folder, flatten), None)
    assert (caught.value.where["tensor"], caught.value.expected) == (key, "shape [8, 8]")


def test_an_adapter_alone_is_refused(source: Source, tmp_path: Path) -> None:
    """A PEFT run's save holds adapters only; it is described as it is, and refused as that, not as a model
    with everything missing.
    """
    tensors = {
        f"decoder.layers.0.self_attention.linear_qkv.adapter.linear_{part}.weight": torch.ones(2, 2)
        for part in ("in", "out")
    }
    folder = write_stored(tmp_path / "iter_0000010", tensors, source.args)
    assert len(describe_checkpoint(folder, None).specs) == 2
    with pytest.raises(AccountingError, match=r"adapters .* alone") as caught:
        source.export(folder, "alone")
    assert "--lora merge" in str(caught.value.advice)


def test_adapters_among_the_weights_are_refused(source: Source, tmp_path: Path) -> None:
    """A model that still has its adapters beside the base weights is refused, and every adapter is listed."""
    name = "decoder.layers.0.self_attention.linear_qkv.adapter.linear_in.weight"
    folder = write_stored(tmp_path / "iter_0000010", source.stored | {name: torch.ones(2, 2)}, source.args)
    with pytest.raises(AccountingError) as caught:
        source.export(folder, "adapters")
    assert any(name in finding for finding in caught.value.findings)


def test_args_say_the_same_wherever_they_are_kept(source: Source, tmp_path: Path) -> None:
    """common.pt, an item of plain DCP and `common_state` of newer releases give the same args."""
    some, args = {"output_layer.weight": torch.ones(2, 2)}, Namespace(**source.args)
    folder = write_plain(tmp_path / "items", {**some, "args": args})
    assert describe_checkpoint(folder, None).description.args == json.loads(json.dumps(source.args))
    # As megatron-core 0.19 has it (tests/golden holds real ones), but without its last file.
    newer = {**some, "common_state/shard_0_1": [{"args": args, "iteration": 7}]}
    with pytest.raises(CheckpointError, match="unfinished"):
        describe_checkpoint(write_plain(tmp_path / "unfinished", newer), None)
