"""The expected tensors are those that transformers writes, found without weights, network or foreign code."""

import dataclasses
import importlib.util
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from pp_export.core.errors import ReferenceFolderError
from pp_export.core.tensors import Shape
from pp_export.process import child as child_process
from pp_export.reference import definition as expected
from pp_export.reference.definition import define
from pp_export.reference.pending_definition import PendingDefinition
from tests.fixtures.models import MODELS, hf_config
from tests.fixtures.moe_families import MOE
from tests.fixtures.releases import transformers_5

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "mixtral")
LARGE: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_experts": 128,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 768,
    "vocab_size": 151936,
    "tie_word_embeddings": False,
}


def tensors_of(config: Mapping[str, Any]) -> Mapping[str, Shape] | None:
    found = define(config)
    return None if found is None else found.tensors


@pytest.fixture(scope="module", autouse=True)
def child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PendingDefinition]:
    """A child that a test below asks; started first, so that it works while other tests run.

    The working directory is a hostile reference folder, whose modules would shadow what the child imports.
    """
    folder = tmp_path_factory.mktemp("hostile")
    for module in ("torch", "transformers", "json", "pp_export", "accelerate"):
        (folder / f"{module}.py").write_text(f"open({str(folder / 'marker')!r}, 'w')\n")
    before = Path.cwd()
    os.chdir(folder)
    try:
        started = PendingDefinition.start(LARGE, cache=False)
    finally:
        os.chdir(before)
    with started:
        yield started
    assert not (folder / "marker").exists()


def _written(folder: Path) -> dict[str, Shape]:
    written: dict[str, Shape] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="numpy") as tensors:
            names = tensors.keys()
            written |= {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
    return written


Saved = dict[tuple[str, bool], tuple[dict[str, Any], dict[str, Shape]]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """For each family, untied and tied: config.json and the tensors as `save_pretrained` writes them."""
    import transformers

    result: Saved = {}
    for family in FAMILIES:
        for tied in (False, True):
            toy = dataclasses.replace(MODELS[family], tied=tied, num_layers=2)
            folder = tmp_path_factory.mktemp(f"{family}_{tied}")
            getattr(transformers, toy.hf_class)(hf_config(toy)).save_pretrained(folder)
            result[family, tied] = json.loads((folder / "config.json").read_text()), _written(folder)
    return result


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_what_save_pretrained_writes(family: str, tied: bool, saved: Saved) -> None:
    """Names and shapes equal those of the files that the library writes: no ties, experts one by one."""
    config, written = saved[family, tied]
    assert tensors_of(config) == written
    assert ("lm_head.weight" in written) is not tied
    assert len(written) >= 20
    found = define(config)
    assert found is not None
    assert found.tied == ({"lm_head.weight": "model.embed_tokens.weight"} if tied else {})


def test_dense_layers_among_moe_layers(tmp_path: Path) -> None:
    """Dense layers in a MoE model have their own names and sizes."""
    import transformers

    config = transformers.Qwen3MoeConfig(
        **(LARGE | {"hidden_size": 64, "num_hidden_layers": 3, "num_experts": 4})
    )
    config.mlp_only_layers, config.intermediate_size, config.vocab_size = [1], 48, 64
    transformers.Qwen3MoeForCausalLM(config).save_pretrained(tmp_path)
    assert tensors_of(json.loads((tmp_path / "config.json").read_text())) == _written(tmp_path)


@transformers_5
def test_a_type_that_only_the_config_knows_changes_no_name() -> None:
    """Kimi K2 calls itself `kimi_k2` and names DeepSeek-V3's class: on disk it has that one's names."""
    config = {**MOE["deepseek_v3"].whole_config(), "model_type": "deepseek_v3"}
    known, other = define(config), define({**config, "model_type": "kimi_k2"})
    assert known is not None
    assert other is not None
    assert known.tensors == other.tensors
    assert "model.layers.1.mlp.experts.0.gate_proj.weight" in known.tensors


@transformers_5
def test_infinity_as_transformers_writes_it(tmp_path: Path) -> None:
    """The library writes infinity as an object into config.json; its class gets the number back."""
    import transformers

    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_heads": 8,
        "head_dim": 8,
        "n_groups": 2,
        "num_hidden_layers": 2,
    }
    config = transformers.Mamba2Config(vocab_size=64, state_size=8, **sizes)
    transformers.Mamba2ForCausalLM(config).save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["time_step_limit"] == [0.0, {"__float__": "Infinity"}]
    assert tensors_of(stored) == _written(tmp_path)


def test_what_would_change_names_or_run_code_is_ignored(saved: Saved) -> None:
    """Neither auto_map nor quantization nor a kernel named in config.json changes the answer."""
    config, written = saved["qwen3_moe", False]
    extra = {
        "auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"},
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
        "attn_implementation": "flash_attention_3",
        "_attn_implementation": "evil/kernels",
        "experts_implementation": "evil/experts",
    }
    assert tensors_of(config | extra) == written


