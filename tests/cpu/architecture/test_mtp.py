"""Claims of `pp_export.architecture.mtp`: which tensors belong to MTP layers, how many there must be."""

from __future__ import annotations

from typing import Any

import pytest

from pp_export.architecture import table_files
from pp_export.architecture.mtp import Depths, Mtp, settle_count
from pp_export.core.errors import AccountingError, RuleError

NAMES = [f"decoder.layers.{layer}.mlp.linear_fc1.weight" for layer in (0, 11, 9)]


def test_layers_are_counted_by_their_names() -> None:
    """The last of the decoder, all MTP layers, and the most layers inside of one."""
    inner = [f"mtp.layers.{mtp}.mtp_model_layer.layers.{inner}.x" for mtp, inner in ((0, 0), (0, 1), (2, 0))]
    assert Depths.of([*NAMES, *inner, "output_layer.weight"]) == Depths(12, (0, 2), 2)
    assert Depths.of([*NAMES, "mtp.layers.0.transformer_layer.mlp.layers.weight"]) == Depths(12, (0,), 1)
    assert Depths.of([]) == Depths(0, (), 1)


def test_numbers_follow_from_those_of_the_checkpoint() -> None:
    """`after` counts on from the decoder's layers; `flat`, `first` and `last` number all that are inside."""
    depths = Depths(12, (0, 1), 3)
    assert depths.numbers({"mtp": 1}) == {"after": 13, "first": 3, "last": 5}
    assert depths.numbers({"mtp": 1, "layer": 2})["flat"] == 5


@pytest.mark.parametrize(
    ("hf_class", "name", "is_covered"),
    [
        ("DeepseekV3ForCausalLM", "model.layers.61.enorm.weight", True),
        ("DeepseekV3ForCausalLM", "model.layers.61.what.nobody.knows", True),
        ("DeepseekV3ForCausalLM", "model.layers.60.input_layernorm.weight", False),
        ("DeepseekV3ForCausalLM", "model.norm.weight", False),
        ("Qwen3ForCausalLM", "mtp.fc.weight", True),
        ("Qwen3ForCausalLM", "mtp.layers.0.mlp.gate_proj.weight", True),
        ("Qwen3ForCausalLM", "model.layers.99.mlp.gate_proj.weight", False),
    ],
)
def test_tensors_of_mtp_layers_are_known_by_where_they_stand(
    hf_class: str, name: str, *, is_covered: bool
) -> None:
    """Also those that no row makes: they would be missed otherwise."""
    mtp = table_files.for_class(hf_class).mtp
    assert mtp is not None
    assert mtp.covers(name, 61) == is_covered


@pytest.mark.parametrize(
    ("policy", "mtp", "args", "promised", "count"),
    [
        ("export", (), {}, 0, 0),
        ("export", (0,), {"mtp_num_layers": 1}, 0, 1),
        ("export", (0,), None, 1, 1),
        ("export", (0,), {"mtp_num_layers": 2, "mtp_use_repeated_layer": True}, 1, 1),
        ("require", (0, 1), {"mtp_num_layers": 2}, 0, 2),
        ("drop", (), {"mtp_num_layers": 2}, 3, 0),
        ("drop", (1,), {}, 0, 0),
    ],
)
def test_what_the_checkpoint_has_counts(
    policy: str, mtp: tuple[int, ...], args: dict[str, Any] | None, promised: int, count: int
) -> None:
    """The export has the MTP layers of the checkpoint, or none when they are dropped."""
    assert settle_count(policy, Depths(4, mtp, 1), args, promised) == count


@pytest.mark.parametrize(
    ("policy", "mtp", "args", "promised", "text"),
    [
        ("export", (), {}, 1, "config.json promises MTP layers that the checkpoint doesn't have"),
        ("require", (), {}, 1, "config.json promises MTP layers that the checkpoint doesn't have"),
        ("require", (), {}, 0, "the checkpoint has no MTP layers"),
        ("export", (0,), {"mtp_num_layers": 2}, 0, "MTP layers that were trained are missing"),
        ("export", (1,), {}, 0, "an MTP layer is missing from the checkpoint"),
    ],
)
def test_fewer_layers_than_there_should_be_are_refused(
    policy: str, mtp: tuple[int, ...], args: dict[str, Any], promised: int, text: str
) -> None:
    """Neither config.json's promise nor what was trained is broken in silence."""
    with pytest.raises(AccountingError, match=text):
        settle_count(policy, Depths(4, mtp, 1), args, promised)


