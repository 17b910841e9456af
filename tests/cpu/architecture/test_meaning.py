"""Claims of `pp_export.architecture.meaning`: config.json says the function that was trained, or the export
stops with both values.
"""

from __future__ import annotations

from typing import Any

import pytest

from pp_export.architecture import table_files
from pp_export.architecture.meaning import Meaning, additions, changes, overruled, settle, spelled_out
from pp_export.architecture.readings import READINGS
from pp_export.core.errors import AccountingError
from pp_export.megatron import settings
from tests.fixtures.decoders import LLAMA3

ARGS: dict[str, Any] = {
    "num_layers": 4,
    "hidden_size": 64,
    "ffn_hidden_size": 96,
    "num_attention_heads": 8,
    "group_query_attention": True,
    "num_query_groups": 2,
    "kv_channels": 12,
    "norm_epsilon": 1e-5,
    "rotary_base": 10000,
    "rotary_percent": 1.0,
    "rotary_interleaved": False,
    "position_embedding_type": "rope",
    "use_rope_scaling": False,
    "rotary_seq_len_interpolation_factor": None,
    "swiglu": True,
    "normalization": "RMSNorm",
    "apply_layernorm_1p": False,
    "untie_embeddings_and_output_weights": True,
    "window_size": None,
    "seq_length": 128,
    "num_experts": None,
}
CONFIG: dict[str, Any] = {
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "max_position_embeddings": 128,
}
MOE_ARGS: dict[str, Any] = {
    "num_experts": 8,
    "moe_ffn_hidden_size": 40,
    "moe_router_topk": 2,
    "moe_layer_freq": 1,
    "moe_router_score_function": "softmax",
    "moe_router_pre_softmax": False,
    "moe_router_topk_scaling_factor": None,
    "moe_shared_expert_intermediate_size": None,
    "moe_router_enable_expert_bias": False,
    "moe_router_num_groups": None,
}
QWEN3_MOE: dict[str, Any] = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 40,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
MIXTRAL: dict[str, Any] = {"num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 40}
GONE: Any = object()
"""Removes a key."""


def hold(
    args: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    *,
    table: str = "llama",
    library: dict[str, Any] | None = None,
    correct: bool = False,
) -> Meaning:
    """Settle ARGS and CONFIG with some values changed."""
    of_class = {"qwen3_moe": (MOE_ARGS, QWEN3_MOE), "mixtral": (MOE_ARGS, MIXTRAL)}.get(table, ({}, {}))
    trained = {k: v for k, v in (ARGS | of_class[0] | (args or {})).items() if v is not GONE}
    stated = {k: v for k, v in (CONFIG | of_class[1] | (config or {})).items() if v is not GONE}
    return settle(table_files.load(table), settings.derive(trained), stated, library, correct=correct)


def findings(*args: Any, **options: Any) -> tuple[str, ...]:
    with pytest.raises(AccountingError, match="not the config of this checkpoint") as caught:
        hold(*args, **options)
    return caught.value.findings


def test_agreement_gives_the_trained_values() -> None:
    """Where both sides agree, the values come out, and nothing is noted or corrected."""
    settled = hold()
    assert settled.values["num_query_groups"] == 2
    assert settled.values["rope_scaling"] == {"rope_type": "default"}
    assert settled.notes == ()
    assert changes(CONFIG, settled) == []


@pytest.mark.parametrize(
    ("key", "value", "finding"),
    [
        ("num_hidden_layers", 5, "num_layers: the checkpoint was trained with 4, config.json says 5"),
        ("hidden_size", 128, "hidden_size: the checkpoint was trained with 64, config.json says 128"),
        ("intermediate_size", 97, "ffn_hidden_size: the checkpoint was trained with 96, config.json says 97"),
        (
            "num_attention_heads",
            4,
            "num_attention_heads: the checkpoint was trained with 8, config.json says 4",
        ),
        ("num_key_value_heads", 4, "num_query_groups: the checkpoint was trained with 2, config.json says 4"),
        ("rms_norm_eps", 1e-6, "norm_epsilon: the checkpoint was trained with 1e-05, config.json says 1e-06"),
        ("rope_theta", 5e5, "rotary_base: the checkpoint was trained with 10000, config.json says 500000.0"),
        (
            "tie_word_embeddings",
            True,
            "tied: the checkpoint was trained with False (untie_embeddings_and_output_weights True),"
            " config.json says True",
        ),
    ],
)
def test_a_disagreement_names_both_values(key: str, value: Any, finding: str) -> None:
    """Each setting that config.json states otherwise stops the export, with the trained and the stated
    value.
    """
    assert findings(config={key: value}) == (finding,)


def test_all_disagreements_are_listed_at_once() -> None:
    """Disagreements of several settings and of required ones come in one error."""
    found = findings({"normalization": "LayerNorm"}, {"head_dim": 8, "hidden_size": 65})
    assert len(found) == 3
    assert found[-1] == "normalization: the table llama requires RMSNorm, the checkpoint has LayerNorm"


@pytest.mark.parametrize(
    ("key", "trained", "said"),
    [("rope_theta", {"rotary_base": 500000}, "10000.0"), ("rms_norm_eps", {"norm_epsilon": 1e-3}, "1e-06")],
)
def test_a_key_that_config_json_lacks_has_the_classes_default(
    key: str, trained: dict[str, Any], said: str
) -> None:
    """What a loader would take for a missing key is compared: from the table without the library, from the
    library where it answers.
    """
    assert f"config.json says {said} (by default)" in findings(trained, {key: GONE})[0]
    library = {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}, "rms_norm_eps": 7.0}
    found = [f for f in findings(trained, {key: GONE}, library=library) if f.startswith(next(iter(trained)))]
    assert "config.json says 7.0 (by default)" in found[0]


