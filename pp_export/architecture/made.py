"""Hugging Face tensors that are being made: what each is, of which tensors, and which view goes where."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from typing import NamedTuple

from pp_export.architecture.mtp import Depths
from pp_export.architecture.quantization import Projection
from pp_export.architecture.rules import Architecture, Rule
from pp_export.architecture.transforms import TRANSFORMS, Geometry, Move, Transform
from pp_export.architecture.units import Unit, UnitKind
from pp_export.core.errors import ExportError
from pp_export.core.tensors import REFERENCE, TensorSpec
from pp_export.core.views import View

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


class Piece(NamedTuple):
    """What `role` of a `transform` makes of the tensor `source`, in number `at` of a stack; `expert` is the
    one that the source belongs to.
    """

    source: str
    spec: TensorSpec
    transform: Transform = TRANSFORMS["copy"]
    role: str = ""
    at: tuple[int, ...] = ()
    expert: int | None = None


class Made:
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
            geometry, outputs = self.geometry(rule.transform, spec, sizes)
        except ExportError as error:
            return [f"{sources[0]}: {error.what}: expected {error.expected}, got {error.got}"]
        by_role = dict(zip(rule.hf, names))
        assert rule.unit is not None
        unit = self.unit(rule.unit, members[0][3])  # of the first one, where layers are stacked
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
            piece = Piece(source, spec, rule.transform, at=at, expert=numbered.get("expert"))
            self._place(piece, geometry, geometry.moves, by_role, stack)
        return []

    def lay(
        self,
        name: str,
        unit: Unit,
        pieces: list[Piece],
        sizes: Mapping[str, int],
        stack: tuple[int, ...] = (),
    ) -> None:
        """Make the tensor `name` of its `pieces`, all alike: of one, or of a `stack` of them."""
        for piece in pieces:
            geometry, outputs = self.geometry(piece.transform, piece.spec, sizes)
            output = outputs[piece.role]
            moves = [move for move in geometry.moves if move.role == piece.role]
            self._place(piece, geometry, moves, {piece.role: name}, stack)
            self.mapped[name] = TensorSpec((*stack, *output.shape), output.dtype)
        self.unit_of[name] = unit
        self.sources_of[name] = tuple(piece.source for piece in pieces)

    def _place(
        self,
        piece: Piece,
        geometry: Geometry,
        moves: Iterable[Move],
        name_of: Mapping[str, str],
        stack: tuple[int, ...],
    ) -> None:
        """Where elements of a piece land, by some moves of its geometry; `name_of` names each role."""
        source = piece.source
        placed = [
            Placement(
                source,
                move.source,
                name_of[move.role],
                move.target.stacked(piece.at, stack, geometry.outputs[move.role]) if stack else move.target,
            )
            for move in moves
        ]
        self.placements[source] = (*self.placements.get(source, ()), *placed)
        self.num_parts_of[source] = piece.transform.num_parts
        if piece.expert is not None:
            self.expert_of[source] = piece.expert

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

    def take_base(
        self,
        sources: Iterable[str],
        specs: Mapping[str, TensorSpec],
        architecture: Architecture,
        depths: Depths,
        *,
        drop_mtp: bool,
    ) -> bool:
        """The same of a base model; each is of the unit, and keeps its type, as the row says that makes it of
        Megatron's. Whether there was any.
        """
        is_any = False
        for source in sources:
            name = source.removeprefix(REFERENCE)
            is_mtp = architecture.mtp is not None and architecture.mtp.covers(name, depths.num_layers)
            if name in self.mapped or (is_mtp and drop_mtp):
                continue
            of, holes = architecture.made_by(name) or (None, {})
            unit = _REFERENCE_UNIT
            if of is not None and of.unit is not None and set(of.unit.holes) <= holes.keys():
                unit = of.unit
            rule = Rule(source, {"": name}, TRANSFORMS["copy"], unit, keeps_type=of is None or of.keeps_type)
            self.add((name,), [((), source, rule, holes)], specs, {})
            self.of_mtp |= {name} if is_mtp else set()
            is_any = True
        return is_any

    def unit(self, kind: UnitKind, numbers: Mapping[str, int]) -> Unit:
        """The unit of a tensor with these numbers in its holes: one value for all tensors of a unit."""
        key = (kind.order, *(numbers[hole] for hole in kind.holes))
        if key not in self._units:
            self._units[key] = kind.unit(numbers)
        return self._units[key]

    def geometry(
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
