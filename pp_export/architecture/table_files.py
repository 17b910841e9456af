"""The files that tables are in: packaged ones, and a user's own, each with everything that it extends."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pp_export.architecture import heads
from pp_export.architecture.rules import Architecture, Required, checked, with_rows
from pp_export.core import plain_yaml, strict_json
from pp_export.core.errors import RuleError
from pp_export.core.plain_yaml import YamlError

if TYPE_CHECKING:
    from importlib.abc import Traversable

_TABLES = resources.files("pp_export.architecture") / "tables"
_OTHER_ARGS = resources.files("pp_export.architecture") / "other_args.yaml"
_UNSERVED = resources.files("pp_export.architecture") / "unserved.yaml"
_MULTIMODAL = resources.files("pp_export.architecture") / "multimodal.yaml"
_BASE = "megatron"
_SETTINGS = {"config", "requires", "tells", "defaults", "outright", "shown"}
_MAX_SHOWN = 80
_SHAPES: Mapping[type, str] = {dict: "mapping", list: "list", str: "text"}
_TABLE_KEYS = _SETTINGS | {"serves", "model_type", "extends", "units", "rules", "mtp", "within"}


def packaged() -> dict[str, str]:
    """HF class name -> name of the packaged table that serves it."""
    return {served: stem for stem in _packaged_names() for served in _served_by(stem)}


def _packaged_names() -> list[str]:
    names = (entry.name for entry in _TABLES.iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


@cache
def other_args() -> dict[str, tuple[str, str]]:
    """Pattern of names -> kind and reason, for training args that no table compares."""
    kinds = plain_yaml.parse(_OTHER_ARGS.read_bytes())
    return {
        pattern: (kind, reason)
        for kind, reasons in kinds.items()
        for reason, patterns in reasons.items()
        for pattern in patterns
    }


@cache
def multimodal() -> Mapping[str, Mapping[str, Any]]:
    """Class -> where the language model stands in it, and the classes that this may be of."""
    found: Mapping[str, Mapping[str, Any]] = plain_yaml.parse(_MULTIMODAL.read_bytes())
    return found


@cache
def unserved() -> dict[str, str]:
    """Classes that no table can serve, and why."""
    return dict(plain_yaml.parse(_UNSERVED.read_bytes()))


def for_class(class_name: str, config: Mapping[str, Any] | None = None) -> Architecture:
    """The packaged table for an HF class; RuleError names those that there are. A class that puts another
    head on a language model has the language model's, and so has one with a language model within, of which
    its `config` tells which that is.
    """
    if class_name in multimodal():
        return _within(class_name, config or {})
    if (found := _serving(class_name)) is not None:
        return load(found)
    for decoder in map(_serving, heads.language_models_of(class_name)):
        if decoder is not None:
            return checked(decoder, heads.with_head(_merged(decoder, ()), class_name), decoder)
    raise _unserved(class_name)


def _within(class_name: str, config: Mapping[str, Any]) -> Architecture:
    """The table of the language model in a config's model of this class."""
    entry = multimodal()[class_name]
    classes, key = entry["language_models"], entry["within"]["config"]
    inner = config.get(key)
    kind = inner.get("model_type") if isinstance(inner, Mapping) else None
    if len(classes) > 1 and kind not in classes:
        raise RuleError(
            "config.json doesn't say which language model is inside the multimodal model",
            where={"class": class_name, "key": f"{key}.model_type"},
            expected=", ".join(classes),
            got=kind,
        )
    found = _serving(classes[kind] if kind in classes else next(iter(classes.values())))
    assert found is not None
    return checked(found, {**_merged(found, ()), "serves": [class_name], "within": entry["within"]}, found)


def named(name: str) -> Architecture:
    """The table in the file `name`, with or without its ending, if there is one; else the packaged one of
    that name, or for that class.
    """
    file = name if name.endswith((".yaml", ".yml")) else f"{name}.yaml"
    if file == name or Path(file).is_file():
        return load(file)
    return load(name) if name in _packaged_names() else for_class(name)


def usual() -> Mapping[str, Required]:
    """What models of Megatron do where no arg tells otherwise: the values that the table of all of them
    requires.
    """
    return load(_BASE).requires


def nearest(class_name: str) -> list[str]:
    """Packaged tables of classes with names like this one, the likest first."""
    tables_of = {heads.root_of(served): table for served, table in packaged().items()}
    return [tables_of[root] for root in difflib.get_close_matches(heads.root_of(class_name), tables_of, n=3)]


def _unserved(class_name: str) -> RuleError:
    served = packaged()
    reason = unserved().get(class_name)
    tables = " or ".join(nearest(class_name))
    return RuleError(
        "no architecture table serves this model class" + (f": {reason}" if reason else ""),
        expected=f"one of the {len(served)} classes that `pp_export families` lists",
        got=class_name,
        advice="write a table (`pp_export docs architectures`; `pp_export draft-table` begins one)"
        + (f", which may extend {tables} if its layers are alike," if tables else "")
        + " and pass it with --architecture FILE.yaml"
        + (", if the model was trained with layers that do this" if reason else ""),
    )


def _serving(class_name: str) -> str | None:
    # Reading YAML takes a while: only tables that name the class behind `serves:` are read as such.
    serving = re.compile(rf"^serves:.*{re.escape(class_name)}", re.MULTILINE)
    naming = (name for name in _packaged_names() if serving.search(_packaged_file(name).read_text("utf-8")))
    return next((table for table in naming if class_name in _served_by(table)), None)


