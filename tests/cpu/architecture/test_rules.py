"""Claims of `pp_export.architecture.rules`: a table says what it means, and everything wrong in it is
found and named.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from pp_export.architecture import table_files
from pp_export.architecture.rules import Architecture, Required
from pp_export.core.errors import RuleError
from tests.fixtures.models import MODELS

QKV = "decoder.layers.{layer}.self_attention.linear_qkv.weight"
QKV_HF = {role: f"model.layers.{{layer}}.self_attn.{role}_proj.weight" for role in "qkv"}
CLASSES = {model.hf_class for model in MODELS.values()}


def write(folder: Path, table: dict[str, Any], name: str = "table.yaml") -> str:
    path = folder / name
    path.write_text(yaml.safe_dump(table))
    return str(path)


def load(folder: Path, *rows: dict[str, Any], **keys: Any) -> Architecture:
    """A table of these rows, each of the unit `head` unless it says otherwise."""
    known = [{"unit": "head", **row} for row in rows]
    return table_files.load(write(folder, {"rules": known, **keys}))


def findings(folder: Path, *rows: dict[str, Any]) -> str:
    """The findings about a table of these rows, a line each."""
    with pytest.raises(RuleError) as caught:
        load(folder, *rows)
    assert caught.value.where["table"].endswith("table.yaml")
    return "\n".join(caught.value.findings)


def test_every_packaged_table_is_valid_and_serves_its_classes() -> None:
    """All packaged tables load, each served class has one table, and all classes of the tests are served."""
    served = table_files.packaged()
    assert served.keys() >= CLASSES
    for class_name, name in served.items():
        table = table_files.for_class(class_name)
        assert table.name == name
        assert class_name in table.serves
        assert len(table.rules) > 10
        for rule in table.rules:
            assert set(rule.hf) == set(rule.transform.roles) or rule.drop


def test_an_unserved_class_is_refused_and_told_where_the_served_ones_are() -> None:
    """A class without a table is refused, with where the others are listed and the way to write a table."""
    with pytest.raises(RuleError, match="no architecture table serves") as caught:
        table_files.for_class("MambaForCausalLM")
    assert caught.value.got == "MambaForCausalLM"
    assert str(len(table_files.packaged())) in str(caught.value.expected)
    assert "pp_export families" in str(caught.value.expected)
    assert "--architecture" in str(caught.value.advice)


@pytest.mark.parametrize(
    ("hf_class", "told"),
    [
        ("Qwen4ForCausalLM", "extend qwen3 or qwen2"),
        ("Glm4MoeXForSequenceClassification", "extend glm4_moe or"),
        ("FalconForCausalLM", "begins one) and pass it"),
    ],
)
def test_the_nearest_tables_are_named(hf_class: str, told: str) -> None:
    """For the next member of a family, the tables that its own may extend; for none, no guess."""
    with pytest.raises(RuleError) as caught:
        table_files.for_class(hf_class)
    assert told in str(caught.value.advice)


def test_a_class_that_no_table_can_serve_is_refused_with_the_reason() -> None:
    """What no model of megatron-core computes is named, and that a layer of somebody's own may do it."""
    with pytest.raises(
        RuleError, match=r"no architecture table serves.*normed behind the rotation"
    ) as caught:
        table_files.for_class("HunYuanDenseV1ForCausalLM")
    assert "layers that do this" in str(caught.value)


def test_a_row_matches_whole_names_with_numbers_in_its_holes() -> None:
    """A name matches only as a whole, numbers only where the pattern has holes, and the numbers are
    returned.
    """
    table = table_files.load("qwen3_moe")
    match = table.match("decoder.layers.12.mlp.experts.7.linear_fc1.weight")
    assert match is not None
    assert match[1] == {"layer": 12, "expert": 7}
    assert match[0].transform.name == "split_glu"
    assert match[0].stacked == ()
    for name in (
        "decoder.layers.12.mlp.experts.7.linear_fc1.weight_extra",
        "model.decoder.layers.12.mlp.experts.7.linear_fc1.weight",
        "decoder.layers.x.mlp.experts.7.linear_fc1.weight",
        "decoder.layers.mlp.experts.7.linear_fc1.weight",
        "decoder.layers.1.2.mlp.router.weight",
        "decoder.layers.-1.mlp.router.weight",
        "decoderXlayers.1.mlp.router.weight",
        "",
    ):
        assert table.match(name) is None, name


def test_the_order_of_rows_means_nothing(tmp_path: Path) -> None:
    """A table with its rows reversed matches every name in the same way."""
    rows = [{"megatron": f"a.{{layer}}.{x}", "hf": f"b.{{layer}}.{x}"} for x in ("one", "two", "one.two")]
    forward, backward = load(tmp_path, *rows), load(tmp_path, *reversed(rows))
    for name in ("a.3.one", "a.3.two", "a.3.one.two", "a.3.three"):
        assert forward.match(name) == backward.match(name)