def test_what_the_class_decides_by_default_is_written_out() -> None:
    """A default that is the trained value becomes a key, so that no other loader takes another one."""
    settled = hold({"rotary_base": 10000, "norm_epsilon": 1e-6}, {"rope_theta": GONE, "rms_norm_eps": GONE})
    assert settled.config["rope_theta"] == 10000.0
    assert settled.config["rope_parameters"] == {"rope_type": "default", "rope_theta": 10000.0}
    assert settled.config["rms_norm_eps"] == 1e-6
    assert "config.json: rms_norm_eps is 1e-06." in additions({"rope_theta": 1}, settled)


@pytest.mark.parametrize(
    ("config", "trained"),
    [
        ({"rope_scaling": LLAMA3}, {}),
        ({}, {"use_rope_scaling": True, "rope_scaling_factor": 8.0}),
        ({}, {"rotary_seq_len_interpolation_factor": 4}),
        ({"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}, {}),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, {}),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, {}),
        (
            {"rope_scaling": LLAMA3 | {"low_freq_factor": 2.0}},
            {"use_rope_scaling": True, "rope_scaling_factor": 8.0},
        ),
    ],
)
def test_rope_that_is_scaled_on_one_side_is_refused(config: dict[str, Any], trained: dict[str, Any]) -> None:
    """Scaled positions of either side, and other factors of the same scaling, stop the export."""
    assert findings(trained, config)[0].startswith("rope_scaling: the checkpoint was trained with")


@pytest.mark.parametrize(
    ("config", "trained"),
    [
        ({"rope_scaling": LLAMA3}, {"use_rope_scaling": True, "rope_scaling_factor": 8.0}),
        (
            {"rope_scaling": {"type": "linear", "factor": 4}},
            {"rotary_seq_len_interpolation_factor": 4},
        ),
        ({"rope_scaling": {"rope_type": "linear", "factor": 1.0}}, {}),
        (
            {"rope_scaling": LLAMA3 | {"factor": 32.0}},
            {"use_rope_scaling": GONE, "rope_scaling": True, "rope_scaling_factor": 32.0},
        ),
        (
            {"rope_scaling": LLAMA3},
            {
                "use_rope_scaling": GONE,
                "scale_factor": 8,
                "low_freq_factor": 1,
                "high_freq_factor": 4,
                "old_context_len": 8192,
            },
        ),
        ({"rope_scaling": LLAMA3}, {"rope_scaling": LLAMA3 | {"rope_theta": 10000.0}}),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "max_position_embeddings": 128},
            {
                "position_embedding_type": "yarn",
                "rotary_scaling_factor": 4.0,
                "yarn_original_max_position_embeddings": 128,
                "mscale": 1.0,
                "mscale_all_dim": 0.0,
            },
        ),
    ],
)
def test_the_same_scaling_in_other_words_agrees(config: dict[str, Any], trained: dict[str, Any]) -> None:
    """Megatron-LM, Bridge, NeMo 2 and ms-swift say one scaling in different args; all are understood."""
    settled = hold(trained, config)
    told = changes(CONFIG | config, settled)
    assert not [sentence for sentence in told if "rope_scaling" not in sentence]
    assert settled.corrected == frozenset()
    assert settled.config["rope_parameters"]["rope_theta"] == 10000.0


