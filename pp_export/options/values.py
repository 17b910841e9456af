"""Options from raw values: job files, `--set key=value`, flags and keywords. What fits no option is refused
by name.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pp_export.core import plain_yaml
from pp_export.core.errors import OptionError
from pp_export.core.plain_yaml import YamlError
from pp_export.options.kinds import Options, flag

_MAX_SHOWN = 200
_KINDS = {
    "Path": "a path",
    "str": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
}

Kind = TypeVar("Kind", bound=Options)


def options_from(values: Mapping[str, Any], given_in: str, kind: type[Kind]) -> Kind:
    """Options of a kind from raw values; unknown, missing and ill-typed keys are refused."""
    fields = {option.name: option for option in dataclasses.fields(kind)}
    check_keys(values, fields, given_in)
    missing = [n for n, o in fields.items() if o.default is dataclasses.MISSING and values.get(n) is None]
    if missing:
        raise OptionError(
            "needed options are missing",
            where={"given in": given_in},
            findings=[f"--{flag(name)}" for name in missing],
        )
    return kind(**{name: _value(fields[name], value) for name, value in values.items()})


def check_keys(keys: Iterable[str], known: Iterable[str], given_in: str) -> None:
    """Raise OptionError naming, for each unknown key, the nearest known one."""
    known = list(known)
    findings = []
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(str(key).replace("-", "_"), known, n=1, cutoff=0.5)
            findings.append(f"unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    if findings:
        raise OptionError(
            "unknown options",
            where={"given in": given_in},
            advice="`pp_export docs options` lists all options",
            findings=findings,
        )


def read_job(path: Path) -> dict[str, Any]:
    """The values of a job file. Relative paths in it are relative to the working directory, as those of flags
    are.
    """
    try:
        with path.open("rb") as file:  # a pipe too
            value = plain_yaml.parse(file.read(plain_yaml.MAX_BYTES + 1))
    except OSError as error:
        raise OptionError(
            f"the job file can't be read: {error.strerror}",
            where={"file": path},
            advice="pass a checkpoint with --checkpoint" if path.is_dir() else "check the path",
        ) from error
    except YamlError as error:
        raise OptionError(f"the job file can't be read: {error}", where={"file": path}) from error
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise OptionError("a job file must be a mapping of option names to values", where={"file": path})
    return value


def parse_setting(text: str, given_with: str = "--set") -> tuple[str, Any]:
    """`key=value` as --set takes it, or another flag; the value is read as YAML."""
    key, equals, value = text.partition("=")
    if not equals:
        raise OptionError(
            f"{given_with} takes KEY=VALUE", expected="for example threads=4", got=text[:_MAX_SHOWN]
        )
    try:
        return key.strip().replace("-", "_"), plain_yaml.parse(value)
    except YamlError as error:
        raise OptionError(
            f"the value that {given_with} gives is wrong: {error}", got=text[:_MAX_SHOWN]
        ) from error


def _value(option: dataclasses.Field[Any], value: Any) -> Any:
    """A value in the option's own type and words."""
    if option.metadata["pairs"] and isinstance(value, Mapping):
        value = ",".join(f"{key}={text}" for key, text in value.items())
    found = _convert(option.name, str(option.type), value)
    return option.metadata["aliases"].get(found, found) if isinstance(found, str) else found


def _convert(name: str, kind: str, value: Any) -> Any:
    if (value is None and kind.endswith("None")) or (kind == "bool" and isinstance(value, bool)):
        return value
    try:
        if kind.startswith("Path") and isinstance(value, (str, Path)):
            return Path(value)
        if kind.startswith("str") and isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return str(value)
        if kind.startswith("int") and not isinstance(value, (bool, float)):
            return int(value)
        if kind.startswith("float") and not isinstance(value, bool):
            return float(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise OptionError(
        f"--{flag(name)} has a value of the wrong type",
        expected=_KINDS[kind.partition(" ")[0]],
        got=repr(value)[:_MAX_SHOWN],
    )