def test_a_hole_that_the_hf_name_lacks_means_stacking(tmp_path: Path) -> None:
    """The holes that no HF name of a row has are those it stacks over, in the order of the Megatron name."""
    row = {"megatron": "decoder.layers.{layer}.mlp.experts.{expert}.w", "hf": "experts.w"}
    assert load(tmp_path, row).rules[0].stacked == ("layer", "expert")
    row["hf"] = "layers.{layer}.experts.w"
    assert load(tmp_path, row).rules[0].stacked == ("expert",)


def test_a_drop_needs_a_reason(tmp_path: Path) -> None:
    """A row that drops a tensor keeps its reason; without a reason, or with names as well, it is refused."""
    assert load(tmp_path, {"megatron": "a.b", "drop": "not used"}).rules[0].drop == "not used"
    for row in ({"drop": ""}, {"drop": "  "}, {"drop": True}, {"drop": "why", "hf": "c"}, {}):
        text = findings(tmp_path, {"megatron": "a.b", **row})
        assert text == "a.b: give either `hf` or `drop` with a reason"


def test_ambiguous_rows_are_found(tmp_path: Path) -> None:
    """Two rows that would match the same tensors are refused, naming both, however their holes are called."""
    first = {"megatron": "a.{layer}.w", "hf": "b.{layer}.w"}
    second = {"megatron": "a.{expert}.w", "hf": "c.{expert}.w"}
    assert findings(tmp_path, first, second) == "a.{expert}.w and a.{layer}.w match the same tensors"
    assert "match the same tensors" in findings(tmp_path, first, dict(first))


