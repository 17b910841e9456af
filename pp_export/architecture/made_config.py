"""config.json made of the training args, for an export without a reference.

The knowledge is that by which the two are compared: a table's readings also write what they read. What
neither args nor tensors tell, and the class doesn't leave off like Megatron where it isn't told, is refused
by name. Nothing here vouches for the result: it is held against the args like any other config.json.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pp_export.architecture import meaning
from pp_export.architecture.comparison import shown
from pp_export.architecture.rules import Architecture, Required
from pp_export.core.errors import AccountingError, RuleError
from pp_export.core.settings import UNKNOWN, OneOf, Setting, agree
from pp_export.core.tensors import TensorSpec

TABLE, DEFAULT, TENSORS = "table", "the class's default", "tensors"
_ALWAYS = "megatron-core, whatever the args"
_WIDTH = "hidden_size"
_NOTHING = Setting(UNKNOWN, {})
_ARGS = "args: "
_MAX_PASSES = 4


class Told(NamedTuple):
    """A value of config.json, and where it comes from."""

    value: Any
    origin: str


@dataclass(frozen=True)
class MadeConfig:
    """The config.json, and for each of its keys where the value comes from (`args: num_layers`)."""

    config: Mapping[str, Any]
    origins: Mapping[str, str]


def make_config(
    architecture: Architecture,
    trained: meaning.Settings,
    specs: Mapping[str, TensorSpec],
    further: Mapping[str, Told],
    *,
    usual: Mapping[str, Required],
) -> MadeConfig:
    """The config.json of what was `trained`, of the one class that the `architecture` serves.

    `specs` are the checkpoint's canonical tensors; `further` keys are told by others (vocabulary, tokens).
    `usual` is what Megatron does where no arg tells otherwise; a setting that the args don't tell is left to
    the class if that is its default too. Raises AccountingError with all that the args don't determine,
    RuleError where the table doesn't say enough.
    """
    work = _Making(architecture, trained, usual)
    work.put({"architectures": [class_of(architecture)], "model_type": model_type_of(architecture)}, TABLE)
    for key, told in further.items():
        work.put({key: told.value}, told.origin)
    work.put_shown(specs)
    work.put_settings()
    if work.findings:
        raise AccountingError(
            "the training args don't tell all that config.json needs",
            where={"class": class_of(architecture)},
            advice="give --reference, a folder with the config.json of the model that was trained",
            findings=work.findings,
        )
    return MadeConfig(work.config, work.origins)


def class_of(architecture: Architecture) -> str:
    """The one class that a table serves; RuleError where it is not one."""
    if len(architecture.serves) == 1:
        return architecture.serves[0]
    raise RuleError(
        "without a reference, nothing says which class of the table is meant",
        where={"table": architecture.name},
        expected="one class",
        got=", ".join(architecture.serves) or "none",
        advice="pass the class with --architecture, or give --reference",
    )


def model_type_of(architecture: Architecture) -> str:
    """What config.json calls the class; RuleError where the table doesn't say it."""
    if architecture.model_type is not None:
        return architecture.model_type
    raise RuleError(
        "without a reference, the table must say how config.json calls the class",
        where={"table": architecture.name},
        expected="model_type: NAME",
        advice="add it to the table, or give --reference",
    )


