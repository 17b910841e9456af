"""Adapters in the account: what each changes, and the encodings or the tensors of PEFT that follow from it.

The rows of the outer matrix (`linear_out`) go where the rows of the weight go, by the same transform; the
inner one (`linear_in`) belongs to all tensors that the weight becomes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

from pp_export.architecture import adapter_names
from pp_export.architecture.encodings import MERGE, OVERFLOWING_MERGE, Encoding, Types
from pp_export.architecture.lora import ADAPTER, Adapted, Lora
from pp_export.architecture.made import Made, Piece
from pp_export.architecture.mtp import Depths
from pp_export.architecture.rules import Architecture, Rule
from pp_export.architecture.transforms import TRANSFORMS
from pp_export.core.errors import ExportError
from pp_export.core.tensors import Shape, TensorSpec

PEFT = "base_model.model."
"""Before the names of modules in an adapter's file."""

_BY_ROWS = {
    **{name: name for name in TRANSFORMS if name not in ("one_row", "swap_halves")},
    "transpose": "copy",
    "fuse_qkv_transposed": "fuse_qkv",
    "glu_transposed": "glu",
    "interleave_glu_transposed": "interleave_glu",
}
"""What moves the rows of a weight, by the transform that moves the weight; those that don't are refused."""


@dataclass(frozen=True)
class Pair:
    """The two matrices of one adapter: canonical names, and what they are."""

    module: str
    part: str
    inner: str
    outer: str
    inner_spec: TensorSpec
    outer_spec: TensorSpec

    @property
    def rank(self) -> int:
        return self.inner_spec.shape[0]

    @property
    def weight(self) -> Shape:
        """The shape of the rows that it changes."""
        return (self.outer_spec.shape[0], self.inner_spec.shape[1])


class Change(NamedTuple):
    """What a pair changes of a Hugging Face tensor: what `role` of a weight's transform becomes, in number
    `at` of a stack.
    """

    pair: Pair
    rule: Rule
    role: str
    holes: Mapping[str, int]

    @property
    def at(self) -> tuple[int, ...]:
        return tuple(self.holes[hole] for hole in self.rule.stacked)

    @property
    def is_shared(self) -> bool:
        """Whether all experts have this adapter."""
        return adapter_names.is_of_all_experts(self.pair.module)

    @property
    def expert(self) -> int | None:
        """The expert that the adapter belongs to, if it is one's own."""
        return None if self.is_shared else self.holes.get("expert")

    @property
    def is_transposed(self) -> bool:
        return _BY_ROWS[self.rule.transform.name] != self.rule.transform.name


def pairs(specs: Mapping[str, TensorSpec], lora: Lora) -> tuple[list[Pair], list[str]]:
    """The adapters among canonical tensors, and what is wrong with others."""
    halves: defaultdict[tuple[str, str], dict[bool, str]] = defaultdict(dict)
    findings = []
    for name in filter(adapter_names.is_of_adapter, specs):
        half = adapter_names.half_of(name)
        if half is None:
            findings.append(f"{name}: {adapter_names.refusal(name)}")
        else:
            halves[half.module, half.part][half.is_out] = name
    found = []
    for (module, part), names in halves.items():
        if len(names) < 2:
            missing = "linear_in" if True in names else "linear_out"
            findings.append(f"{next(iter(names.values()))}: its {missing} is missing, half of an adapter")
            continue
        pair = Pair(module, part, names[False], names[True], specs[names[False]], specs[names[True]])
        if len(pair.inner_spec.shape) != 2 or len(pair.outer_spec.shape) != 2:
            told = f"{pair.inner_spec} and {pair.outer_spec}"
            findings.append(f"{module}: an adapter has two matrices, not {told}")
        elif pair.outer_spec.shape[1] != pair.rank:
            findings.append(
                f"{module}: the matrices of its adapter have ranks {pair.rank}, {pair.outer_spec.shape[1]}"
            )
        elif misfit := lora.misfit(pair.rank, of_expert=adapter_names.EXPERTS in module):
            findings.append(f"{module}: its adapter has rank {pair.rank}; {misfit}")
        else:
            found.append(pair)
    return found, findings


