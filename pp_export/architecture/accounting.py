"""Closed accounting: every Megatron tensor is used once or dropped for a reason, every expected HF tensor is
made once.

Works on names and shapes only, so a laptop finds what is missing before a cluster reads a byte.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

from pp_export.architecture import adapted as adapting
from pp_export.architecture.adapter_names import is_of_adapter
from pp_export.architecture.encodings import AS_STORED, Encoding, Types, casts, encoded, plus_one
from pp_export.architecture.lora import ADAPTER, Adapted, Lora
from pp_export.architecture.made import Made, Placement
from pp_export.architecture.mtp import Depths
from pp_export.architecture.quantization import Quantization, decide, modules_kept
from pp_export.architecture.rules import Architecture, Rule
from pp_export.architecture.sizes import ModelSizes
from pp_export.architecture.units import Unit
from pp_export.core.dtypes import DType
from pp_export.core.errors import AccountingError
from pp_export.core.tensors import REFERENCE, Shape, TensorSpec

DEFINITION, INDEX, TABLE = (
    "the model's own definition (transformers)",
    "the reference's weight index",
    "the table itself",
)

_MISSING = "is expected, and no rule makes it"


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
    reference's, byte for byte. What is quantized has other names in `outputs` than in `tensors`. `adapted`
    tells what adapters change; where the outputs are an adapter, they are no model's.
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
    adapted: Adapted | None = None

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
    lora: Lora | None = None,
    depths: Depths | None = None,
    scheme: str | None = None,
) -> Account:
    """Match `specs` (canonical tensors) with the table and the `expected` HF tensors. `lora` says what
    becomes of adapters, `depths` which layers there are where `specs` don't show it; quantize by `scheme`.

    Raises AccountingError that lists every tensor without a rule, every HF name made twice, missing or
    unexpected, and every wrong shape.
    """
    depths = depths or Depths.of(specs)
    matched = _Matched.of(architecture, specs, depths, lora, drop_mtp=drop_mtp)
    findings, dropped = matched.findings, matched.dropped
    made = Made(quantizes=scheme is not None)
    for key, members in matched.stacks.items():
        if len(members) > 1:
            members.sort(key=lambda member: member[:2])
        findings += made.add(key[1:], members, specs, sizes.values)
    copies = made.copy(architecture, depths, expected.mtp)
    taken: tuple[str, ...] = ()
    if lora is None or not lora.takes_rest:
        taken = made.take(matched.of_reference, specs)
    elif not made.take_base(matched.of_reference, specs, architecture, depths, drop_mtp=drop_mtp):
        findings.append("the checkpoint has all weights of its own: there is nothing to take from --base")
    findings += _type_findings(made.mapped)
    adapted: Adapted | None = None
    encodings: tuple[Encoding, ...] = ()
    if lora is not None:
        pairs, more = adapting.pairs(specs, lora)
        known = _known(expected) if lora.form == ADAPTER else made.mapped
        changed, further = adapting.changes(pairs, architecture, depths, known)
        findings += more + further
        adapted, encodings, more = adapting.adapt(made, changed, lora, sizes.values, types, copies)
        findings += more
    quantization = None if scheme is None else decide(made.projections, made.mapped, scheme, types)
    kept = {*made.kept, *made.plus_one, *(name for encoding in encodings for name in encoding.inputs)}
    kept |= set() if quantization is None else quantization.tensors.keys()
    encodings += casts(made.mapped, types, kept)
    encodings += plus_one(made.mapped, sorted(made.plus_one), types)
    mtp = frozenset({*copies, *made.of_mtp})
    outputs = encoded(made.mapped, encodings)
    findings += _differences(outputs, mtp, expected, dropped, adapted)
    _refuse(findings, architecture, expected.truth)
    if quantization is not None:
        encodings += quantization.encodings
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
        adapted=adapted,
    )


@dataclass(frozen=True)
class _Matched:
    """The tensors by what they become: sources of the HF tensors of a row; dropped; taken from the reference
    if nothing else makes them.
    """

    stacks: dict[tuple[str, ...], list[tuple[tuple[int, ...], str, Rule, dict[str, int]]]]
    dropped: dict[str, str]
    of_reference: list[str]
    findings: list[str]

    @classmethod
    def of(
        cls,
        architecture: Architecture,
        specs: Mapping[str, TensorSpec],
        depths: Depths,
        lora: Lora | None,
        *,
        drop_mtp: bool,
    ) -> _Matched:
        """Adapters are left out; without `lora` that there are any is wrong."""
        found = cls(defaultdict(list), {}, [], [])
        for name in specs:
            if name.startswith(REFERENCE):
                found.of_reference.append(name)
            elif is_of_adapter(name):
                if lora is None:
                    told = "belongs to an adapter (LoRA); say what to do with it"
                    found.findings.append(f"{name} {told}: --lora merge or --lora adapter")
            elif lora is not None and lora.form == ADAPTER:
                found.dropped[name] = "--lora adapter: it is the base model's"
            elif drop_mtp and name.startswith("mtp."):
                found.dropped[name] = "--mtp drop"
            else:
                found._match(architecture, name, specs[name], depths)
        return found

    def _match(self, architecture: Architecture, name: str, spec: TensorSpec, depths: Depths) -> None:
        match = architecture.match(name)
        if match is None:
            hint = " (--mtp drop leaves MTP layers out)" if name.startswith("mtp.") else ""
            self.findings.append(f"no rule for the Megatron tensor {name} {spec}{hint}")
        elif match[0].drop is not None:
            self.dropped[name] = match[0].drop
        else:
            rule, holes = match
            self.stacks[(rule.megatron, *rule.names(holes, depths))].append(
                (tuple(holes[hole] for hole in rule.stacked), name, rule, holes)
            )


def held_against(account: Account, architecture: Architecture, expected: Expected) -> Account:
    """The same account with another truth; raises AccountingError where that one refutes it."""
    findings = _differences(account.tensors, account.mtp, expected, account.dropped, account.adapted)
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


def _known(expected: Expected) -> dict[str, Shape | None] | None:
    return None if expected.tensors is None else {**expected.tensors, **(expected.mtp or {})}


def _type_findings(made: Mapping[str, TensorSpec]) -> list[str]:
    """Classes have floating-point weights; float8 ones mean nothing without scales that belong to them."""
    return [
        f"{name} is {spec.dtype.torch_name}, and the class has floating-point weights"
        + (": float8 values need scales, of which there are none" if spec.dtype.is_floating else "")
        for name, spec in made.items()
        if not spec.dtype.is_floating or spec.dtype.itemsize < 2
    ]


def _differences(
    outputs: Mapping[str, TensorSpec],
    mtp: frozenset[str],
    expected: Expected,
    dropped: Mapping[str, str],
    adapted: Adapted | None,
) -> list[str]:
    if not expected.binds:
        return []
    if adapted is not None and adapted.lora.form == ADAPTER:
        return adapting.differences(adapted, _known(expected))
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