@pytest.mark.parametrize(
    ("row", "finding"),
    [
        ({"transform": "turn"}, "unknown transform 'turn'; known are ['copy', "),
        ({"transform": ["copy"]}, "unknown transform ['copy']; known are ["),
        (
            {"transfrom": "copy"},
            "unknown keys ['transfrom']; known are "
            "['drop', 'hf', 'keeps_type', 'megatron', 'plus_one', 'transform', 'unit']",
        ),
        ({"megatron": "a.{layr}.w", "hf": "b"}, "unknown hole {layr}; known are ['layer', 'expert', 'mtp']"),
        ({"megatron": "a.{}.w", "hf": "b"}, "unknown hole {}"),
        ({"megatron": "a.{layer}.{layer}.w"}, "hole {layer} comes twice"),
        ({"hf": "b.{expert}.w"}, "b.{expert}.w has hole {expert} without a source"),
        ({"hf": "b.{}.w"}, "b.{}.w has hole {} without a source"),
        ({"megatron": "a.0.w"}, "numbers must be holes"),
        ({"megatron": "a.{layer}.3"}, "numbers must be holes"),
        ({"megatron": "a.x{layer}.w"}, "a hole must be a whole part of the name"),
        ({"megatron": "{layer}.w"}, "a hole must be a whole part of the name"),
        ({"hf": "b.{layer.real}.w"}, "b.{layer.real}.w has a brace that is no hole"),
        ({"hf": "b.{layer!r}.w"}, "b.{layer!r}.w has a brace that is no hole"),
        ({"hf": "b.{layer:>9}.w"}, "has a brace that is no hole"),
        ({"hf": "b.{layer.w"}, "has a brace that is no hole"),
        ({"hf": {"q": "b"}}, "copy gives [''], `hf` names ['q']"),
        ({"hf": "b", "transform": "split_glu"}, "split_glu gives ['gate', 'up'], `hf` names ['']"),
        (
            {"hf": {"gate": "b"}, "transform": "split_glu"},
            "split_glu gives ['gate', 'up'], `hf` names ['gate']",
        ),
        ({"hf": {"gate": "b", "up": "b"}, "transform": "split_glu"}, "two outputs have one name"),
        (
            {"hf": {"gate": "b", "up": 3}, "transform": "split_glu"},
            "`hf` must be a name, or a mapping of roles",
        ),
        ({"hf": ["b"]}, "`hf` must be a name, or a mapping of roles"),
        ({"hf": 3}, "`hf` must be a name, or a mapping of roles"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, row: dict[str, Any], finding: str) -> None:
    """Each fault of a row is found, with the row's pattern in front."""
    full = {"megatron": "a.{layer}.w", "hf": "b.{layer}.w"} | row
    text = findings(tmp_path, full)
    assert finding in text
    assert text.startswith(full["megatron"] + ": ")


def test_all_faults_of_a_table_are_listed_at_once(tmp_path: Path) -> None:
    """Faults in several rows come in one error."""
    text = findings(
        tmp_path,
        {"megatron": "a.0.w", "hf": "b.{layer}", "transform": "turn"},
        {"megatron": "c", "drop": ""},
        {"megatron": "d", "hf": "e"},
        {"megatron": "d", "hf": "f"},
    )
    for finding in (
        "numbers must be holes",
        "unknown transform",
        "without a source",
        "c: give",
        "d and d match",
    ):
        assert finding in text


def test_a_table_takes_rows_over_and_replaces_them(tmp_path: Path) -> None:
    """`extends` takes the base's rows, config and requires; the same pattern or setting replaces, whatever
    was said of it, and null removes.
    """
    base = table_files.load("llama")
    mine = table_files.load(
        write(
            tmp_path,
            {
                "extends": "llama",
                "serves": ["MyForCausalLM"],
                "config": {"rotary_base": None, "num_experts": "n_experts"},
                "requires": {"swiglu": False, "tied": {"value": True, "instead": "another class"}},
                "rules": [
                    {"megatron": QKV, "drop": "a test"},
                    {"megatron": "extra", "hf": "extra", "unit": "head"},
                ],
            },
        )
    )
    assert mine.serves == ("MyForCausalLM",)
    assert mine.name == "table"
    assert set(mine.readings) == set(base.readings) - {"rotary_base", "tied"} | {"num_experts"}
    assert mine.readings["num_experts"].keys == ("n_experts",)
    inherited = {name: required for name, required in base.requires.items() if name != "num_experts"}
    own = {"swiglu": Required(False), "tied": Required(True, "another class")}
    assert mine.requires == inherited | own
    assert len(mine.rules) == len(base.rules) + 1
    match = mine.match("decoder.layers.0.self_attention.linear_qkv.weight")
    assert match is not None
    assert match[0].drop == "a test"


def test_circular_tables_are_refused(tmp_path: Path) -> None:
    """Tables that extend each other are refused, naming the way round."""
    one, two = str(tmp_path / "one.yaml"), str(tmp_path / "two.yaml")
    write(tmp_path, {"extends": two}, "one.yaml")
    write(tmp_path, {"extends": one}, "two.yaml")
    with pytest.raises(RuleError, match="in a circle") as caught:
        table_files.load(one)
    assert caught.value.got == f"{one} -> {two} -> {one}"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("rules: []\nserve: [X]\n", "unknown keys"),
        ("- a\n", "unknown keys"),
        ("", "unknown keys"),
        ("rules: {}\n", "`rules` must be a list"),
        ("rules:\n", "`rules` must be a list"),
        ("serves: X\n", "`serves` must be a list"),
        ("serves: [3]\n", "`serves` must hold names"),
        ("config: [a]\n", "`config` must be a mapping"),
        ("config: {num_layers: 3}\n", "`config` must give keys of config.json"),
        ("config: {windows: {reading: unheard}}\n", "the architecture table is wrong"),
        ("requires: {tied: {instead: x}}\n", "`requires` must give values"),
        ("tells: [a]\n", "`tells` must be a mapping"),
        ("defaults: [a]\n", "`defaults` must be a mapping"),
        ("extends: 3\n", "`extends` must be a text"),
        ("extends: absent\n", "no such architecture table"),
        ("extends: ../llama\n", "no such architecture table"),
        ("rules: [a]\n", "must be a mapping with a `megatron` pattern"),
        ("rules: [{hf: a}]\n", "must be a mapping with a `megatron` pattern"),
        ("rules: [{megatron: 3, hf: a}]\n", "must be a mapping with a `megatron` pattern"),
        ("a: [\n", "is not YAML"),
        ("a: !!python/object/apply:os.getcwd []\n", "is not YAML"),
        ("requires: {started: 2026-01-01}\n", "JSON doesn't have"),
        ("requires: {rotary_base: .nan}\n", "JSON doesn't have"),
        ("requires: {1: {2: !!set {a}}}\n", "JSON doesn't have"),
    ],
)
def test_a_table_of_another_form_is_refused(tmp_path: Path, text: str, match: str) -> None:
    """Unknown keys, values of another kind, absent bases and what is not YAML are refused with the table
    named.
    """
    path = tmp_path / "table.yaml"
    path.write_text(text)
    with pytest.raises(RuleError, match=match) as caught:
        table_files.load(str(path))
    assert "table" in caught.value.where
    with pytest.raises(RuleError, match="no such architecture table"):
        table_files.load(str(tmp_path / "absent.yaml"))


def test_tables_are_values() -> None:
    """A loaded table can't be changed."""
    table = table_files.load("llama")
    with pytest.raises(dataclasses.FrozenInstanceError):
        table.name = "other"  # type: ignore[misc]