def changes(
    found: list[Pair], architecture: Architecture, depths: Depths, known: Mapping[str, object] | None
) -> tuple[dict[str, list[Change]], list[str]]:
    """What changes each Hugging Face tensor, by name, and what is wrong. `known` are Hugging Face tensors
    that there are, None where nobody knows.
    """
    by_name: defaultdict[str, list[Change]] = defaultdict(list)
    findings = []
    for pair in found:
        is_adapted = False
        for rule, holes in _rules(pair, architecture, depths, known):
            roles = dict(zip(rule.hf, rule.names(holes, depths)))
            is_adapted = True
            if rule.transform.name not in _BY_ROWS or (pair.part and pair.part not in roles):
                of = f" of its {pair.part} rows alone" if pair.part else ""
                findings.append(f"{pair.module}: {rule.transform.name} leaves no place for an adapter{of}")
                break
            for role in [pair.part] if pair.part else roles:
                by_name[roles[role]].append(Change(pair, rule, role, holes))
        if not is_adapted:
            findings.append(f"no rule for the weight that {pair.inner} changes")
    return dict(by_name), findings


def adapt(
    made: Made,
    changed: Mapping[str, list[Change]],
    lora: Lora,
    sizes: Mapping[str, int],
    types: Types,
    copies: Mapping[str, str],
) -> tuple[Adapted, tuple[Encoding, ...], list[str]]:
    """What adapters change, in the form that is asked for; what is wrong. `copies` are tensors that equal
    others.
    """
    if lora.form == ADAPTER:
        adapted, findings = _as_peft(made, changed, lora, sizes)
        return adapted, (), findings
    encodings, adapted, findings = _merge(made, changed, lora, sizes, types)
    copied = {of: name for name, of in copies.items()}
    findings += [
        f"{name} has an adapter, and {copied[name]} is a copy of it" for name in changed if name in copied
    ]
    return adapted, encodings, findings


def _merge(
    made: Made, changed: Mapping[str, list[Change]], lora: Lora, sizes: Mapping[str, int], types: Types
) -> tuple[tuple[Encoding, ...], Adapted, list[str]]:
    """The encodings that add to each tensor what its adapters say; their matrices are laid out in `made`."""
    encodings, findings = [], []
    ranks: dict[str, int] = {}
    for name, members in changed.items():
        base = made.mapped.get(name)
        if base is None:
            findings.append(f"{members[0].pair.module}: its adapter changes {name}, which nothing makes")
            continue
        try:
            wrong = _stack_fault(members, base.shape)
            left, right = ("", "") if wrong else _laid_out(made, name, members, base, sizes)
        except ExportError as error:
            wrong = f"{error.what}: expected {error.expected}, got {error.got}"
        if wrong:
            findings.append(f"{members[0].pair.module}: {name}: {wrong}")
            continue
        dtype = None if name in made.kept else types.of(name)
        ranks[name] = members[0].pair.rank
        encodings.append(
            Encoding(
                OVERFLOWING_MERGE if types.may_overflow else MERGE,
                {each: made.mapped[each] for each in (name, left, right)},
                {name: TensorSpec(base.shape, dtype or base.dtype)},
                lora.scale(ranks[name]),
            )
        )
    return tuple(encodings), Adapted(lora, ranks, {name: made.mapped[name].shape for name in ranks}), findings


def _as_peft(
    made: Made, changed: Mapping[str, list[Change]], lora: Lora, sizes: Mapping[str, int]
) -> tuple[Adapted, list[str]]:
    """The tensors of PEFT, made in `made`: `lora_A` and `lora_B` of each module."""
    findings = []
    ranks: dict[str, int] = {}
    shapes: dict[str, Shape] = {}
    for name, members in changed.items():
        first = members[0]
        pair, rule, role, holes = first
        module = name.removesuffix(".weight")
        if rule.stacked or module == name:
            findings.append(f"{name}: PEFT has no name for the adapter of one of several stacked tensors")
            continue
        by_rows = TRANSFORMS["copy" if pair.part else _BY_ROWS[rule.transform.name]]
        try:
            shape = _shape_of(first, made, sizes)
            assert rule.unit is not None, "it isn't dropped"
            unit = made.unit(rule.unit, holes)
            outer = Piece(
                pair.outer, pair.outer_spec, by_rows, "" if pair.part else role, expert=first.expert
            )
            inner = Piece(pair.inner, pair.inner_spec, expert=first.expert)
            made.lay(f"{PEFT}{module}.lora_A.weight", unit, [inner], sizes)
            made.lay(f"{PEFT}{module}.lora_B.weight", unit, [outer], sizes)
        except ExportError as error:
            findings.append(f"{pair.module}: {error.what}: expected {error.expected}, got {error.got}")
            continue
        ranks[name] = pair.rank
        shapes[name] = shape[::-1] if first.is_transposed else shape
    return Adapted(lora, ranks, shapes), findings