def test_yarn_scales_that_hf_reads_otherwise_differ() -> None:
    """Megatron divides by a scale of 0 as by any other, transformers doesn't: with 0.707 over 0.0 they give
    other attention factors.
    """
    trained = {
        "position_embedding_type": "yarn",
        "rotary_scaling_factor": 4.0,
        "yarn_original_max_position_embeddings": 128,
        "mscale": 0.707,
        "mscale_all_dim": 0.0,
    }
    scaling = {"rope_type": "yarn", "factor": 4.0, "mscale": 0.707, "mscale_all_dim": 0.0}
    assert "1.098" in findings(trained, {"rope_scaling": scaling})[0]
    right = scaling | {"attention_factor": 1.0980121}
    assert hold(trained, {"rope_scaling": right}).values["rope_scaling"]["factor"] == 4.0


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_a_factor_that_megatron_may_have_ignored_is_told(factor: float) -> None:
    """Megatron-LM's GPT models took 8 whatever --rope-scaling-factor said: config.json may say either, the
    report says that it can't be settled, and any third value is refused.
    """
    trained = {"use_rope_scaling": True, "rope_scaling_factor": 32.0}
    settled = hold(trained, {"rope_scaling": LLAMA3 | {"factor": factor}})
    assert "can't be settled" in settled.notes[0]
    assert settled.values["rope_scaling"]["factor"] == factor
    assert "rope_scaling" in findings(trained, {"rope_scaling": LLAMA3 | {"factor": 16.0}})[0]


def test_a_value_that_stands_twice_is_written_equal() -> None:
    """Where config.json says two bases, the trained one is written in both places; without training args
    nothing tells which is true.
    """
    for top, inner in ((10000.0, 5e5), (5e5, 10000.0)):
        twice = {"rope_theta": top, "rope_parameters": {"rope_type": "default", "rope_theta": inner}}
        config = hold(config=twice).config
        assert (config["rope_theta"], config["rope_parameters"]["rope_theta"]) == (10000.0, 10000.0)
        with pytest.raises(AccountingError) as caught:
            settle(table_files.load("llama"), None, CONFIG | twice, None)
        assert "says two things" in caught.value.findings[0]
    neither = {"rope_theta": 3.0, "rope_parameters": {"rope_type": "default", "rope_theta": 4.0}}
    assert "rotary_base" in findings(config=neither)[0]


@pytest.mark.parametrize("inner", [{}, {"rope_theta": 10000.0}])
def test_scaling_that_stands_twice_is_written_as_trained(inner: dict[str, Any]) -> None:
    """Where `rope_scaling` was edited and `rope_parameters` not, release 5 takes the former: its config
    object says so, and what the export's config.json says is nevertheless what was trained, in each place.
    """
    linear = {"rope_type": "linear", "factor": 4.0, **inner}
    plain = {"rope_type": "default", "rope_theta": 10000.0}
    library = CONFIG | {"rope_parameters": {**linear, "rope_theta": 10000.0}}
    settled = hold(config={"rope_scaling": linear, "rope_parameters": plain}, library=library)
    assert (settled.config["rope_scaling"], settled.config["rope_parameters"]) == (None, plain)
    trained = {"rotary_seq_len_interpolation_factor": 4}
    settled = hold(trained, {"rope_scaling": linear, "rope_parameters": plain}, library=library)
    assert settled.config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    assert settled.config["rope_parameters"] == {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}


@pytest.mark.parametrize(("said", "agrees"), [(True, True), (False, False), (None, False)])
def test_queries_that_see_what_comes_after_them(said: Any, agrees: bool) -> None:
    """`is_causal` switches every class of release 5 to attention in both directions; null does, too."""
    if agrees:
        assert hold(config={"is_causal": said}).config["is_causal"] is said
    else:
        assert findings(config={"is_causal": said})[0].startswith("bidirectional_attention: ")
        assert hold(config={"is_causal": said}, correct=True).config["is_causal"] is True
    assert "is_causal" not in hold().config


def test_both_spellings_are_written() -> None:
    """What release 4 of transformers reads and what release 5 reads say the same, whichever was given."""
    old = {"rope_theta": 1e4, "rope_scaling": LLAMA3}
    new = {"rope_theta": GONE, "rope_parameters": LLAMA3 | {"rope_theta": 1e4}}
    trained = {"use_rope_scaling": True, "rope_scaling_factor": 8.0}
    for given in (old, new):
        config = hold(trained, given).config
        assert config["rope_theta"] == 1e4
        assert config["rope_scaling"] == LLAMA3
        assert config["rope_parameters"] == LLAMA3 | {"rope_theta": 1e4}
    experts = hold(table="qwen3_moe", config={"num_experts": GONE, "num_local_experts": 8}).config
    assert (experts["num_experts"], experts["num_local_experts"]) == (8, 8)


