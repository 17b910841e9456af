"""Architecture tables: which Megatron tensor becomes which Hugging Face tensors.

A table names the HF classes it `serves`, what training args and config.json must agree on, the units in file
order, and `rules`, one row per Megatron name pattern. `{layer}`, `{expert}` and `{mtp}` are holes for
numbers. A hole that the HF name lacks means that the tensors are stacked over it, `{mtp}` that there is one
such layer. A row may `drop` a tensor, saying why. The order of rows means nothing. `mtp` says how rows for
the layers of a decoder become those for layers inside of MTP layers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pp_export.architecture import mtp, multimodal
from pp_export.architecture.mtp import NUMBERS, Depths, Mtp
from pp_export.architecture.multimodal import Within
from pp_export.architecture.reading import Reading
from pp_export.architecture.readings import READINGS, of_entry
from pp_export.architecture.transforms import TRANSFORMS, Transform
from pp_export.architecture.units import HOLE, UnitKind
from pp_export.core.errors import RuleError

HOLES = ("layer", "expert", "mtp")
_HOLE_SEGMENT = re.compile(r"(?<=\.)\{\w*\}(?=\.|$)")
_NUMBER_SEGMENT = re.compile(r"(?<=\.)(\d+)(?=\.|$)")
_ROW_KEYS = {"megatron", "hf", "transform", "drop", "unit", "keeps_type", "plus_one"}
_UNIT_KEYS = {"unit", "megatron"}


@dataclass(frozen=True)
class Rule:
    """One row: `hf` maps the transform's roles to name patterns; `drop` is the reason when the tensor is left
    out. `unit` is None where it is dropped. A row that `keeps_type` isn't cast: what it holds needs the type
    that training kept it in. With `plus_one` 1 is added: the weight of a norm that multiplies by 1 + weight
    in Megatron, and by the weight in the class.
    """

    megatron: str
    hf: Mapping[str, str]
    transform: Transform
    unit: UnitKind | None
    drop: str | None = None
    keeps_type: bool = False
    plus_one: bool = False

    @cached_property
    def holes(self) -> tuple[str, ...]:
        return tuple(HOLE.findall(self.megatron))

    @cached_property
    def stacked(self) -> tuple[str, ...]:
        """The holes over which the HF tensors are stacked, outermost first."""
        named = {of for name in self.hf.values() for hole in HOLE.findall(name) for of in _named_by(hole)}
        return tuple(hole for hole in self.holes if hole not in named and hole != "mtp")

    @cached_property
    def follows(self) -> bool:
        """Whether HF names have numbers that follow from those in the holes."""
        return any(hole in NUMBERS for name in self.hf.values() for hole in HOLE.findall(name))

    def names(self, holes: Mapping[str, int], depths: Depths) -> tuple[str, ...]:
        """The HF tensors of a source with these numbers."""
        numbers = {**holes, **depths.numbers(holes)} if self.follows else holes
        return tuple([pattern.format(**numbers) for pattern in self.hf.values()])


@dataclass(frozen=True)
class Required:
    """The only value of a setting with which a table is right, and what can express others."""

    value: Any
    instead: str = ""


@dataclass(frozen=True)
class Shown:
    """Where a key of config.json comes from that tensors show: a `setting`, whether there is a tensor of any
    of some `rows`, or the length of the tensor `rows_of`.
    """

    setting: str = ""
    rows: tuple[str, ...] = ()
    rows_of: str = ""

    @classmethod
    def of_entry(cls, entry: Any) -> Shown | None:
        """What a line of a table's `shown` says; None where it says nothing of this."""
        if isinstance(entry, str):
            return cls(setting=entry)
        if not isinstance(entry, Mapping) or len(entry) != 1:
            return None
        rows, rows_of = entry.get("row"), entry.get("rows_of")
        rows = [rows] if isinstance(rows, str) else rows
        if isinstance(rows_of, str):
            return cls(rows_of=rows_of)
        if isinstance(rows, list) and rows and all(isinstance(row, str) for row in rows):
            return cls(rows=tuple(rows))
        return None