@dataclass
class _Making:
    """A config.json on its way: `config` with what was put, and where each key's value came from."""

    architecture: Architecture
    trained: meaning.Settings
    usual: Mapping[str, Required]
    config: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)

    def put(self, keys: Mapping[str, Any], origin: str) -> None:
        """Set keys; where several settings are said in one, it comes of all of them."""
        for key, value in keys.items():
            before = self.origins.get(key)
            if before is None or before == DEFAULT:
                self.origins[key] = origin
            elif not (key in self.config and agree(self.config[key], value)):
                self.origins[key] = _joined(before, origin)
            self.config[key] = value

    @property
    def effect(self) -> dict[str, Any]:
        return meaning.in_effect(self.architecture, self.config, None)

    def put_shown(self, specs: Mapping[str, TensorSpec]) -> None:
        """The keys that tensors show."""
        held = {match[0].megatron for name in specs if (match := self.architecture.match(name)) is not None}
        for key, of in self.architecture.shown.items():
            if of.rows:
                value = bool(held.intersection(of.rows))
                if value != self.architecture.defaults.get(key):
                    self.put({key: value}, TENSORS)
            elif of.rows_of:
                if of.rows_of in specs:
                    self.put({key: specs[of.rows_of].shape[0]}, TENSORS)
                else:
                    self.findings.append(f"{key}: the checkpoint has no {of.rows_of}")
            else:
                setting = self.trained.get(of.setting, _NOTHING)
                if setting.is_known:
                    self.put({key: setting.value}, _origin(of.setting, setting))
                elif setting.value is UNKNOWN:
                    self.findings.append(_untold(of.setting, [key]))

    def put_settings(self) -> None:
        """The keys of all settings. Some are written in terms of others, so a few passes may be needed."""
        required = self.architecture.requires
        known = {name: self.trained.get(name, _NOTHING) for name in self.architecture.readings}
        for name, setting in known.items():
            if setting.value is UNKNOWN and name in required:
                known[name] = Setting(required[name].value, {})
        told = [name for name, setting in known.items() if setting.is_known]
        left = told
        for _ in range(_MAX_PASSES):
            left = [name for name in told if not self._write(name, known[name])]
        self.findings += [self._unsaid(name, known[name]) for name in left]
        for name, setting in known.items():
            if setting.value is UNKNOWN:
                self._leave(name)

    def _write(self, name: str, setting: Setting) -> bool:
        """Write what says a setting, unless it is said already; whether it is, in the end."""
        reading, effect = self.architecture.readings[name], self.effect
        values = setting.value.values if isinstance(setting.value, OneOf) else (setting.value,)
        origin = _origin(name, setting)
        if any(reading.agree(value, reading.read(effect)) for value in values):
            for key in reading.keys:
                self.origins.setdefault(key, origin)
            return True
        ways = [
            keys
            for value in values
            if (keys := reading.write(effect, value)) is not None
            if reading.agree(value, reading.read(meaning.in_effect(self.architecture, effect | keys, None)))
        ]
        if len(ways) == 1:
            self.put(ways[0], origin)
        return len(ways) == 1

    def _leave(self, name: str) -> None:
        """Leave a setting that no arg tells to the class, if that is as Megatron is then."""
        reading, usual = self.architecture.readings[name], self.usual.get(name)
        is_one_key = isinstance(self.architecture.table["config"].get(name), str)
        if not reading.keys or (is_one_key and any(key in self.config for key in reading.keys)):
            return
        if usual is None or not reading.agree(usual.value, reading.read(self.effect)):
            self.findings.append(_untold(name, reading.keys))
        for key in reading.keys:
            self.origins.setdefault(key, DEFAULT)

    def _unsaid(self, name: str, setting: Setting) -> str:
        value = setting.value
        if isinstance(value, OneOf):
            return f"{name}: {' or '.join(map(shown, value.values))}: {value.why}"
        return f"{name}: {self.architecture.name} can't say what was trained, {shown(value)}"


def _joined(first: str, second: str) -> str:
    """The origin of what comes of both."""
    args = [origin.removeprefix(_ARGS).split(", ") for origin in (first, second) if origin.startswith(_ARGS)]
    return f"{_ARGS}{', '.join(dict.fromkeys(arg for each in args for arg in each))}" if args else second


def _origin(name: str, setting: Setting) -> str:
    """The args that a setting is derived of, as far as they say something."""
    if name in setting.args and agree(setting.args[name], setting.value):
        return _ARGS + name
    given = [arg for arg, value in setting.args.items() if value is not None and value is not False]
    given = given or [arg for arg, value in setting.args.items() if value is False]
    if not setting.args:
        return TABLE
    if given in ([], [_WIDTH]) and name != _WIDTH:
        return _ALWAYS if _WIDTH in setting.args else _ARGS + name
    return _ARGS + ", ".join(given)


def _untold(name: str, keys: Iterable[str]) -> str:
    return f"{name} (config.json: {', '.join(keys)}): the training args don't tell it"