@pytest.mark.parametrize(
    ("table", "local"),
    [("gemma3", {"rope_local_base_freq": 20_000.0}), ("olmo3", {}), ("mimo_v2_flash", {})],
)
def test_rope_of_types_of_layers_is_said_to_older_loaders_too(table: str, local: dict[str, Any]) -> None:
    """Release 4 takes the base and the scaling of layers without a window from keys of their own; MiMo's
    class would take such a scaling for that of all layers, so there it isn't said twice.
    """
    scaled = {"rope_type": "linear", "factor": 8.0}
    by_types = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 20_000.0},
        "full_attention": {**scaled, "rope_theta": 1e6},
    }
    spelled = spelled_out(table_files.load(table), {"rope_parameters": by_types, "num_hidden_layers": 2})
    assert spelled["rope_parameters"] == by_types
    assert spelled["rope_theta"] == 1e6
    assert {key: spelled[key] for key in local} == local
    assert spelled.get("rope_scaling") == (None if table == "mimo_v2_flash" else scaled)


@pytest.mark.parametrize(
    ("trained", "config", "agrees"),
    [
        ({"window_size": (63, 0)}, {"sliding_window": 64}, True),
        ({"window_size": (64, 0)}, {"sliding_window": 64}, False),
        ({"window_size": [63, 0]}, {"sliding_window": None}, False),
        ({"window_size": None}, {"sliding_window": 64}, False),
        ({"window_size": (-1, 0)}, {"sliding_window": None}, True),
        ({"window_size": None}, {"sliding_window": 128}, True),
        ({"window_size": (255, 0)}, {"sliding_window": None}, True),
        ({"window_size": None}, {}, True),
        ({"window_size": (63, 0), "window_attn_skip_freq": 2}, {"sliding_window": 64}, False),
    ],
)
def test_windows_of_mistral(trained: dict[str, Any], config: dict[str, Any], agrees: bool) -> None:
    """Megatron counts the tokens before the query, config.json the query too; a window no shorter than the
    trained sequences of 128, the class's default of 4096 among them, changes nothing.
    """
    if agrees:
        hold(trained, config, table="mistral")
    else:
        assert findings(trained, config, table="mistral")[0].startswith("windows: ")


def test_windows_of_qwen2() -> None:
    """A window that is switched off, or begins above the last layer, is none; layer_types say which layers
    have one.
    """
    off = {"sliding_window": 64, "use_sliding_window": False}
    high: dict[str, Any] = {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 4}
    for config in ({}, off, high):
        assert hold(config=config, table="qwen2").values["windows"] is None
    every: dict[str, Any] = high | {"max_window_layers": 2}
    assert "windows" in findings(config=every, table="qwen2")[0]
    kinds = ["full_attention", "full_attention", "sliding_attention", "sliding_attention"]
    trained = {"window_size": (63, 0), "window_attn_skip_freq": [0, 0, 1, 1]}
    for config in (every, high | {"layer_types": kinds}):
        assert hold(trained, config, table="qwen2").values["windows"] == [None, None, 64, 64]


def test_windows_of_qwen2_moe_are_written_as_its_class_counts_them() -> None:
    """There `max_window_layers` ends the layers with a window, every second of which has one; where it can't
    say which layers have one, the list alone does.
    """
    reading = READINGS["windows_of_early_layers"]
    on: dict[str, Any] = {"num_hidden_layers": 4, "use_sliding_window": True, "max_window_layers": 4}
    for value in ([64, None, 64, None], [64, None, None, None]):
        keys = reading.write(on, value)
        assert keys is not None
        alone = {key: told for key, told in keys.items() if key != "layer_types"}
        assert reading.read({**on, **alone}) == reading.read({**on, **keys}) == value
    keys = reading.write(on, [None, None, 64, 64])
    assert keys is not None
    assert "max_window_layers" not in keys
    assert reading.read({**on, **keys}) == [None, None, 64, 64]


def test_windows_that_the_class_cannot_have() -> None:
    """Llama's class has no windows: a run with them is refused, with classes that have."""
    (finding,) = findings({"window_size": (63, 0)})
    assert "MistralForCausalLM" in finding