def differences(adapted: Adapted, tensors: Mapping[str, Shape | None] | None) -> list[str]:
    """Where the model has not what the adapters are for; nothing where nobody knows what it has."""
    if tensors is None or adapted.lora.form != ADAPTER:
        return []
    absent = [f"{name} has an adapter, and the model does not have it" for name in adapted.shapes]
    return [
        *(finding for finding, name in zip(absent, adapted.shapes) if name not in tensors),
        *(
            f"{name}: the adapter's shape doesn't fit the weight's: expected shape {list(expected)},"
            f" got shape {list(shape)}"
            for name, shape in adapted.shapes.items()
            if (expected := tensors.get(name)) is not None and tuple(expected) != shape
        ),
    ]


def _rules(
    pair: Pair, architecture: Architecture, depths: Depths, known: Mapping[str, object] | None
) -> Iterator[tuple[Rule, dict[str, int]]]:
    """The rows for the weights that a pair changes: one, or that of each expert that is `known`."""
    if not adapter_names.is_of_all_experts(pair.module):
        match = architecture.match(f"{pair.module}.weight")
        if match is not None and match[0].drop is None:
            yield match
        return
    for expert in count():
        match = architecture.match(f"{adapter_names.of_expert(pair.module, expert)}.weight")
        if match is None or known is None:
            return
        names = match[0].names(match[1], depths)
        if not any(name in known for name in names):
            return
        yield match
        if match[0].stacked:
            return


def _stack_fault(members: list[Change], shape: Shape) -> str | None:
    """What is wrong in several pairs for one tensor."""
    stacked = members[0].rule.stacked
    if not stacked:
        modules = [change.pair.module for change in members]
        return None if len(members) == 1 else f"it has several adapters: {', '.join(modules)}"
    if stacked != ("expert",):
        return f"what is stacked over {', '.join(stacked)} isn't merged yet"
    if members[0].is_shared:
        return None if len(members) == 1 else "its experts have adapters of their own and a shared one"
    numbers = sorted(change.holes["expert"] for change in members)
    if numbers != list(range(shape[0])):
        return f"of {shape[0]} stacked experts {len(set(numbers))} have adapters"
    if len({(change.pair.inner_spec, change.pair.outer_spec) for change in members}) > 1:
        return "the adapters of stacked experts differ in rank or type"
    return None


def _shape_of(change: Change, made: Made, sizes: Mapping[str, int]) -> Shape:
    """The shape of what the weight that a pair changes becomes in its role; raises where it doesn't fit."""
    pair, rule, role, _ = change
    if pair.part:
        return pair.weight
    return made.geometry(rule.transform, TensorSpec(pair.weight, pair.outer_spec.dtype), sizes)[1][role].shape


def _laid_out(
    made: Made, name: str, members: list[Change], base: TensorSpec, sizes: Mapping[str, int]
) -> tuple[str, str]:
    """Lay out two matrices whose product, [..., rows, columns], is of the shape of `base`; their names. A
    weight that becomes its transpose changes by that of the product.
    """
    first = members[0]
    pair, rule, role, _ = first
    shape = (*base.shape[: len(rule.stacked)], *_shape_of(first, made, sizes))
    if shape != base.shape:
        raise ExportError(
            "the adapter's shape doesn't fit the weight's",
            expected=f"shape {list(base.shape)}",
            got=f"shape {list(shape)}",
        )
    is_stacked = bool(rule.stacked) and not first.is_shared
    names = (f"{name}#outer", f"{name}#inner") if is_stacked else (f"{pair.outer}#{role}", f"{pair.inner}#")
    outer, inner = (rule.transform, "transpose" if first.is_transposed else "copy")
    pieces = [
        [
            Piece(
                c.pair.outer,
                c.pair.outer_spec,
                TRANSFORMS["copy"] if pair.part else outer,
                "" if pair.part else role,
                c.at if is_stacked else (),
                c.expert,
            )
            for c in members
        ],
        [
            Piece(
                c.pair.inner,
                c.pair.inner_spec,
                TRANSFORMS[inner],
                at=c.at if is_stacked else (),
                expert=c.expert,
            )
            for c in members
        ],
    ]
    for each, of in zip(names, pieces):
        if each not in made.mapped:
            made.lay(each, made.unit_of[name], of, sizes, base.shape[:1] if is_stacked else ())
    return names[::-1] if first.is_transposed else names
