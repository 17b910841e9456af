"""Claims of `pp_export.architecture.units`: tables say what belongs together and in which order, not
names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pp_export.architecture import table_files
from pp_export.architecture.accounting import Account, Expected, account
from pp_export.architecture.rules import Architecture
from pp_export.architecture.sizes import ModelSizes
from pp_export.core.dtypes import from_torch
from pp_export.core.errors import RuleError
from pp_export.core.tensors import TensorSpec

VISION = "vision_model.decoder.layers.{layer}."
UNITS = [
    {"unit": "vision {layer}", "megatron": [VISION]},
    {"unit": "layer {layer}", "megatron": ["decoder.layers.{layer}."]},
    {"unit": "end"},
]
ROWS = [
    {"megatron": f"{VISION}norm.weight", "hf": "vision.{layer}.norm.weight"},
    {"megatron": "decoder.layers.{layer}.norm.weight", "hf": "model.{layer}.norm.weight"},
    {"megatron": "decoder.layers.{layer}.late.weight", "hf": "late.{layer}.weight", "unit": "end"},
]


def load(folder: Path, units: list[Any] | None, rows: list[dict[str, Any]]) -> Architecture:
    path = folder / "table.yaml"
    path.write_text(yaml.safe_dump({"rules": rows} | ({} if units is None else {"units": units})))
    return table_files.load(str(path))


def findings(folder: Path, units: list[Any] | None, rows: list[dict[str, Any]]) -> str:
    with pytest.raises(RuleError) as caught:
        load(folder, units, rows)
    return "\n".join(caught.value.findings)


def settle(table: Architecture, *names: str) -> Account:
    specs = {name: TensorSpec((3,), from_torch("bfloat16")) for name in names}
    sizes = ModelSizes({}, "", 1, 1)
    return account(table, specs, sizes, expected=Expected(None, ""), drop_mtp=False)


def test_a_second_stack_of_layers_has_units_of_its_own(tmp_path: Path) -> None:
    """Layer 3 of a vision tower is not decoder layer 3: the declared units tell them apart and order them;
    numbers sort as numbers, and a row may name its unit.
    """
    towers = [f"{prefix}decoder.layers.{n}.norm.weight" for prefix in ("vision_model.", "") for n in (3, 10)]
    settled = settle(load(tmp_path, UNITS, ROWS), *towers, "decoder.layers.3.late.weight")
    units = {name: str(unit) for name, unit in settled.unit_of.items()}
    assert units == {
        "vision.3.norm.weight": "vision 3",
        "vision.10.norm.weight": "vision 10",
        "model.3.norm.weight": "layer 3",
        "model.10.norm.weight": "layer 10",
        "late.3.weight": "end",
    }
    assert [str(u) for u in sorted(set(settled.unit_of.values()))] == [
        *("vision 3", "vision 10", "layer 3", "layer 10", "end")
    ]


def test_a_name_that_only_contains_a_prefix_is_of_no_unit(tmp_path: Path) -> None:
    """Units are those that the table declares: `vision_model.decoder.layers.3` is none of a GPT's, and the
    row that would guess so is refused, naming the units that there are.
    """
    text = findings(tmp_path, None, ROWS[:1])
    assert text.startswith(f"{VISION}norm.weight: it is of no unit")
    assert "['embed', 'layer {layer}', 'mtp {mtp}', 'head']" in text


def test_packaged_tables_have_the_units_of_a_gpt(tmp_path: Path) -> None:
    """Embedding, layers, MTP layers, head, in this order; a table of one's own that extends none has them
    too.
    """
    for name in {*table_files.packaged().values(), "megatron"}:
        lines = table_files.load(name).table["units"]
        assert [line["unit"] for line in lines] == ["embed", "layer {layer}", "mtp {mtp}", "head"]
    own = load(tmp_path, None, [{"megatron": "output_layer.weight", "hf": "head"}])
    assert [str(unit) for unit in settle(own, "output_layer.weight").unit_of.values()] == ["head"]


@pytest.mark.parametrize(
    ("units", "row", "finding"),
    [
        ([{"unit": 3}], {}, "units: {'unit': 3} is not {unit: NAME, megatron: [PREFIX., ...]}"),
        (["head"], {}, "units: 'head' is not {unit: NAME"),
        ([{"unit": "a", "megatron": ["decoder"]}], {}, "units: a: 'decoder' must end with a dot"),
        (
            [{"unit": "a {layer}", "megatron": ["decoder."]}],
            {},
            "units: a {layer}: decoder. has no hole {layer}",
        ),
        ([{"unit": "a"}, {"unit": "a"}], {"unit": "a"}, "units: a comes twice"),
        (
            [{"unit": "a", "megatron": ["decoder."]}, {"unit": "b", "megatron": ["decoder.layers."]}],
            {},
            "units ['a', 'b'] share it",
        ),
        ([{"unit": "a"}], {"unit": "c"}, "it is of no unit; known are ['a']"),
        ([{"unit": "a {mtp}"}], {"unit": "a {mtp}"}, "unit a {mtp} needs a hole {mtp}"),
    ],
)
def test_wrong_units_are_named(tmp_path: Path, units: list[Any], row: dict[str, Any], finding: str) -> None:
    """What is wrong with a unit, or with a row's unit, is said in words that lead to it."""
    assert finding in findings(tmp_path, units, [ROWS[1] | row])