@pytest.mark.parametrize(
    ("trained", "norm_topk_prob", "agrees"),
    [
        ({"moe_router_pre_softmax": False}, True, True),
        ({"moe_router_pre_softmax": True}, False, True),
        ({"moe_router_pre_softmax": True}, True, False),
        ({"moe_router_pre_softmax": False}, False, False),
        ({"moe_router_load_balancing_type": "sinkhorn"}, True, False),
    ],
)
def test_router_weights_of_qwen3_moe(trained: dict[str, Any], norm_topk_prob: bool, agrees: bool) -> None:
    """A softmax of the chosen experts adds up to one, a softmax of all does only if it is divided."""
    config = {"norm_topk_prob": norm_topk_prob}
    if agrees:
        hold(trained, config, table="qwen3_moe")
    else:
        assert findings(trained, config, table="qwen3_moe")[0].startswith("normalized_topk: ")


@pytest.mark.parametrize("table", ["qwen3_moe", "mixtral"])
@pytest.mark.parametrize(
    ("trained", "setting"),
    [
        ({"moe_router_score_function": "sigmoid"}, "moe_router_score_function"),
        ({"moe_router_topk_scaling_factor": 2.5}, "router_scaling_factor"),
        ({"moe_router_num_groups": 4, "moe_router_group_topk": 2}, "router_groups"),
        ({"moe_router_enable_expert_bias": True}, "router_expert_bias"),
        ({"moe_shared_expert_intermediate_size": 40}, "shared_expert_size"),
        ({"moe_latent_size": 16}, "moe_latent_size"),
        ({"moe_router_load_balancing_type": "quantile_balancing"}, "router_quantile_bias"),
        ({"moe_layer_freq": [0, 1, 1, 1]}, "moe_layers"),
        ({"moe_layer_freq": 2}, "moe_layers"),
    ],
)
def test_routing_that_the_class_cannot_have(table: str, trained: dict[str, Any], setting: str) -> None:
    """Routing that the class has no key for, or says otherwise, is refused by name."""
    assert any(finding.startswith(f"{setting}: ") for finding in findings(trained, table=table))


def test_mixtral_always_divides() -> None:
    """Mixtral's class divides by the sum, and no key can say that a run didn't."""
    (finding,) = findings({"moe_router_pre_softmax": True}, table="mixtral")
    assert "Qwen3MoeForCausalLM" in finding


def test_every_nth_layer_is_counted_as_each_side_counts() -> None:
    """Megatron's frequency 2 means the layers 0, 2, ...; Qwen's step 2 means 1, 3, ..."""
    trained = {"moe_layer_freq": 2}
    assert findings(trained, {"decoder_sparse_step": 2}, table="qwen3_moe")
    settled = hold(trained, {"mlp_only_layers": [1, 3]}, table="qwen3_moe")
    assert settled.values["moe_layers"] == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("args", "setting"),
    [
        ({"rotary_percent": 0.5}, "rotary_percent"),
        ({"rotary_interleaved": True}, "rotary_interleaved"),
        ({"position_embedding_type": "learned_absolute"}, "position_embedding"),
        ({"no_rope_freq": 4}, "rope_layers"),
        ({"apply_layernorm_1p": True}, "zero_centered_norm"),
        ({"layernorm_zero_centered_gamma": True, "apply_layernorm_1p": GONE}, "zero_centered_norm"),
        ({"softmax_type": "learnable"}, "softmax_type"),
        ({"softmax_scale": 0.5}, "attention_scale"),
        ({"attention_output_gate": True}, "attention_output_gate"),
        ({"qk_l2_norm": True}, "qk_l2_norm"),
        ({"use_mup": True}, "use_mup"),
        ({"multi_latent_attention": True}, "multi_latent_attention"),
        ({"hybrid_layer_pattern": "M*M*"}, "is_hybrid"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"activation_func_clamp_value": 7.0}, "activation_func_clamp_value"),
        ({"glu_linear_offset": 1.0}, "glu_linear_offset"),
        ({"num_experts": 8}, "num_experts"),
        ({"experimental_attention_variant": "dsa"}, "experimental_attention_variant"),
    ],
)
def test_what_the_class_cannot_express_is_refused(args: dict[str, Any], setting: str) -> None:
    """A function that Llama's class doesn't compute is refused by the setting's name."""
    assert any(finding.startswith(f"{setting}: ") for finding in findings(args))


@pytest.mark.parametrize(
    ("args", "activation"),
    [
        ({"swiglu": False, "squared_relu": True}, "squared_relu"),
        ({"swiglu": False, "quick_geglu": True}, "gated quick_gelu"),
        ({"swiglu": False, "bias_gelu_fusion": True}, "gelu_tanh"),
        ({"swiglu": False, "bias_gelu_fusion": False}, "gelu"),
        (
            {"swiglu": GONE, "gated_linear_unit": True, "activation_func": "megatron.squared_relu"},
            "gated squared_relu",
        ),
    ],
)
def test_activations(args: dict[str, Any], activation: str) -> None:
    """The activation of args and of configs is compared with hidden_act, gated as the class is."""
    assert f"trained with {activation} (" in findings(args)[0]