@dataclass(frozen=True)
class Architecture:
    """A checked table. `table` is its content with everything that it extends, as JSON: what other ranks
    get.

    Of the settings of a model, `readings` are compared with config.json, `requires` must have one value,
    `tells` are told when they are on. `defaults` are what the class takes for keys that config.json lacks,
    `outright` keys that other loaders read to do what the class does without them, `shown` keys that tensors
    show, so that nothing is compared with them. `model_type` is what config.json says of all classes that it
    `serves`. `mtp` is None where the class is not known to have MTP layers, `within` where the class is the
    language model alone. All keys are of the language model's config, names of the whole.
    """

    name: str
    serves: tuple[str, ...]
    model_type: str | None
    readings: Mapping[str, Reading] = field(repr=False)
    requires: Mapping[str, Required]
    tells: Mapping[str, str] = field(repr=False)
    defaults: Mapping[str, Any] = field(repr=False)
    outright: Mapping[str, Any] = field(repr=False)
    shown: Mapping[str, Shown] = field(repr=False)
    rules: tuple[Rule, ...] = field(repr=False)
    mtp: Mtp | None = field(repr=False)
    within: Within | None = field(repr=False)
    table: Mapping[str, Any] = field(repr=False)

    @cached_property
    def mtp_refusal(self) -> str | None:
        """Why MTP layers of the class can't be exported, None if they can."""
        return mtp.refusal(self.table["mtp"], (rule.holes for rule in self.rules if rule.drop is None))

    @cached_property
    def _by_template(self) -> dict[str, Rule]:
        return {HOLE.sub("{}", rule.megatron): rule for rule in self.rules}

    @cached_property
    def _by_made(self) -> dict[str, tuple[Rule, list[str]]]:
        by_follows = sorted(
            self.rules, key=lambda rule: not rule.follows
        )  # of equal names the last one counts
        names = ((rule, name) for rule in by_follows for name in rule.hf.values())
        return {HOLE.sub("{}", name): (rule, HOLE.findall(name)) for rule, name in names}

    def made_by(self, name: str) -> tuple[Rule, dict[str, int]] | None:
        """The row that makes the Hugging Face tensor `name`, and the numbers in the holes of its name."""
        parts = _NUMBER_SEGMENT.split(name)
        found = self._by_made.get("{}".join(parts[::2]))
        return None if found is None else (found[0], dict(zip(found[1], map(int, parts[1::2]))))

    def match(self, name: str) -> tuple[Rule, dict[str, int]] | None:
        """The row for the canonical tensor `name` and the numbers in its holes."""
        parts = _NUMBER_SEGMENT.split(name)
        rule = self._by_template.get("{}".join(parts[::2]))
        return None if rule is None else (rule, dict(zip(rule.holes, map(int, parts[1::2]))))


def checked(name: str, table: Mapping[str, Any], file: str | None = None) -> Architecture:
    """The architecture that a whole `table` (of a `file`, if any) means. Raises RuleError listing
    everything that is wrong in it.
    """
    findings: list[str] = []
    units = _units(table["units"], findings)
    rows, section = table["rules"], table["mtp"]
    findings += mtp.faults(section) + multimodal.faults(table["within"])
    if section and not findings:
        rows = [*rows, *mtp.rows(section, rows)]
    within = Within(**table["within"]) if table["within"] and not findings else None
    if within is not None:
        rows = [_renamed(row, within) for row in rows]
    rules = [rule for row in rows if (rule := _rule(row, units, findings)) is not None]
    findings += _ambiguities(rules) + _unknown_readings(table["config"])
    shown = {key: Shown.of_entry(entry) for key, entry in table["shown"].items()}
    patterns = {rule.megatron for rule in rules}
    findings += _shown_faults(shown, patterns)
    if findings:
        raise RuleError("the architecture table is wrong", where={"table": file or name}, findings=findings)
    return Architecture(
        name,
        tuple(table["serves"]),
        table["model_type"],
        {setting: of_entry(entry) for setting, entry in table["config"].items()},
        {setting: _required(entry) for setting, entry in table["requires"].items()},
        table["tells"],
        table["defaults"],
        table["outright"],
        {key: found for key, found in shown.items() if found is not None},
        tuple(rules),
        _mtp(section, rules, within) if "outer" in section else None,
        within,
        table,
    )