@pytest.mark.parametrize(
    ("section", "text"),
    [
        ({"inner": {}}, "`outer` must"),
        ({"outer": {}, "inner": {"megatron": "a."}}, "`inner` must be"),
        ({"outer": {}, "inner": {"megatron": "a.", "hf": "b."}, "copies": {"a": 1}}, "`copies` must"),
        ({"outer": {}, "inner": {"megatron": "a.", "hf": "b."}, "copies": {"a.{x}": "c"}}, "hole {x}"),
        ({"outer": {}, "inner": {"megatron": "a.", "hf": "b."}, "colour": 1}, "colour"),
        ({"outer": {}, "inner": {"megatron": "a.", "hf": "b.", "names": {"a": 1}}}, "`inner` must be"),
        ({"refused": ""}, "`refused` must"),
        ({"refused": 1}, "`refused` must"),
        ({"refused": "why", "outer": {}}, "`refused` must"),
    ],
)
def test_a_wrong_section_is_told(section: dict[str, Any], text: str) -> None:
    """A table that says something else of MTP layers than can be understood is refused for that."""
    from pp_export.architecture.rules import checked

    table = {**table_files.load("qwen3").table, "mtp": section}
    with pytest.raises(RuleError) as caught:
        checked("own", table)
    assert text in str(caught.value.findings)


def test_a_class_without_rows_refuses_what_it_has_no_names_for() -> None:
    """Whether some can be exported follows from the rows; why not, the table says, or that it has none."""
    ernie = table_files.for_class("Ernie4_5_MoeForCausalLM")
    assert ernie.mtp is None
    with pytest.raises(AccountingError, match="no norm behind an MTP layer") as caught:
        settle_count("export", Depths(4, (0,), 1), {}, 0, ernie.mtp_refusal)
    assert "--mtp drop" in str(caught.value.advice)
    assert settle_count("drop", Depths(4, (0,), 1), {}, 0, ernie.mtp_refusal) == 0
    assert settle_count("export", Depths(4, (), 1), {}, 0, ernie.mtp_refusal) == 0
    assert table_files.for_class("Qwen3ForSequenceClassification").mtp_refusal is not None
    assert table_files.for_class("LlamaForCausalLM").mtp_refusal == "the table has no rows for them"
    assert table_files.for_class("MiMoV2FlashForCausalLM").mtp_refusal is None


def test_modules_inside_may_have_names_of_their_own() -> None:
    """Only the module that is named changes its name, wherever its row stands."""
    architecture = table_files.for_class("MiMoV2FlashForCausalLM")
    for part in ("mlp.linear_fc1.layer_norm_weight", "pre_mlp_layernorm.weight"):
        rule, holes = architecture.match(f"mtp.layers.2.transformer_layer.{part}") or (None, {})
        assert rule is not None
        names = rule.names(holes, Depths(4, (0, 1, 2), 1))
        assert names == ("model.mtp.layers.2.pre_mlp_layernorm.weight",)


def test_tensors_of_mtp_layers_move_with_the_last_layer() -> None:
    """Where they count on from it."""
    mtp = table_files.for_class("DeepseekV3ForCausalLM").mtp
    assert mtp is not None
    assert mtp.moved("model.layers.61.enorm.weight", 61, 30) == "model.layers.30.enorm.weight"
    assert mtp.moved("model.layers.62.what.nobody.knows", 61, 30) == "model.layers.31.what.nobody.knows"
    mtp = table_files.for_class("Qwen3ForCausalLM").mtp
    assert mtp is not None
    assert mtp.moved("mtp.layers.0.mlp.gate_proj.weight", 61, 30) == "mtp.layers.0.mlp.gate_proj.weight"


def test_names_without_a_number_are_of_one_layer() -> None:
    """Two MTP layers whose tensors would have one name are no stack of them."""
    rule, holes = table_files.load("qwen3").match("mtp.layers.1.eh_proj.weight") or (None, {})
    assert rule is not None
    assert rule.stacked == ()
    assert rule.names(holes, Depths(4, (0, 1), 1)) == ("mtp.fc.weight",)
    assert isinstance(table_files.load("qwen3").mtp, Mtp)