@pytest.mark.parametrize(
    ("fusion", "hidden_act", "agrees"),
    [
        (False, "gelu", True),
        (False, "gelu_pytorch_tanh", False),
        (True, "gelu_pytorch_tanh", True),
        (True, "gelu", False),
        (GONE, "gelu", True),
        (GONE, "gelu_pytorch_tanh", True),
        (GONE, "silu", False),
    ],
)
def test_gelu_that_is_fused_is_the_tanh_form(fusion: Any, hidden_act: str, agrees: bool) -> None:
    """Megatron's fused kernel computes another GELU; where nobody says whether it did, that is told."""
    args = {
        "swiglu": GONE,
        "gated_linear_unit": True,
        "activation_func": "torch.nn.functional.gelu",
        "bias_activation_fusion": fusion,
    }
    if not agrees:
        assert findings(args, {"hidden_act": hidden_act})[0].startswith("activation: ")
    elif fusion is GONE:
        assert "can't be settled" in hold(args, {"hidden_act": hidden_act}).notes[0]
    else:
        assert hold(args, {"hidden_act": hidden_act}).notes == ()


@pytest.mark.parametrize(
    "name",
    [
        *("norm_epsilon", "rotary_base", "use_rope_scaling", "swiglu", "normalization", "window_size"),
        *("untie_embeddings_and_output_weights", "apply_layernorm_1p", "position_embedding_type"),
        *("rotary_percent", "rotary_interleaved", "group_query_attention"),
    ],
)
def test_unknown_is_not_false(name: str) -> None:
    """An arg that is absent, or None where None is no value of it, is not compared, and the report says
    which settings were not.
    """
    complete = set(hold(table="mistral").unchecked)
    without = hold({name: GONE}, table="mistral")
    nullable = name in ("window_size", "group_query_attention")
    if name != "group_query_attention":
        assert set(without.unchecked) - complete
    if not nullable:
        assert set(hold({name: None}, table="mistral").unchecked) - complete


def test_without_training_args_nothing_is_compared() -> None:
    """A checkpoint without args leaves every setting unchecked; values are those of config.json."""
    settled = settle(table_files.load("llama"), None, CONFIG, None)
    assert settled.values["num_query_groups"] == 2
    assert {"norm_epsilon", "rope_scaling", "normalization"} <= set(settled.unchecked)


def test_the_checkpoint_decides_where_it_is_asked_to() -> None:
    """With `correct`, every setting that has keys is written as it was trained; what has none is refused."""
    trained = {"rotary_base": 5e5, "norm_epsilon": 1e-3, "use_rope_scaling": True, "rope_scaling_factor": 8.0}
    config = hold(trained, {"tie_word_embeddings": True}, correct=True).config
    assert (config["rope_theta"], config["rms_norm_eps"]) == (5e5, 1e-3)
    assert config["rope_parameters"] == LLAMA3 | {"rope_theta": 5e5}
    assert config["rope_scaling"] == LLAMA3
    assert config["tie_word_embeddings"] is False
    moe = hold(
        {"moe_router_pre_softmax": True, "moe_layer_freq": [0, 1, 1, 1]}, table="qwen3_moe", correct=True
    )
    assert moe.config["norm_topk_prob"] is False
    assert moe.config["mlp_only_layers"] == [0]
    window = hold({"window_size": (63, 0)}, {"sliding_window": None}, table="mistral", correct=True)
    assert window.config["sliding_window"] == 64
    with pytest.raises(AccountingError):
        hold({"moe_router_score_function": "sigmoid"}, table="qwen3_moe", correct=True)


@pytest.mark.parametrize("table", ["mistral", "qwen2", "qwen3", "mixtral"])
@pytest.mark.parametrize("trained", [{"window_size": (63, 0)}, {"window_size": None}])
def test_a_corrected_config_says_what_was_trained(table: str, trained: dict[str, Any]) -> None:
    """Written and read again, a correction is the trained value: nothing differs any more."""
    given = {"sliding_window": 32, "use_sliding_window": True, "max_window_layers": 0}
    config = hold(trained, given, table=table, correct=True).config
    again = hold(trained, dict(config), table=table)
    assert changes(config, again) == []
    assert additions(config, again) == []


