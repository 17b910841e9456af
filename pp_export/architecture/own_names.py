"""Tensors that have Hugging Face names already: the account of a consolidation, in which every tensor is made
of the one of its name.

Held against the model's own definition and the reference's index as an export is: what they lack or have
besides is decided here, on names and shapes alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pp_export.architecture.accounting import DEFINITION, INDEX, Account
from pp_export.architecture.encodings import AS_STORED, Types, casts, encoded
from pp_export.architecture.made import Placement
from pp_export.architecture.rules import Architecture
from pp_export.architecture.units import Unit
from pp_export.core.errors import AccountingError
from pp_export.core.tensors import Shape, TensorSpec
from pp_export.core.views import View

NAME = "names as stored"
NOBODY = "the input itself"

_NUMBERED = re.compile(r"(.*?)\.(\d+)\.")
_FIRST = re.compile(r"embed|\bwte\b|\bwpe\b|position|\bshared\b")
_ADAPTER = re.compile(r"lora_|\.adapters?\.")
_LORA = "belongs to an adapter (LoRA); merge the adapter into the base weights first"

Tensors = Mapping[str, Shape | None]


@dataclass(frozen=True)
class Model:
    """What is known of the model: the tensors of its `definition` and of the reference's `index` (None where
    nobody knows them; shapes None where they are not known), and which names of the definition's class are
    `tied` to which.
    """

    definition: Tensors | None = None
    index: Tensors | None = None
    tied: Mapping[str, str] | None = None

    @property
    def truth(self) -> str:
        """Who says which tensors there are."""
        return DEFINITION if self.definition is not None else NOBODY if self.index is None else INDEX

    @property
    def tensors(self) -> Tensors | None:
        """Those that there must be."""
        return self.index if self.definition is None else self.definition


def architecture(class_name: str) -> Architecture:
    """What stands for a table: there are no rules, and no training args to hold against."""
    serves = (class_name,) if class_name else ()
    return Architecture(
        name=NAME,
        serves=serves,
        model_type=None,
        readings={},
        requires={},
        tells={},
        defaults={},
        outright={},
        shown={},
        rules=(),
        mtp=None,
        within=None,
        table={"names": "as stored"},
    )


@dataclass(frozen=True)
class Decided:
    """What becomes of each tensor: `made`, or `dropped` as equal to another one, which is still to be proved.
    `further` are in the reference's index and not in the class; `absent` are there and not in the input.
    """

    made: tuple[str, ...]
    dropped: Mapping[str, str]
    further: tuple[str, ...]
    absent: tuple[str, ...]


def decide(specs: Mapping[str, TensorSpec], model: Model) -> Decided:
    """Raises AccountingError that lists every tensor that is missing, unexpected, or of another shape."""
    expected, index, tied = model.tensors, model.index or {}, model.tied or {}
    findings = [f"{name} {_LORA}" for name in specs if _ADAPTER.search(name)]
    if expected is None:
        _refuse(findings, model)
        return Decided(tuple(specs), {}, (), ())
    dropped = {name: tied[name] for name in specs if name not in expected and name in tied}
    further = [name for name in specs if name not in expected and name not in tied and name in index]
    findings += [
        f"{name} is expected, and the input does not have it"
        for name in expected
        if name not in specs and name not in tied
    ]
    findings += [
        f"{name} {spec} is in the input, and the model does not have it"
        for name, spec in specs.items()
        if name not in expected and name not in dropped and name not in index
    ]
    findings += _shape_findings(specs, expected) + _shape_findings(specs, {n: index[n] for n in further})
    _refuse(findings, model)
    absent = [name for name in index if name not in specs and name not in tied]
    made = tuple(name for name in specs if name not in dropped)
    return Decided(made, dropped, tuple(further), tuple(absent))


def account(
    specs: Mapping[str, TensorSpec], decided: Decided, truth: str, types: Types = AS_STORED
) -> Account:
    """The account of what was `decided`. Floating-point tensors of two bytes and more are cast as `types`
    say; all others stay as they are.
    """
    made = {name: specs[name] for name in decided.made}
    packed = {name for name, spec in made.items() if spec.dtype.itemsize < 2}
    encodings = casts(made, types, packed)
    units = units_of(made)
    whole = {shape: View.of(shape) for shape in {spec.shape for spec in made.values()}}
    return Account(
        encodings=encodings,
        outputs=encoded(made, encodings),
        unit_of=units,
        sources_of={name: (name,) for name in made},
        placements={
            name: (Placement(name, whole[spec.shape], name, whole[spec.shape]),)
            for name, spec in made.items()
        },
        shapes={name: spec.shape for name, spec in made.items()},
        num_parts_of=dict.fromkeys(made, 1),
        expert_of={},
        dropped={name: f"equal to {of}, to which the class ties it" for name, of in decided.dropped.items()},
        truth=truth,
    )


def units_of(names: Iterable[str]) -> dict[str, Unit]:
    """The unit of each tensor: the layer that the first number in its name counts; else what comes first in a
    model, or last. Towers (`visual.blocks`, `model.layers`) follow one another by name.
    """
    names = list(names)
    layers = {name: match for name in names if (match := _NUMBERED.match(name))}
    towers = {tower: number for number, tower in enumerate(sorted({match[1] for match in layers.values()}))}
    found: dict[str, Unit] = {}
    for name in names:
        if match := layers.get(name):
            found[name] = Unit(1, (towers[match[1]], int(match[2])), f"{match[1]}.{match[2]}")
        else:
            found[name] = Unit(0, (), "embed") if _FIRST.search(name) else Unit(2, (), "head")
    return found


def _shape_findings(specs: Mapping[str, TensorSpec], expected: Tensors) -> list[str]:
    return [
        f"{name}: the model expects shape {list(shape)}, the input gives {list(specs[name].shape)}"
        + ("; the files of the last ranks are missing" if _is_cut(specs[name].shape, shape) else "")
        for name, shape in expected.items()
        if name in specs and shape is not None and tuple(shape) != specs[name].shape
    ]


def _is_cut(got: Shape, expected: Shape) -> bool:
    """Whether only one dim is shorter, as where the last pieces of a tensor are missing."""
    differing = [(g, e) for g, e in zip(got, expected) if g != e]
    return len(got) == len(expected) and len(differing) == 1 and differing[0][0] < differing[0][1]


def _refuse(findings: list[str], model: Model) -> None:
    if findings:
        raise AccountingError(
            "the input and the Hugging Face model do not match one to one",
            where={"expected from": model.truth},
            advice="choose the right reference; where tensors are cut short, copy the files of all ranks",
            findings=findings,
        )