@pytest.mark.parametrize(
    "names",
    [
        *(
            None,
            [],
            [5],
            [""],
            "LlamaForCausalLM",
            ["NoSuchForCausalLM"],
            ["PreTrainedModel"],
            ["LlamaConfig"],
        ),
        *(["AutoModelForCausalLM"], ["modeling_utils"], ["__class__"], ["models.llama.LlamaForCausalLM"]),
    ],
)
def test_unknown_classes_give_none(names: object) -> None:
    """What isn't a model class of the library gives None and never an attribute of something else."""
    assert tensors_of(LARGE | {"architectures": names}) is None


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where transformers isn't installed the answer is None: the caller has other sources."""
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "transformers" else object()
    )
    assert tensors_of(LARGE) is None


@transformers_5
def test_a_refused_config_names_class_and_reason() -> None:
    """A config that the class refuses is an error with the class's name and the reason on one line."""
    with pytest.raises(ReferenceFolderError) as refused:
        tensors_of(LARGE | {"num_hidden_layers": "many"})
    assert refused.value.where["class"] == "Qwen3MoeForCausalLM"
    assert "num_hidden_layers" in (refused.value.got or "")
    assert "\n" not in (refused.value.got or "")


def test_no_network(saved: Saved) -> None:
    """Making the model opens no socket and looks up no host."""
    config, _ = saved["mixtral", True]
    seen: list[str] = []
    active = [True]
    sys.addaudithook(lambda event, _: seen.append(event) if active and event.startswith("socket.") else None)
    assert tensors_of(config) is not None
    active.clear()
    assert seen == []


def test_child_answers_like_the_function(child: PendingDefinition) -> None:
    """The child gives the same as the function, for 48 layers of 128 experts and in a hostile folder."""
    answer, here = child.answer().definition, define(LARGE)
    assert answer is not None
    assert here is not None
    assert answer.tensors == here.tensors
    assert answer.config == json.loads(json.dumps(here.config, default=str))
    assert len(answer.tensors) == 3 + 48 * (2 + 6 + 1 + 128 * 3)
    assert answer.tensors["model.layers.47.mlp.experts.127.down_proj.weight"] == (2048, 768)
    assert child.answer().definition == child.result() == answer
    assert not child.answer().is_cached


def test_values_in_effect_are_those_of_the_config_object() -> None:
    """What config.json leaves out has the class's default, under every name that the class knows."""
    found = define({"architectures": ["Qwen3MoeForCausalLM"], "num_hidden_layers": 1, "num_experts": 4})
    assert found is not None
    assert found.config["rms_norm_eps"] == 1e-6
    assert found.config["norm_topk_prob"] is False
    assert found.config["num_experts"] == 4


@transformers_5
def test_child_ends_with_the_reason_on_its_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the class refuses ends the child with the reason as its last line on stderr."""
    config = json.dumps(LARGE | {"hidden_size": "wide"}).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(config)))
    with pytest.raises(SystemExit, match="hidden_size") as ended:
        expected.main()
    assert "\n" not in str(ended.value.code)


def test_child_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child is offline, has no GPU and is no member of torchrun's group."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    environment = child_process.environment()
    assert environment["HF_HUB_OFFLINE"] == environment["TRANSFORMERS_OFFLINE"] == "1"
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    assert not {"RANK", "MASTER_ADDR"} & set(environment)
