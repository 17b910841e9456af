"""Claims of `pp_export.architecture.made_config`: each value is told or the whole is refused, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pp_export.architecture import table_files
from pp_export.architecture.made_config import (
    DEFAULT,
    TABLE,
    TENSORS,
    MadeConfig,
    Told,
    class_of,
    make_config,
    model_type_of,
)
from pp_export.core import dtypes
from pp_export.core.errors import AccountingError, RuleError
from pp_export.core.tensors import TensorSpec
from pp_export.megatron.settings import derive
from tests.fixtures.decoders import ARGS, MOE_ARGS

ROTARY = "args: rotary_base"
QKV_BIAS = "decoder.layers.0.self_attention.linear_qkv.bias"


def made(served: str, args: dict[str, Any], tensors: tuple[str, ...] = (), without: str = "") -> MadeConfig:
    """What is made of `ARGS` with other `args`, or `without` one; of tensors only names matter."""
    spec = TensorSpec((3, 8), dtypes.from_torch("float32"))
    trained = derive({name: value for name, value in {**ARGS, **args}.items() if name != without})
    further = {"vocab_size": Told(250, "option: --vocab-size")}
    architecture = table_files.for_class(served)
    specs = dict.fromkeys(tensors, spec)
    return make_config(architecture, trained, specs, further, usual=table_files.usual())


def refused(served: str, args: dict[str, Any], without: str = "") -> tuple[str, ...]:
    with pytest.raises(AccountingError, match="training args don't tell all") as caught:
        made(served, args, without=without)
    assert caught.value.where == {"class": served}
    assert "--reference" in str(caught.value.advice)
    return tuple(caught.value.findings)


def test_each_value_has_an_origin() -> None:
    """Args, tensors, the table, what others told, and the class's default."""
    found = made("LlamaForCausalLM", {}, (QKV_BIAS,))
    assert found.config["num_hidden_layers"] == ARGS["num_layers"]
    told = {
        "num_hidden_layers": "args: num_layers",
        "rms_norm_eps": "args: norm_epsilon",
        "rope_theta": ROTARY,
        "attention_bias": TENSORS,
        "model_type": TABLE,
        "architectures": TABLE,
        "vocab_size": "option: --vocab-size",
        "tie_word_embeddings": "args: untie_embeddings_and_output_weights",
    }
    assert told.items() <= found.origins.items()
    assert found.config.keys() <= found.origins.keys()
    assert found.config["attention_bias"] is True
    assert "attention_bias" not in made("LlamaForCausalLM", {}).config, "the class has none by default"


def test_the_default_of_the_class_counts_where_megatron_does_the_same() -> None:
    """Releases without an arg for windows have none, and neither has Qwen2 by default; Mistral does."""
    assert made("Qwen2ForCausalLM", {}, without="window_size").origins["sliding_window"] == DEFAULT
    (finding,) = refused("MistralForCausalLM", {}, without="window_size")
    assert finding == "windows (config.json: sliding_window): the training args don't tell it"
    assert made("MistralForCausalLM", {"window_size": None}).config["sliding_window"] is None


@pytest.mark.parametrize(
    "arg", ["rotary_base", "norm_epsilon", "num_layers", "swiglu", "max_position_embeddings"]
)
def test_what_nothing_tells_is_refused_by_name(arg: str) -> None:
    keys = {
        "rotary_base": "rope_theta",
        "norm_epsilon": "rms_norm_eps",
        "num_layers": "num_hidden_layers",
        "swiglu": "hidden_act",
        "max_position_embeddings": "max_position_embeddings",
    }
    assert any(keys[arg] in finding for finding in refused("LlamaForCausalLM", {}, without=arg))


def test_all_that_is_missing_is_said_at_once() -> None:
    untold = {name: value for name, value in MOE_ARGS.items() if not name.startswith("moe_router_")}
    found = " ".join(refused("Qwen3MoeForCausalLM", untold))
    assert all(key in found for key in ("num_experts_per_tok", "norm_topk_prob"))
    assert made("Qwen3MoeForCausalLM", MOE_ARGS).config["num_experts"] == MOE_ARGS["num_experts"]


def test_what_args_leave_open_is_refused_with_both_values() -> None:
    """Megatron-LM ignored a factor of Llama 3's scaling before a release that the args don't name."""
    args = {"use_rope_scaling": True, "rope_scaling_factor": 32.0}
    (finding,) = refused("LlamaForCausalLM", args)
    assert all(part in finding for part in ('"factor": 32.0', '"factor": 8.0', "ignored"))


def test_what_the_class_can_not_say_is_refused() -> None:
    """Llama's MLP has a gate."""
    (finding,) = refused("LlamaForCausalLM", {"squared_relu": True, "swiglu": False})
    assert finding == "activation: llama can't say what was trained, squared_relu"


def test_heads_have_as_many_labels_as_rows() -> None:
    served = "LlamaForSequenceClassification"
    found = made(served, {}, ("output_layer.weight",))
    assert (found.config["num_labels"], found.origins["num_labels"]) == (3, TENSORS)
    with pytest.raises(AccountingError) as caught:
        made(served, {})
    assert "num_labels: the checkpoint has no output_layer.weight" in caught.value.findings


def test_a_table_of_ones_own_says_its_type(tmp_path: Path) -> None:
    """What a table extends says nothing of its class: a type that is inherited would be another model's."""
    own = tmp_path / "own.yaml"
    own.write_text("extends: llama\nserves: [AForCausalLM, BForCausalLM]\nrules: []\n")
    table = table_files.named(str(own))
    with pytest.raises(RuleError, match="which class"):
        class_of(table)
    with pytest.raises(RuleError, match="calls the class"):
        model_type_of(table)
    own.write_text("extends: llama\nserves: [AForCausalLM]\nmodel_type: a\nrules: []\n")
    table = table_files.named(str(own.with_suffix("")))
    assert (class_of(table), model_type_of(table)) == ("AForCausalLM", "a")


def test_tables_are_named_by_themselves_or_by_their_class() -> None:
    assert table_files.named("qwen3").table == table_files.named("Qwen3ForCausalLM").table
    with pytest.raises(RuleError, match="no architecture table serves"):
        table_files.named("Qwen3")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("key: {row: nowhere}", "no row is nowhere"),
        ("key: {rows: output_layer.weight}", "must be a setting"),
        ("key: 3", "must be a setting"),
        ("key: {row: []}", "must be a setting"),
    ],
)
def test_faults_of_what_tensors_show(line: str, fault: str, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(f"extends: llama\nserves: [AForCausalLM]\nshown:\n  {line}\nrules: []\n")
    with pytest.raises(RuleError) as caught:
        table_files.load(str(own))
    assert [finding for finding in caught.value.findings if fault in finding]
