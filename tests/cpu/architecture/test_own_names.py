"""Claims of `pp_export.architecture.own_names`: what a model and an input lack or have besides is decided by
names and shapes, and nothing is left out in silence.
"""

from __future__ import annotations

import pytest

from pp_export.architecture import own_names
from pp_export.architecture.encodings import Types
from pp_export.architecture.own_names import Model
from pp_export.core import dtypes
from pp_export.core.errors import AccountingError
from pp_export.core.tensors import TensorSpec
from pp_export.core.views import View

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def specs_of(**shapes: tuple[int, ...]) -> dict[str, TensorSpec]:
    """float32 tensors by name, in which `__` stands for a dot."""
    return {
        name.replace("__", "."): TensorSpec(s, dtypes.from_torch("float32")) for name, s in shapes.items()
    }


SPECS = specs_of(a__weight=(4, 2), a__bias=(4,))
SHAPES = {name: spec.shape for name, spec in SPECS.items()}


def test_the_definition_decides_and_the_index_adds() -> None:
    """What the class has must be there; what only the index has may be, and stays; what neither knows is
    refused.
    """
    model = Model(SHAPES, {**SHAPES, "mtp.weight": None, "other.weight": (1,)}, {})
    decided = own_names.decide({**SPECS, **specs_of(mtp__weight=(3,))}, model)
    assert decided.made == (*SPECS, "mtp.weight")
    assert (decided.further, decided.absent) == (("mtp.weight",), ("other.weight",))
    with pytest.raises(AccountingError) as caught:
        own_names.decide({"a.weight": SPECS["a.weight"], **specs_of(b__bias=(4,))}, model)
    assert caught.value.findings == (
        "a.bias is expected, and the input does not have it",
        "b.bias float32[4] is in the input, and the model does not have it",
    )


def test_without_a_definition_the_index_decides() -> None:
    """Then it must have every name, and no more."""
    assert own_names.decide(SPECS, Model(None, SHAPES)).made == tuple(SPECS)
    assert own_names.decide(SPECS, Model()).made == tuple(SPECS)
    with pytest.raises(AccountingError, match="one to one"):
        own_names.decide(SPECS, Model(None, {**SHAPES, "b": None}))


def test_tied_names_are_dropped_where_the_class_says_so() -> None:
    """One that is expected stays; one that is tied goes, naming what it equals."""
    specs = specs_of(lm_head__weight=(4, 2), model__embed_tokens__weight=(4, 2))
    tied = Model({EMBEDDING: (4, 2)}, None, {HEAD: EMBEDDING})
    assert own_names.decide(specs, tied).dropped == {HEAD: EMBEDDING}
    untied = Model({EMBEDDING: (4, 2), HEAD: (4, 2)}, None, {})
    assert own_names.decide(specs, untied).dropped == {}


@pytest.mark.parametrize(
    ("shape", "is_cut"), [((3, 2), True), ((4, 1), True), ((5, 2), False), ((3, 1), False), ((8,), False)]
)
def test_shapes_are_the_models(shape: tuple[int, ...], is_cut: bool) -> None:
    """A tensor that is shorter along one dim tells of ranks whose files are missing."""
    with pytest.raises(AccountingError) as caught:
        own_names.decide(SPECS | specs_of(a__weight=shape), Model(SHAPES, None, {}))
    (finding,) = caught.value.findings
    assert finding.startswith(f"a.weight: the model expects shape [4, 2], the input gives {list(shape)}")
    assert finding.endswith("the files of the last ranks are missing") == is_cut


def test_adapters_are_no_weights() -> None:
    """They would be lost, or mistaken for the model's."""
    with pytest.raises(AccountingError) as caught:
        own_names.decide(SPECS | specs_of(a__lora_A__weight=(1, 2)), Model())
    assert "LoRA" in caught.value.findings[0]


def test_every_tensor_is_made_of_its_own_name() -> None:
    """Whole, in its place, and cast only where it is of floating point and two bytes or more."""
    other = {"a.ids": "int64", "a.mask": "bool", "a.packed": "float8_e4m3fn", "a.scale": "float64"}
    specs = {**SPECS, **{name: TensorSpec((), dtypes.from_torch(kind)) for name, kind in other.items()}}
    decided = own_names.decide(specs, Model())
    account = own_names.account(specs, decided, "", Types(dtypes.from_torch("bfloat16")))
    types = {name: spec.dtype.torch_name for name, spec in account.outputs.items()}
    assert types == {**dict.fromkeys(SPECS, "bfloat16"), **other, "a.scale": "bfloat16"}
    for name, spec in specs.items():
        (placement,) = account.placements[name]
        assert (placement.name, placement.view, placement.target) == (name, *[View.of(spec.shape)] * 2)


def test_units_are_layers_of_towers() -> None:
    """The first number in a name counts layers, in numerical order, tower by tower."""
    names = ["visual.blocks.10.a", "model.layers.2.experts.7.w", "visual.blocks.9.a", "lm_head.weight",
             "model.embed_tokens.weight", "model.norm.weight", "model.layers.10.a"]  # fmt: skip
    units = own_names.units_of(names)
    assert sorted(names, key=units.__getitem__) == [
        *("model.embed_tokens.weight", "model.layers.2.experts.7.w", "model.layers.10.a"),
        *("visual.blocks.9.a", "visual.blocks.10.a", "lm_head.weight", "model.norm.weight"),
    ]
    assert str(units["model.layers.2.experts.7.w"]) == "model.layers.2"