def _served_by(packaged_table: str) -> tuple[str, ...]:
    """What a table serves is never inherited: its own file says it."""
    return tuple(_read_packaged(packaged_table).get("serves", ()))


def load(table: str) -> Architecture:
    """The table in file `table` (a path ending in .yaml) or packaged under that name, checked."""
    return checked(Path(table).stem, _merged(table, ()), table)


def _merged(table: str, below: tuple[str, ...]) -> dict[str, Any]:
    """The table with everything it extends: rows with the same pattern replace, a setting's line in `config`
    or `requires` whatever either said of it; `units` and `mtp` replace all of the base's. What it `serves`,
    and their `model_type`, are its own.
    """
    if table in below:
        raise RuleError("architecture tables extend each other in a circle", got=" -> ".join((*below, table)))
    value = _read(table)
    extended = value.get("extends", None if table == _BASE else _BASE)
    base = _merged(_beside(table, extended), (*below, table)) if extended is not None else {}
    decided = {**value.get("config", {}), **value.get("requires", {})}

    def merged(section: str) -> dict[str, Any]:
        inherited = {k: v for k, v in base.get(section, {}).items() if k not in decided}
        return {**inherited, **value.get(section, {})}

    return {
        "serves": list(value.get("serves", ())),
        "model_type": value.get("model_type"),
        "config": {setting: entry for setting, entry in merged("config").items() if entry is not None},
        "requires": merged("requires"),
        "tells": {**base.get("tells", {}), **value.get("tells", {})},
        "defaults": {
            key: default
            for key, default in {**base.get("defaults", {}), **value.get("defaults", {})}.items()
            if default is not None
        },
        "outright": {**base.get("outright", {}), **value.get("outright", {})},
        "shown": {
            key: of
            for key, of in {**base.get("shown", {}), **value.get("shown", {})}.items()
            if of is not None
        },
        "units": value.get("units", base.get("units", [])),
        "mtp": value.get("mtp", base.get("mtp", {})),
        "within": value.get("within", base.get("within", {})),
        "rules": with_rows(base.get("rules", ()), value.get("rules", ())),
    }


def _beside(table: str, extended: str) -> str:
    """A packaged table's name as it is; a file relative to the table that extends it."""
    return str(Path(table).parent / extended) if extended.endswith((".yaml", ".yml")) else extended


def _read(table: str) -> Mapping[str, Any]:
    """What one file says, checked; packaged ones, which don't change, are read once."""
    is_own = table.endswith((".yaml", ".yml"))
    return _read_file(table, Path(table)) if is_own else _read_packaged(table)


@cache
def _read_packaged(table: str) -> Mapping[str, Any]:
    return _read_file(table, _packaged_file(table))


def _packaged_file(name: str) -> Traversable:
    return _TABLES / f"{name}.yaml"


def _read_file(table: str, source: Traversable) -> Mapping[str, Any]:
    try:
        if not source.is_file():
            raise RuleError(
                "there is no such architecture table",
                where={"table": table},
                advice="give the path of a .yaml file; `pp_export families` lists the packaged tables",
            )
        with source.open("rb") as file:
            value = plain_yaml.parse(file.read(plain_yaml.MAX_BYTES + 1))
    except (OSError, YamlError) as error:
        raise RuleError(f"the table can't be read: {error}", where={"table": table}) from error
    try:
        strict_json.check_value(value)  # other ranks get it as JSON
    except (TypeError, ValueError) as error:
        raise RuleError(
            "the table holds a value that JSON doesn't have",
            where={"table": table},
            expected="texts, numbers, true, false, null, lists and mappings",
            got=error,
            advice="put dates and the like in quotes",
        ) from error
    if not isinstance(value, dict) or set(value) - _TABLE_KEYS:
        got = sorted(map(str, set(value) - _TABLE_KEYS)) if isinstance(value, dict) else type(value).__name__
        raise RuleError(
            "the table has unknown keys", where={"table": table}, expected=sorted(_TABLE_KEYS), got=got
        )
    shapes = {
        **dict.fromkeys((*_SETTINGS, "mtp", "within"), dict),
        **dict.fromkeys(("units", "rules", "serves"), list),
        **dict.fromkeys(("extends", "model_type"), str),
    }
    for key, kind in shapes.items():
        if key in value and not isinstance(value[key], kind):
            raise RuleError(
                f"`{key}` must be a {_SHAPES[kind]}",
                where={"table": table},
                got=repr(value[key])[:_MAX_SHOWN],
            )
    if not all(isinstance(name, str) for name in value.get("serves", ())):
        raise RuleError("`serves` must hold names of classes", where={"table": table})
    if not all(entry is None or isinstance(entry, (str, dict)) for entry in value.get("config", {}).values()):
        raise RuleError(
            "`config` must give keys of config.json, {reading: NAME}, or null", where={"table": table}
        )
    for entry in value.get("requires", {}).values():
        if isinstance(entry, dict) and (set(entry) - {"value", "instead"} or "value" not in entry):
            raise RuleError(
                "`requires` must give values, or {value: ..., instead: TEXT}",
                where={"table": table},
                got=entry,
            )
    if not all(
        isinstance(row, dict) and isinstance(row.get("megatron"), str) for row in value.get("rules", ())
    ):
        raise RuleError(
            "every row of `rules` must be a mapping with a `megatron` pattern", where={"table": table}
        )
    return value