def _renamed(row: Mapping[str, Any], within: Within) -> dict[str, Any]:
    """A row of a language model as it is within a larger one."""
    hf = row.get("hf")
    if isinstance(hf, str):
        return {**row, "hf": within.name(hf)}
    if isinstance(hf, Mapping):
        return {**row, "hf": {role: within.name(name) for role, name in hf.items() if isinstance(name, str)}}
    return dict(row)


def _mtp(section: Mapping[str, Any], rules: Iterable[Rule], within: Within | None) -> Mtp:
    copies = section.get("copies", {})
    if within is not None:
        copies = {within.name(name): within.name(of) for name, of in copies.items()}
    names = [name for rule in rules if "mtp" in rule.holes for name in rule.hf.values()]
    return Mtp(section.get("count"), copies, (*names, *copies))


def with_rows(inherited: Iterable[Any], own: Iterable[Any]) -> list[Any]:
    """Rows of a table that extends another: its own, and the inherited ones with other patterns."""
    own = list(own)
    replaced = {row.get("megatron") for row in own}
    return [row for row in inherited if row["megatron"] not in replaced] + own


def _shown_faults(shown: Mapping[str, Shown | None], patterns: set[str]) -> list[str]:
    known = "a setting, {row: PATTERN or a list of them} or {rows_of: TENSOR}"
    faults = [f"shown: {key} must be {known}" for key, found in shown.items() if found is None]
    rows = [(key, row) for key, found in shown.items() if found is not None for row in found.rows]
    return faults + [
        f"shown: {key}: no row is {row}" for key, row in rows if patterns and row not in patterns
    ]


def _required(entry: Any) -> Required:
    return Required(**entry) if isinstance(entry, Mapping) else Required(entry)


def _unknown_readings(entries: Mapping[str, Any]) -> list[str]:
    return [
        f"config: {setting}: unknown reading {entry!r}; known are {sorted(READINGS)}"
        for setting, entry in entries.items()
        if isinstance(entry, Mapping) and (set(entry) != {"reading"} or str(entry["reading"]) not in READINGS)
    ]


def _units(lines: Iterable[Any], findings: list[str]) -> tuple[UnitKind, ...]:
    kinds: list[UnitKind] = []
    for order, line in enumerate(lines):
        known = line if isinstance(line, dict) else {}
        name, prefixes = known.get("unit"), known.get("megatron", [])
        if not isinstance(name, str) or not isinstance(prefixes, list) or set(known) - _UNIT_KEYS:
            findings.append(f"units: {line!r} is not {{unit: NAME, megatron: [PREFIX., ...]}}")
            continue
        loose = [prefix for prefix in prefixes if not (isinstance(prefix, str) and prefix.endswith("."))]
        findings += [f"units: {name}: {prefix!r} must end with a dot" for prefix in loose]
        kind = UnitKind(order, name, tuple(map(str, prefixes)))
        for prefix in kind.prefixes:
            unnamed = set(kind.holes) - set(HOLE.findall(prefix))
            findings += [f"units: {name}: {prefix} has no hole {{{hole}}}" for hole in sorted(unnamed)]
        if any(kind.name == other.name for other in kinds):
            findings.append(f"units: {name} comes twice")
        kinds.append(kind)
    return tuple(kinds)


def _unit_of(row: Mapping[str, Any], units: tuple[UnitKind, ...], findings: list[str]) -> UnitKind | None:
    """The unit that a row names, or the one whose prefix its pattern begins with."""
    pattern, named = row["megatron"], row.get("unit")
    found = [unit for unit in units if (unit.name == named if named is not None else unit.covers(pattern))]
    if len(found) != 1:
        names = [unit.name for unit in units]
        shared = [unit.name for unit in found]
        text = f"units {shared} share it" if found else f"it is of no unit; known are {names}"
        findings.append(f"{pattern}: {text}; say which with `unit`")
        return None
    unnumbered = set(found[0].holes) - set(HOLE.findall(pattern))
    findings += [f"{pattern}: unit {found[0].name} needs a hole {{{hole}}}" for hole in sorted(unnumbered)]
    return None if unnumbered else found[0]


