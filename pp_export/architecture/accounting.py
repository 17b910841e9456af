"""Closed accounting: every Megatron tensor is used once or dropped for a reason, every expected HF tensor is
made once.

Works on names and shapes only, so a laptop finds what is missing before a cluster reads a byte.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

from pp_export.architecture.encodings import AS_STORED, Encoding, Types, casts, encoded, plus_one
from pp_export.architecture.mtp import Depths
from pp_export.architecture.quantization import Projection, Quantization, decide, modules_kept
from pp_export.architecture.rules import Architecture, Rule
from pp_export.architecture.sizes import ModelSizes
from pp_export.architecture.transforms import TRANSFORMS, Geometry, Transform
from pp_export.architecture.units import Unit, UnitKind
from pp_export.core.dtypes import DType
from pp_export.core.errors import AccountingError, ExportError
from pp_export.core.tensors import REFERENCE, Shape, TensorSpec
from pp_export.core.views import View

DEFINITION, INDEX, TABLE = (
    "the model's own definition (transformers)",
    "the reference's weight index",
    "the table itself",
)

_MISSING = "is expected but nothing makes it"
_REFERENCE_UNIT = UnitKind(1 << 16, "from the reference", ())
"""Behind all that a table names."""


class Placement(NamedTuple):
    """The elements of `view`, a view of the Megatron tensor `source`, land in the HF tensor `name` as
    `target`.
    """

    source: str
    view: View
    name: str
    target: View


class Expected(NamedTuple):
    """The HF tensors that there must be: name -> shape on disk (None where that is not known), and who says
    so. No `tensors` where nobody does. Those of MTP layers are the business of `mtp`, as far as anybody knows
    them: of a class's own definition they are no part. Where it doesn't `bind`, nothing is refused for it.
    """

    tensors: Mapping[str, Shape | None] | None
    truth: str
    mtp: Mapping[str, Shape | None] | None = None
    binds: bool = True


@dataclass(frozen=True)
class Account:
    """The outcome: the HF tensors, where each source goes, what is dropped and why.

    `outputs` are the HF tensors as they are stored, after the `encodings`. `unit_of` gives each stored
    tensor its unit; `sources_of` the canonical tensors that it is made of, whose shapes are `shapes`.
    `num_parts_of` and `expert_of` tell for a source what the export's TP x EP grid needs to deal it out.
    `mtp` are the tensors that belong to MTP layers, of which `copies` equal others. Those `taken` are the
    reference's, byte for byte. What is quantized has other names in `outputs` than in `tensors`.
    """

    encodings: tuple[Encoding, ...]
    outputs: Mapping[str, TensorSpec]
    unit_of: Mapping[str, Unit]
    sources_of: Mapping[str, tuple[str, ...]]
    placements: Mapping[str, tuple[Placement, ...]]
    shapes: Mapping[str, Shape]
    num_parts_of: Mapping[str, int]
    expert_of: Mapping[str, int]
    dropped: Mapping[str, str]
    truth: str
    mtp: frozenset[str] = frozenset()
    copies: Mapping[str, str] = field(default_factory=dict)
    taken: tuple[str, ...] = ()
    quantization: Quantization | None = None

    @cached_property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """The HF tensors as the model has them: the outputs, if nothing were quantized."""
        if self.quantization is None:
            return self.outputs
        packed = {name for encoding in self.quantization.encodings for name in encoding.outputs}
        others = {name: spec for name, spec in self.outputs.items() if name not in packed}
        return {**others, **self.quantization.tensors}

    @cached_property
    def main_dtype(self) -> DType:
        """The element type of most of the checkpoint's floating-point bytes: what config.json calls the
        model's.
        """
        sizes: Counter[DType] = Counter()
        taken = frozenset(self.taken)
        for name, spec in self.tensors.items():
            sizes[spec.dtype] += spec.num_bytes * (spec.dtype.is_floating and name not in taken)
        return sizes.most_common(1)[0][0]

    @cached_property
    def other_dtypes(self) -> dict[str, DType]:
        """The tensors of another element type than most; not those that are quantized."""
        specs = self.tensors.items()
        return {name: spec.dtype for name, spec in specs if spec.dtype != self.main_dtype}


def account(
    architecture: Architecture,
    specs: Mapping[str, TensorSpec],
    sizes: ModelSizes,
    *,
    expected: Expected,
    types: Types = AS_STORED,
    drop_mtp: bool,
    scheme: str | None = None,
) -> Account:
    """Match `specs` (canonical tensors) with the table and the `expected` HF tensors; quantize by `scheme`.

    Raises AccountingError that lists every tensor without a rule, every HF name made twice, missing or
    unexpected, and every wrong shape.
    """
    depths = Depths.of(specs)
    findings = _adapter_findings(specs)
    dropped: dict[str, str] = {}
    of_reference: list[str] = []
    stacks: defaultdict[tuple[str, ...], list[tuple[tuple[int, ...], str, Rule, dict[str, int]]]]
    stacks = defaultdict(list)
    for name in specs:
        if name.startswith(REFERENCE):
            of_reference.append(name)
            continue
        if drop_mtp and name.startswith("mtp."):
            dropped[name] = "--mtp drop"
            continue
        match = architecture.match(name)
        if match is None:
            hint = " (--mtp drop leaves MTP layers out)" if name.startswith("mtp.") else ""
            findings.append(f"no rule for the Megatron tensor {name} {specs[name]}{hint}")
        elif match[0].drop is not None:
            dropped[name] = match[0].drop
        else:
            rule, holes = match
            stacks[(rule.megatron, *rule.names(holes, depths))].append(
                (tuple(holes[hole] for hole in rule.stacked), name, rule, holes)
            )
    made = _Made(quantizes=scheme is not None)
    for key, members in stacks.items():
        if len(members) > 1:
            members.sort(key=lambda member: member[:2])
        findings += made.add(key[1:], members, specs, sizes.values)
    copies = made.copy(architecture, depths, expected.mtp)
    taken = made.take(of_reference, specs)
    findings += _type_findings(made.mapped)
    quantization = None if scheme is None else decide(made.projections, made.mapped, scheme, types)
    quantized = {} if quantization is None else quantization.tensors
    encodings = casts(made.mapped, types, made.kept | made.plus_one | quantized.keys())
    encodings += plus_one(made.mapped, sorted(made.plus_one), types)
    mtp = frozenset({*copies, *made.of_mtp})
    _refuse(findings + _differences(made.mapped, mtp, expected, dropped), architecture, expected.truth)
    encodings += () if quantization is None else quantization.encodings
    outputs = encoded(made.mapped, encodings)
    # An encoded tensor is of the unit, and of the sources, of what it is encoded from.
    unit_of, sources_of = made.unit_of, made.sources_of
    for encoding in encodings:
        unit = min(unit_of[name] for name in encoding.inputs)
        sources = tuple(dict.fromkeys(source for name in encoding.inputs for source in sources_of[name]))
        unit_of |= dict.fromkeys(encoding.outputs, unit)
        sources_of |= dict.fromkeys(encoding.outputs, sources)
    if quantization is not None:
        in_order = dict(sorted(outputs.items(), key=lambda output: (unit_of[output[0]], output[0])))
        quantization = replace(quantization, excluded=modules_kept(quantization, in_order, architecture))
    return Account(
        encodings=encodings,
        outputs=outputs,
        unit_of=unit_of if not encodings else {name: unit_of[name] for name in outputs},
        sources_of=sources_of if not encodings else {name: sources_of[name] for name in outputs},
        placements=made.placements,
        shapes={source: specs[source].shape for source in made.placements},
        num_parts_of=made.num_parts_of,
        expert_of=made.expert_of,
        dropped=dropped,
        truth=expected.truth,
        mtp=mtp,
        copies=copies,
        taken=taken,
        quantization=quantization,
    )


def held_against(account: Account, architecture: Architecture, expected: Expected) -> Account:
    """The same account with another truth; raises AccountingError where that one refutes it."""
    findings = _differences(account.tensors, account.mtp, expected, account.dropped)
    _refuse(findings, architecture, expected.truth)
    return replace(account, truth=expected.truth)


def _refuse(findings: list[str], architecture: Architecture, truth: str) -> None:
    if findings:
        is_short = any(finding.endswith(_MISSING) for finding in findings)
        take = "; --take-missing-from-reference PATTERN takes what the training left as it was"
        raise AccountingError(
            "the checkpoint and the Hugging Face model do not match one to one",
            where={"architecture": architecture.name, "expected from": truth},
            advice="choose the right reference, or correct the table" + (take if is_short else ""),
            findings=findings,
        )


class _Made:
    """HF tensors made so far; which are linear layers' weights, if some are to be quantized."""

    def __init__(self, *, quantizes: bool) -> None:
        self._quantizes = quantizes
        self.mapped: dict[str, TensorSpec] = {}
        self.unit_of: dict[str, Unit] = {}
        self.placements: dict[str, tuple[Placement, ...]] = {}
        self.sources_of: dict[str, tuple[str, ...]] = {}
        self.num_parts_of: dict[str, int] = {}
        self.expert_of: dict[str, int] = {}
        self.kept: set[str] = set()
        self.of_mtp: set[str] = set()
        self.plus_one: set[str] = set()
        self.projections: dict[str, Projection] = {}
        self._checked: dict[tuple[str, TensorSpec], tuple[Geometry, dict[str, TensorSpec]]] = {}
        self._units: dict[tuple[int, ...], Unit] = {}

    def add(
        self,
        names: tuple[str, ...],
        members: list[tuple[tuple[int, ...], str, Rule, dict[str, int]]],
        specs: Mapping[str, TensorSpec],
        sizes: Mapping[str, int],
    ) -> list[str]:
        """Make the HF tensors `names` from the sources in `members`, stacked where the rule says so."""
        numbers = [member[0] for member in members]
        sources = tuple(member[1] for member in members)
        rule, spec = members[0][2], specs[sources[0]]
        stack = tuple([max(axis) + 1 for axis in zip(*numbers)])
        if len(members) > 1 and (len(set(numbers)) != len(numbers) or not stack):
            return [f"{name} is made twice, from {' and '.join(sources)}" for name in names]
        if len(members) != math.prod(stack) or any(specs[source] != spec for source in sources[1:]):
            return [
                f"{name} stacks tensors that differ or leave gaps: {', '.join(sources)}" for name in names
            ]
        clashes = [
            f"{name} is made twice, from {sources[0]} and {self.sources_of[name][0]}"
            for name in names
            if name in self.mapped
        ]
        if len(set(names)) < len(names):
            doubled = [name for name, count in Counter(names).items() if count > 1]
            clashes += [f"{name} is made twice, from {sources[0]}" for name in doubled]
        if clashes:
            return clashes
        try:
            geometry, outputs = self._geometry(rule.transform, spec, sizes)
        except ExportError as error:
            return [f"{sources[0]}: {error.what}: expected {error.expected}, got {error.got}"]
        by_role = dict(zip(rule.hf, names))
        assert rule.unit is not None
        unit = self._unit(rule.unit, members[0][3])  # of the first one, where layers are stacked
        for role, output in outputs.items():
            name = by_role[role]
            self.mapped[name] = TensorSpec((*stack, *output.shape), spec.dtype) if stack else output
            self.unit_of[name] = unit
            if rule.keeps_type:
                self.kept.add(name)
            if "mtp" in rule.holes:
                self.of_mtp.add(name)
            if rule.plus_one:
                self.plus_one.add(name)
            if self._quantizes and (found := Projection.of(rule, role, sources[0], output.shape, sizes)):
                self.projections[name] = found
            self.sources_of[name] = sources
        for at, source, _, numbered in members:
            self.num_parts_of[source] = rule.transform.num_parts
            if "expert" in numbered:
                self.expert_of[source] = numbered["expert"]
            placed = [
                Placement(
                    source,
                    move.source,
                    by_role[move.role],
                    move.target.stacked(at, stack, geometry.outputs[move.role]) if stack else move.target,
                )
                for move in geometry.moves
            ]
            self.placements[source] = (*self.placements.get(source, ()), *placed)
        return []

    def copy(
        self, architecture: Architecture, depths: Depths, wanted: Container[str] | None
    ) -> dict[str, str]:
        """Make the tensors of MTP layers that equal others, those that are `wanted`, or all; name -> name of
        the other.
        """
        copies: dict[str, str] = {}
        unit_of = {unit.numbers: unit for unit in map(self.unit_of.__getitem__, self.of_mtp)}
        for mtp, name, of in () if architecture.mtp is None else architecture.mtp.copies_of(depths):
            if of in self.mapped and (wanted is None or name in wanted) and (mtp,) in unit_of:
                copies[name] = of
                self.mapped[name], self.sources_of[name] = self.mapped[of], self.sources_of[of]
                self.unit_of[name] = unit_of[(mtp,)]
                for source in self.sources_of[of]:
                    placed = [place for place in self.placements[source] if place.name == of]
                    more = [place._replace(name=name) for place in placed]
                    self.placements[source] = (*self.placements[source], *more)
        return copies

    def take(self, sources: Iterable[str], specs: Mapping[str, TensorSpec]) -> tuple[str, ...]:
        """Make the tensors of the reference that nothing else makes, as they are; their HF names."""
        taken = []
        for source in sources:
            name = source.removeprefix(REFERENCE)
            if name not in self.mapped:
                rule = Rule(source, {"": name}, TRANSFORMS["copy"], _REFERENCE_UNIT, keeps_type=True)
                self.add((name,), [((), source, rule, {})], specs, {})
                taken.append(name)
        return tuple(taken)

    def _unit(self, kind: UnitKind, numbers: Mapping[str, int]) -> Unit:
        """The unit of a tensor with these numbers in its holes: one value for all tensors of a unit."""
        key = (kind.order, *(numbers[hole] for hole in kind.holes))
        if key not in self._units:
            self._units[key] = kind.unit(numbers)
        return self._units[key]

    def _geometry(
        self, transform: Transform, spec: TensorSpec, sizes: Mapping[str, int]
    ) -> tuple[Geometry, dict[str, TensorSpec]]:
        """The checked geometry of a source like `spec`, and what each role of it is: found once for all
        experts that are alike.
        """
        key = (transform.name, spec)
        if key not in self._checked:
            geometry = transform.geometry(spec.shape, sizes)
            transform.check(spec.shape, geometry)
            outputs = {role: TensorSpec(shape, spec.dtype) for role, shape in geometry.outputs.items()}
            self._checked[key] = geometry, outputs
        return self._checked[key]