def test_args_that_no_loader_can_follow_are_told() -> None:
    """Dropped tokens and noise at inference, and a layer spec of one's own, are told and not refused."""
    trained = {"moe_expert_capacity_factor": 1.5, "moe_input_jitter_eps": 0.01, "spec": ["mine.py", "layer"]}
    notes = " ".join(hold(trained, table="qwen3_moe").notes)
    assert all(name in notes for name in trained)
    assert hold(dict.fromkeys(trained), table="qwen3_moe").notes == ()


def test_overruled_settings_are_named() -> None:
    """What a config says otherwise than another one is named by setting; spellings are no difference."""
    architecture = table_files.load("llama")
    assert overruled(architecture, CONFIG, spelled_out(architecture, CONFIG)) == []
    (sentence,) = overruled(architecture, CONFIG, CONFIG | {"rope_theta": 3.0})
    assert sentence == "config.json: rotary_base is 10000.0, and 3.0 is true."


def test_windows_that_are_named_and_switched_off() -> None:
    """Qwen2's class fails on such a config, and Qwen2-MoE's sees no token at all: neither is an answer."""
    config = {"layer_types": ["sliding_attention"] * 4, "sliding_window": 8, "use_sliding_window": False}
    for trained in ({}, {"window_size": GONE}, {"window_size": (7, 0)}):
        assert "can't be understood" in findings(trained, config, table="qwen2")[0]


@pytest.mark.parametrize("table", ["mistral", "mixtral"])
@pytest.mark.parametrize(
    "extra",
    [
        {"use_sliding_window": False},
        {"max_window_layers": 4},
        {"layer_types": ["full_attention"] * 4},
    ],
)
def test_keys_that_a_class_does_not_read_switch_nothing(table: str, extra: dict[str, Any]) -> None:
    """Mistral's and Mixtral's classes take `sliding_window` alone: what switches Qwen's off leaves theirs."""
    assert findings(config={"sliding_window": 8, **extra}, table=table)[0].startswith("windows: ")


def test_windows_of_qwen3_moe_are_in_all_layers() -> None:
    """Qwen3-MoE's class has the switch and no first layer."""
    config = {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 4}
    assert findings(config=config, table="qwen3_moe")[0].startswith("windows: ")
    trained = {"window_size": (63, 0)}
    assert hold(trained, config, table="qwen3_moe").values["windows"] == [64] * 4


@pytest.mark.parametrize(
    ("skips", "first", "types"),
    [([0, 0, 1, 1], 2, "ffss"), ([1, 0, 1, 0], 4, "sfsf"), ([1, 1, 1, 1], 0, "ssss")],
)
def test_windows_of_some_layers_are_corrected_for_all_loaders(
    skips: list[int], first: int, types: str
) -> None:
    """`layer_types` say which layers have a window; loaders without them are told the same, or as many full
    layers as they can be.
    """
    trained = {"window_size": (63, 0), "window_attn_skip_freq": skips}
    config = hold(trained, table="qwen2", correct=True).config
    kinds = {"f": "full_attention", "s": "sliding_attention"}
    assert config["layer_types"] == [kinds[kind] for kind in types]
    assert (config["sliding_window"], config["max_window_layers"]) == (64, first)
    assert findings(trained | {"window_attn_skip_freq": [1, 0, 0, 1]}, {"sliding_window": 8}, table="mistral")


@pytest.mark.parametrize(("topk", "setting"), [(1, "moe_router_score_function"), (2, "normalized_topk")])
def test_sinkhorn_is_what_it_is_at_inference(topk: int, setting: str) -> None:
    """Sinkhorn chooses by a sigmoid of one expert, or by a softmax that isn't divided again."""
    trained = {"moe_router_load_balancing_type": "sinkhorn", "moe_router_topk": topk}
    config = {"num_experts_per_tok": topk}
    found = findings(trained, config | {"norm_topk_prob": topk > 1}, table="qwen3_moe")
    assert any(finding.startswith(f"{setting}: ") for finding in found)


@pytest.mark.parametrize("groups", [{"moe_router_num_groups": 8}, {"moe_router_num_groups": 1}])
def test_groups_that_limit_nothing(groups: dict[str, Any]) -> None:
    """Groups of which all are chosen, or of which nobody says how many are, change nothing."""
    hold(groups, table="qwen3_moe")
    hold(groups | {"moe_router_group_topk": groups["moe_router_num_groups"]}, table="qwen3_moe")


@pytest.mark.parametrize(
    "config",
    [
        {"partial_rotary_factor": 0.5},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    ],
)
@pytest.mark.parametrize("trained", [{}, {"rotary_percent": 0.5}, {"rotary_percent": GONE}])
def test_heads_that_rotate_in_part_are_refused(config: dict[str, Any], trained: dict[str, Any]) -> None:
    """Llama's class rotates whole heads whatever config.json asks for, so nothing else is let through."""
    assert any(finding.startswith("rotary_percent: ") for finding in findings(trained, config))


