"""Architecture tables: which Megatron tensor becomes which Hugging Face tensors.

A table is YAML: the HF classes it `serves`, the agreement between training args and config.json, and `rules`,
one row per Megatron name pattern. `{layer}`, `{expert}` and `{mtp}` are holes for numbers. A hole that the HF
name lacks means that the tensors are stacked over it. A row may `drop` a tensor, saying why. The order of
rows means nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from pp_export.architecture.transforms import TRANSFORMS, Transform
from pp_export.core.errors import RuleError

_TABLES = resources.files("pp_export.architecture") / "tables"
HOLES = ("layer", "expert", "mtp")
_HOLE = re.compile(r"\{(\w*)\}")
_HOLE_SEGMENT = re.compile(r"(?<=\.)\{\w*\}(?=\.|$)")
_NUMBER_SEGMENT = re.compile(r"(?<=\.)\d+(?=\.|$)")
_TABLE_KEYS = {"serves", "extends", "config", "requires", "rules"}
_ROW_KEYS = {"megatron", "hf", "transform", "drop"}


@dataclass(frozen=True)
class Rule:
    """One row: `hf` maps the transform's roles to name patterns; `drop` is the reason when the tensor is left
    out.
    """

    megatron: str
    hf: Mapping[str, str]
    transform: Transform
    drop: str | None = None

    @cached_property
    def holes(self) -> tuple[str, ...]:
        return tuple(_HOLE.findall(self.megatron))

    @cached_property
    def stacked(self) -> tuple[str, ...]:
        """The holes over which the HF tensors are stacked, outermost first."""
        named = {hole for name in self.hf.values() for hole in _HOLE.findall(name)}
        return tuple(hole for hole in self.holes if hole not in named)


@dataclass(frozen=True)
class Architecture:
    """A checked table."""

    name: str
    serves: tuple[str, ...]
    config: Mapping[str, str]
    requires: Mapping[str, Any]
    rules: tuple[Rule, ...] = field(repr=False)

    @cached_property
    def _by_template(self) -> dict[str, Rule]:
        return {_HOLE.sub("{}", rule.megatron): rule for rule in self.rules}

    def match(self, name: str) -> tuple[Rule, dict[str, int]] | None:
        """The row for the canonical tensor `name` and the numbers in its holes."""
        rule = self._by_template.get(_NUMBER_SEGMENT.sub("{}", name))
        if rule is None:
            return None
        return rule, dict(zip(rule.holes, map(int, _NUMBER_SEGMENT.findall(name))))


def packaged() -> dict[str, str]:
    """HF class name -> name of the packaged table that serves it."""
    names = (entry.name for entry in _TABLES.iterdir())
    stems = sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))
    return {served: stem for stem in stems for served in load(stem).serves}


def for_class(class_name: str) -> Architecture:
    """The packaged table for an HF class; RuleError names those that there are."""
    tables = packaged()
    if class_name not in tables:
        raise RuleError(
            "no architecture table serves this model class",
            expected=", ".join(sorted(tables)),
            got=class_name,
            advice="write a table (docs/architectures.md) and pass it with --architecture FILE.yaml",
        )
    return load(tables[class_name])


def load(table: str) -> Architecture:
    """The table in file `table` (a path ending in .yaml) or packaged under that name, checked."""
    value = _merged(table, ())
    findings: list[str] = []
    rules = [rule for row in value["rules"] if (rule := _rule(row, findings)) is not None]
    findings += _ambiguities(rules)
    if findings:
        raise RuleError("the architecture table is wrong", where={"table": table}, findings=findings)
    return Architecture(
        Path(table).stem, tuple(value["serves"]), value["config"], value["requires"], tuple(rules)
    )


def _merged(table: str, below: tuple[str, ...]) -> dict[str, Any]:
    """The table with everything it extends: rows with the same pattern replace, keys of `config` and
    `requires` too.
    """
    if table in below:
        raise RuleError("architecture tables extend each other in a circle", got=" -> ".join((*below, table)))
    value = _read(table)
    base = _merged(_beside(table, value["extends"]), (*below, table)) if "extends" in value else {}
    replaced = {row.get("megatron") for row in value.get("rules", ())}
    config = {**base.get("config", {}), **value.get("config", {})}
    return {
        "serves": value.get("serves", ()),
        "config": {size: key for size, key in config.items() if key is not None},
        "requires": {**base.get("requires", {}), **value.get("requires", {})},
        "rules": [row for row in base.get("rules", ()) if row["megatron"] not in replaced]
        + value.get("rules", []),
    }


def _beside(table: str, extended: str) -> str:
    """A packaged table's name as it is; a file relative to the table that extends it."""
    return str(Path(table).parent / extended) if extended.endswith((".yaml", ".yml")) else extended