def _adapter_findings(specs: Mapping[str, TensorSpec]) -> list[str]:
    return [
        f"{name} belongs to an adapter (LoRA); merge the adapter into the base weights first"
        for name in specs
        if (".adapter" in name or "lora_" in name) and not name.startswith(REFERENCE)
    ]


def _type_findings(made: Mapping[str, TensorSpec]) -> list[str]:
    """Classes have floating-point weights; float8 ones mean nothing without scales that belong to them."""
    return [
        f"{name} is {spec.dtype.torch_name}, and the class has floating-point weights"
        + (": float8 values need scales, of which there are none" if spec.dtype.is_floating else "")
        for name, spec in made.items()
        if not spec.dtype.is_floating or spec.dtype.itemsize < 2
    ]


def _differences(
    outputs: Mapping[str, TensorSpec], mtp: frozenset[str], expected: Expected, dropped: Mapping[str, str]
) -> list[str]:
    if not expected.binds:
        return []
    of_model = {name: spec for name, spec in outputs.items() if name not in mtp} if mtp else outputs
    of_mtp = {name: outputs[name] for name in outputs if name in mtp}
    return [
        *_differences_of(of_model, expected.tensors, dropped),
        *(_differences_of(of_mtp, expected.mtp, {}) if mtp else ()),
    ]


def _differences_of(
    outputs: Mapping[str, TensorSpec], expected: Mapping[str, Shape | None] | None, dropped: Mapping[str, str]
) -> list[str]:
    if expected is None:
        return []
    missing = [f"{name} {_MISSING}" for name in expected if name not in outputs]
    if missing and dropped:
        missing.append(f"(dropped by a rule: {', '.join(sorted(dropped)[:8])})")
    unexpected = [
        f"{name} {spec} is made but the model does not have it"
        for name, spec in outputs.items()
        if name not in expected
    ]
    shapes = [
        f"{name}: the model expects shape {list(shape)}, the checkpoint gives {list(outputs[name].shape)}"
        for name, shape in expected.items()
        if name in outputs and shape is not None and tuple(shape) != outputs[name].shape
    ]
    return missing + unexpected + shapes