def test_the_original_length_at_the_top_counts() -> None:
    """transformers takes `original_max_position_embeddings` of the top level before the one inside."""
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    twice = {"rope_scaling": yarn, "original_max_position_embeddings": 16}
    trained = {
        "position_embedding_type": "yarn",
        "rotary_scaling_factor": 4.0,
        "yarn_original_max_position_embeddings": 64,
    }
    assert findings(trained, twice)[0].startswith("rope_scaling: ")
    assert hold(trained | {"yarn_original_max_position_embeddings": 16}, twice)


def test_an_attention_factor_scales_by_itself() -> None:
    """YaRN by a factor of 1 is none, unless its attention factor is another."""
    one = {"rope_type": "yarn", "factor": 1.0}
    hold(config={"rope_scaling": one})
    assert findings(config={"rope_scaling": one | {"attention_factor": 1.5}})


@pytest.mark.parametrize(
    "config",
    [
        {"rope_scaling": "dynamic"},
        {"rope_scaling": {"rope_type": "linear", "factor": "x"}},
        {"rope_scaling": {"rope_type": "yarn", "factor": [4]}},
        {"rope_theta": "auto"},
        {"rope_parameters": [1]},
        {"sliding_window": "64"},
        {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": "2"},
    ],
)
@pytest.mark.parametrize("args", [{}, {"rotary_base": GONE, "use_rope_scaling": GONE, "window_size": GONE}])
def test_what_no_loader_could_take_is_refused(config: dict[str, Any], args: dict[str, Any]) -> None:
    """Values of other types than config.json has are named, whatever was trained, and never computed with."""
    assert any("can't be understood" in finding for finding in findings(args, config, table="qwen2"))


@pytest.mark.parametrize(
    "args",
    [
        {"rotary_base": [10000, 1000000]},
        {"window_size": "(63, 0)"},
        {"no_rope_freq": "0"},
        {"no_rope_freq": 2.5},
        {"yarn_mscale": "x", "position_embedding_type": "yarn", "rotary_scaling_factor": "many"},
        {"rope_scaling": "none"},
        {"num_layers": 10**400},
        {"rotary_base": float("nan")},
    ],
)
def test_args_of_other_types_are_unknown_or_differ(args: dict[str, Any]) -> None:
    """What no release writes is not known, or differs from every config; it never ends in another error."""
    try:
        settled = hold(args, table="mistral")
    except AccountingError:
        return
    assert settled.unchecked


def test_numbers_may_be_written_otherwise() -> None:
    """Text that is a number, and whole numbers as floats, are those numbers."""
    hold({"norm_epsilon": "1e-05", "rotary_base": "10000", "num_attention_heads": 8.0, "seq_length": 128.0})
    assert findings({"norm_epsilon": "1e-06"})


def test_a_base_that_no_release_would_take_from_there() -> None:
    """Beside a `rope_scaling`, the base inside `rope_parameters` isn't read: the class's default counts."""
    config = {
        "rope_theta": GONE,
        "rope_scaling": {"rope_type": "linear", "factor": 1.0},
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
    }
    assert hold(config=config).config["rope_theta"] == 10000.0
    assert findings({"rotary_base": 500000}, config)[0].startswith("rotary_base: ")


def test_defaults_are_left_to_the_library_while_it_is_awaited() -> None:
    """A provisional comparison finds what config.json itself says otherwise, and leaves its gaps alone."""
    table, trained = table_files.load("llama"), settings.derive(ARGS | {"rotary_base": 500_000})
    gap = {key: value for key, value in CONFIG.items() if key not in ("rope_theta", "num_hidden_layers")}
    settle(table, trained, gap, None, provisional=True)
    with pytest.raises(AccountingError):
        settle(table, trained, gap, None)
    with pytest.raises(AccountingError):
        settle(table, trained, CONFIG, None, provisional=True)


@pytest.mark.parametrize("table", ["llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen3_moe"])
def test_an_exported_config_is_left_as_it_is(table: str) -> None:
    """What an export wrote out is complete: with it as the reference, nothing is added or changed."""
    sparse = {"rope_theta": GONE, "rms_norm_eps": GONE, "hidden_act": GONE, "decoder_sparse_step": GONE}
    trained = {"norm_epsilon": GONE, "rotary_base": GONE}
    first = hold(trained, sparse, table=table).config
    again = settle(table_files.load(table), None, first, None)
    assert (changes(first, again), additions(first, again)) == ([], [])
    assert dict(again.config) == dict(first)