def _read(table: str) -> dict[str, Any]:
    packaged_file = _TABLES / f"{table}.yaml"
    source = Path(table) if table.endswith((".yaml", ".yml")) else packaged_file
    if not source.is_file():
        raise RuleError("there is no such architecture table", where={"table": table})
    try:
        value = yaml.safe_load(source.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RuleError(f"the table is not YAML: {error}", where={"table": table}) from error
    if not isinstance(value, dict) or set(value) - _TABLE_KEYS:
        got = sorted(map(str, set(value) - _TABLE_KEYS)) if isinstance(value, dict) else type(value).__name__
        raise RuleError(
            "the table has unknown keys", where={"table": table}, expected=sorted(_TABLE_KEYS), got=got
        )
    shapes = {"config": dict, "requires": dict, "rules": list, "serves": list, "extends": str}
    for key, kind in shapes.items():
        if key in value and not isinstance(value[key], kind):
            raise RuleError(f"`{key}` must be a {kind.__name__}", where={"table": table})
    if not all(isinstance(name, str) for name in value.get("serves", ())):
        raise RuleError("`serves` must hold names of classes", where={"table": table})
    if not all(key is None or isinstance(key, str) for key in value.get("config", {}).values()):
        raise RuleError("`config` must give keys of config.json, or null", where={"table": table})
    if not all(
        isinstance(row, dict) and isinstance(row.get("megatron"), str) for row in value.get("rules", ())
    ):
        raise RuleError(
            "every row of `rules` must be a mapping with a `megatron` pattern", where={"table": table}
        )
    return value


def _rule(row: Mapping[str, Any], findings: list[str]) -> Rule | None:
    pattern, before = row["megatron"], len(findings)
    name, hf, drop = row.get("transform", "copy"), row.get("hf", {}), row.get("drop")
    transform = TRANSFORMS.get(name) if isinstance(name, str) else None
    hf = {"": hf} if isinstance(hf, str) else hf
    if unknown := set(row) - _ROW_KEYS:
        findings.append(f"{pattern}: unknown keys {sorted(map(str, unknown))}; known are {sorted(_ROW_KEYS)}")
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
    return Rule(pattern, hf, transform, drop) if transform is not None and len(findings) == before else None


def _hole_faults(pattern: str, names: Iterable[str]) -> list[str]:
    holes = _HOLE.findall(pattern)
    faults = [
        f"{pattern}: unknown hole {{{hole}}}; known are {list(HOLES)}" for hole in holes if hole not in HOLES
    ]
    faults += [f"{pattern}: hole {{{hole}}} comes twice" for hole in set(holes) if holes.count(hole) > 1]
    if _has_brace(_HOLE_SEGMENT.sub("", pattern)):
        faults.append(f"{pattern}: a hole must be a whole part of the name, behind a dot")
    if _NUMBER_SEGMENT.search(pattern):
        faults.append(f"{pattern}: numbers must be holes, so that rows cannot overlap")
    for name in names:
        if _has_brace(_HOLE.sub("", name)):
            faults.append(f"{pattern}: {name} has a brace that is no hole")
        faults += [
            f"{pattern}: {name} has hole {{{h}}} without a source"
            for h in set(_HOLE.findall(name)) - set(holes)
        ]
    return faults


def _has_brace(text: str) -> bool:
    return "{" in text or "}" in text


def _ambiguities(rules: Iterable[Rule]) -> list[str]:
    seen: dict[str, str] = {}
    findings = []
    for rule in rules:
        template = _HOLE.sub("{}", rule.megatron)
        if template in seen:
            findings.append(f"{rule.megatron} and {seen[template]} match the same tensors")
        seen[template] = rule.megatron
    return findings