def _rule(row: Mapping[str, Any], units: tuple[UnitKind, ...], findings: list[str]) -> Rule | None:
    pattern, before = row["megatron"], len(findings)
    name, hf, drop = row.get("transform", "copy"), row.get("hf", {}), row.get("drop")
    flags = {flag: row.get(flag, False) for flag in ("keeps_type", "plus_one")}
    transform = TRANSFORMS.get(name) if isinstance(name, str) else None
    hf = {"": hf} if isinstance(hf, str) else hf
    if unknown := set(row) - _ROW_KEYS:
        findings.append(f"{pattern}: unknown keys {sorted(map(str, unknown))}; known are {sorted(_ROW_KEYS)}")
    wrong = [flag for flag, value in flags.items() if not isinstance(value, bool)]
    findings += [f"{pattern}: `{flag}` must be true or false" for flag in wrong]
    if transform is None:
        findings.append(f"{pattern}: unknown transform {name!r}; known are {sorted(TRANSFORMS)}")
    if not isinstance(hf, dict) or not all(isinstance(target, str) for target in hf.values()):
        findings.append(f"{pattern}: `hf` must be a name, or a mapping of roles to names")
        hf = {}
    elif (drop is None) == (not hf) or not (drop is None or (isinstance(drop, str) and drop.strip())):
        findings.append(f"{pattern}: give either `hf` or `drop` with a reason")
    elif transform is not None and drop is None and set(hf) != set(transform.roles):
        roles = sorted(map(str, hf))
        findings.append(f"{pattern}: {transform.name} gives {list(transform.roles)}, `hf` names {roles}")
    if len(set(hf.values())) < len(hf):
        findings.append(f"{pattern}: two outputs have one name")
    findings += _hole_faults(pattern, hf.values())
    unit = _unit_of(row, units, findings) if drop is None else None
    is_right = transform is not None and len(findings) == before
    if transform is None or not is_right:
        return None
    return Rule(pattern, hf, transform, unit, drop, **flags)


def _hole_faults(pattern: str, names: Iterable[str]) -> list[str]:
    holes = HOLE.findall(pattern)
    faults = [
        f"{pattern}: unknown hole {{{hole}}}; known are {list(HOLES)}" for hole in holes if hole not in HOLES
    ]
    faults += [f"{pattern}: hole {{{hole}}} comes twice" for hole in set(holes) if holes.count(hole) > 1]
    if _has_brace(_HOLE_SEGMENT.sub("", pattern)):
        faults.append(f"{pattern}: a hole must be a whole part of the name, behind a dot")
    if _NUMBER_SEGMENT.search(pattern):
        faults.append(f"{pattern}: numbers must be holes, so that rows cannot overlap")
    for name in names:
        if _has_brace(HOLE.sub("", name)):
            faults.append(f"{pattern}: {name} has a brace that is no hole")
        faults += [
            f"{pattern}: {name} has hole {{{h}}} without a source"
            for h in {of for hole in HOLE.findall(name) for of in _named_by(hole)} - set(holes)
        ]
    return faults


def _named_by(hole: str) -> tuple[str, ...]:
    """The holes of a Megatron pattern that a hole of an HF name stands for."""
    return NUMBERS.get(hole, (hole,))


def _has_brace(text: str) -> bool:
    return "{" in text or "}" in text


def _ambiguities(rules: Iterable[Rule]) -> list[str]:
    seen: dict[str, str] = {}
    findings = []
    for rule in rules:
        template = HOLE.sub("{}", rule.megatron)
        if template in seen:
            findings.append(f"{rule.megatron} and {seen[template]} match the same tensors")
        seen[template] = rule.megatron
    return findings
