"""Claims of `pp_export.architecture.decisions`: every arg of every release is decided for every class."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest

from pp_export.architecture import table_files
from pp_export.architecture.decisions import COMPARED, REQUIRED, TOLD, Decisions
from pp_export.checkpoint.formats import describe_checkpoint
from pp_export.megatron import settings, transformer_config
from tests.fixtures.framework_keys import BRIDGE, MS_SWIFT, NEMO, names
from tests.fixtures.settings_page import PAGE, page

GOLDEN = sorted(path for path in Path("tests/golden").resolve().iterdir() if path.is_dir())
TABLES = sorted(set(table_files.packaged().values()))

# Gemma's embeddings are scaled by code of the frameworks that train it; without RoPE nothing rotates.
_ROPE = ("rotary_base", "rotary_percent", "rope_scaling", "rope_layers")
UNSAID = dict.fromkeys(("gemma", "gemma2", "gemma3"), ("embedding_multiplier",)) | dict.fromkeys(
    ("gpt2", "nemotron_h"), _ROPE
)
OF_HYBRIDS = {
    "hybrid_layers",
    "mamba_num_heads",
    "mamba_activation",
    "mamba_norm_epsilon",
    *("time_step_limit", "time_step_min"),
}


def decisions(table: str) -> Decisions:
    return Decisions(table_files.load(table), settings.read_by())


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda path: path.name)
def test_every_arg_that_a_release_stores_is_decided(golden: Path) -> None:
    """No golden checkpoint of any release has an arg that a table leaves undecided."""
    args = describe_checkpoint(golden, None).description.args
    assert args
    for table in TABLES:
        decided = decisions(table)
        assert [arg for arg in args if not decided.of(arg)] == [], table


def test_every_field_of_a_transformer_config_is_decided() -> None:
    """Every field of megatron-core's configs, and every argument of its GPTModel, is decided under the name
    that training args have for it.
    """
    config: Any = pytest.importorskip("megatron.core.transformer.transformer_config")
    gpt: Any = pytest.importorskip("megatron.core.models.gpt")
    names = {field.name for field in dataclasses.fields(config.MLATransformerConfig)}
    names |= set(inspect.signature(gpt.GPTModel.__init__).parameters) - {"self", "config"}
    args = transformer_config.as_args(dict.fromkeys(names - {"share_embeddings_and_output_weights"}, 1))
    for table in TABLES:
        decided = decisions(table)
        assert [arg for arg in args if not decided.of(arg)] == [], table


@pytest.mark.parametrize("keys", [BRIDGE, NEMO, MS_SWIFT], ids=["bridge", "nemo", "ms-swift"])
def test_every_key_of_a_framework_is_decided(keys: str) -> None:
    """The keys of Megatron-Bridge, NeMo 2 and ms-swift are decided for every class."""
    args = transformer_config.as_args(dict.fromkeys(names(keys), 1) | {"should_pad_vocab": True})
    for table in TABLES:
        decided = decisions(table)
        assert [arg for arg in args if not decided.of(arg)] == [], table


@pytest.mark.parametrize("table", TABLES)
def test_every_setting_is_compared_or_required(table: str) -> None:
    """What is derived of args has a place in every table: none is derived in vain."""
    architecture = table_files.load(table)
    placed = architecture.readings.keys() | architecture.requires.keys() | {"sequence_length"}
    placed |= architecture.tells.keys()
    derived = set(settings.read_by())
    of_dense, of_experts = {"ffn_hidden_size"}, {"moe_router_topk", "moe_ffn_hidden_size"}
    of_experts |= {"moe_layers", "normalized_topk"}
    has_experts = "num_experts" in architecture.readings
    unread = of_dense - placed if has_experts else set(of_experts)
    if architecture.requires["multi_latent_attention"].value:
        unread |= {"num_query_groups", "head_dim"}
    else:
        unread |= {"kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim", "latent_scale"}
        unread.add("latent_norm_epsilon")
    if not architecture.requires["is_hybrid"].value:
        unread |= OF_HYBRIDS
    if architecture.requires["experimental_attention_variant"].value != "gated_delta_net":
        unread.add("delta_net_modules")
    if "router_groups" in architecture.requires:
        unread.add("router_group_experts")
    assert derived - placed == unread | set(UNSAID.get(table, ()))


def test_kinds_of_decisions() -> None:
    """An arg may be compared, required, told, or left alone for one reason; one that nobody knows is none of
    these.
    """
    of = decisions("qwen3_moe").of
    assert {decision.kind for decision in of("norm_epsilon")} == {COMPARED}
    assert of("softmax_type")[0].kind == REQUIRED
    assert {decision.kind for decision in of("rotary_percent")} == {COMPARED, REQUIRED}
    assert {decision.kind for decision in of("moe_router_score_function")} == {COMPARED, REQUIRED}
    assert {decision.kind for decision in of("spec")} == {TOLD, REQUIRED}
    assert of("learning_rate_of_a_fork") == ()
    (left,) = of("tensorboard_dir")
    assert (left.kind, "logs" in left.text) == ("irrelevant", True)


def test_unknown_args_are_those_that_switch_something_on() -> None:
    """Args of forks and frameworks are named where they are on, and only there."""
    args: dict[str, Any] = {
        "fork_trick": True,
        "fork_off": False,
        "fork_none": None,
        "seed": 3,
        "fork_list": [],
    }
    assert decisions("llama").unknown(args) == ["fork_trick"]


def test_no_reason_stands_in_vain() -> None:
    """Every pattern of the list has a reason, and none hides an arg that a table compares or requires."""
    for pattern, (kind, reason) in table_files.other_args().items():
        assert kind
        assert reason
        assert pattern == pattern.strip()


def test_the_page_says_what_the_tables_say() -> None:
    """docs/settings.md is what the tables make of it (`python -m tests.fixtures.settings_page`)."""
    assert PAGE.read_text(encoding="utf-8") == page()
