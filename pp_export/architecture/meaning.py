"""Closed meaning: config.json and the training args say the same function, or the export stops.

Names and shapes don't show what a model computes. Here every setting that a table knows is compared with the
value in effect of config.json: what the file says, else what the class does by default. What the class can't
say is refused. What config.json leaves to a default, or says in one spelling only, is written out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pp_export.architecture import rope_parameters
from pp_export.architecture.comparison import Comparison, behind, shown
from pp_export.architecture.rules import Architecture, Required
from pp_export.core.errors import AccountingError
from pp_export.core.settings import MALFORMED, UNKNOWN, UNUSED, OneOf, Setting, agree, is_off

Config = Mapping[str, Any]
Settings = Mapping[str, Setting]

SEQUENCE = "sequence_length"
_LAYERS = "num_layers"
_NOTHING = Setting(UNKNOWN, {})


@dataclass(frozen=True)
class Meaning:
    """What was settled: `values` of the settings, the trained ones where they are known; `config`, which
    says them all outright; `corrected`, those of its keys that say what was trained instead of what the
    reference says; `unchecked`, the settings of which the training args say nothing; and sentences for the
    user.
    """

    values: Mapping[str, Any]
    config: Config
    corrected: frozenset[str] = frozenset()
    unchecked: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def spelled_out(architecture: Architecture, config: Config, library: Config | None = None) -> dict[str, Any]:
    """config.json as a loader would complete it: every spelling of what it says, equal, and outright what it
    leaves to the class. Where spellings disagree, the one that release 5 of transformers takes counts.
    """
    effect, result = in_effect(architecture, config, library), dict(config)
    for reading in architecture.readings.values():
        value = reading.read(effect)
        if value is UNKNOWN or value is MALFORMED:
            continue
        written = reading.write(effect, value) or {}
        if reading.statements(effect):
            _put(result, written)
        elif not any(key in config for key in reading.keys):
            result.update(written)
        elif value is not None:
            left = (key for key in reading.keys if key not in result and key != "layer_types")
            result.update({key: effect[key] for key in left if effect.get(key) is not None})
    unsaid = {key: value for key, value in architecture.outright.items() if result.get(key) is None}
    return result | unsaid


def in_effect(architecture: Architecture, config: Config, library: Config | None) -> dict[str, Any]:
    """What a loader takes, under the keys of config.json: what the class's `library` says, else the file,
    else the table's defaults, else what every class derives.
    """
    defaults = dict(architecture.defaults)
    if rope_parameters.has_base(config):
        defaults.pop(rope_parameters.BASE, None)
    effect = {**defaults, **config}
    if library is not None:
        if isinstance(library.get("rope_parameters"), Mapping):  # all of it, in release 5
            effect.update({key: None for key in (rope_parameters.BASE, "rope_scaling") if key in effect})
        effect.update(library)
    heads, hidden = effect.get("num_attention_heads"), effect.get("hidden_size")
    if isinstance(heads, int) and isinstance(hidden, int) and heads > 0:
        for key, value in (("num_key_value_heads", heads), ("head_dim", hidden // heads)):
            if effect.get(key) is None:
                effect[key] = architecture.defaults.get(key, value) if key not in config else value
    return effect


def num_layers_of(architecture: Architecture, config: Config) -> int | None:
    """How many layers a config.json says; None where it doesn't."""
    reading = architecture.readings.get(_LAYERS)
    value = None if reading is None else reading.read(in_effect(architecture, config, None))
    return value if isinstance(value, int) else None


def settle(
    architecture: Architecture,
    trained: Settings | None,
    reference: Config,
    library: Config | None,
    *,
    correct: bool = False,
    provisional: bool = False,
) -> Meaning:
    """Compare what was `trained` (None without training args) with the `reference` config.json.

    `library` holds the values of the config object that the class's library builds of `spelled_out`; as long
    as it is still awaited, the comparison is `provisional` and leaves defaults out. With `correct` the
    checkpoint decides: what differs is written into the config, as far as the class can say it. Raises
    AccountingError listing every disagreement with both values.
    """
    work = _Settling(architecture, trained or {}, reference, in_effect(architecture, reference, library))
    for name in architecture.readings:
        work.compare(name, correct=correct, provisional=provisional)
    work.resize()
    for name in architecture.requires:
        work.require(name)
    for name in architecture.tells:
        work.tell(name)
    for key, value in architecture.outright.items():
        work.say(key, value, correct=correct)
    if work.findings:
        raise AccountingError(
            "the reference config.json is not the config of this checkpoint",
            advice="give the reference folder of the model that was trained, or correct its config.json"
            + (", or let the checkpoint decide (--config-from checkpoint)" if work.is_correctable else ""),
            findings=work.findings,
        )
    unwritten = {
        key: value
        for key, value in (library or {}).items()
        if key not in work.written and not work.is_outgrown(value)
    }
    config = spelled_out(architecture, {**reference, **work.written}, unwritten)
    unchecked = tuple(dict.fromkeys(work.unchecked))
    return Meaning(work.values, config, frozenset(work.written), unchecked, tuple(work.notes))


def changes(before: Config, settled: Meaning) -> list[str]:
    """One sentence for each key of config.json that says something else than the reference."""
    after = settled.config
    changed = [
        f"config.json: {key} is {shown(after[key])}; the reference has {shown(value)}."
        for key, value in before.items()
        if key in after and (after[key] != value or type(after[key]) is not type(value))
    ]
    new = (key for key in after if key in settled.corrected and key not in before)
    return changed + [
        f"config.json: {key} is {shown(after[key])}; the reference has no such key." for key in new
    ]


def additions(before: Config, settled: Meaning) -> list[str]:
    """One sentence for each key of config.json that says outright what the reference leaves out."""
    return [
        f"config.json: {key} is {shown(value)}."
        for key, value in settled.config.items()
        if key not in before and key not in settled.corrected
    ]


def overruled(architecture: Architecture, before: Config, after: Config) -> list[str]:
    """One sentence for each setting of which `after` says another value than `before`."""
    effect = in_effect(architecture, before, None)
    return [
        f"config.json: {name} is {shown(reading.read(effect))}, and {shown(reading.read(after))} is true."
        for name, reading in architecture.readings.items()
        if not reading.agree(reading.read(effect), reading.read(after))
    ]


@dataclass
class _Settling:
    """Settings, one after the other, on their way into a `Meaning`. `effect` is what config.json says, with
    what was `written` so far.
    """

    architecture: Architecture
    trained: Settings
    reference: Config
    effect: dict[str, Any]
    values: dict[str, Any] = field(default_factory=dict)
    written: dict[str, Any] = field(default_factory=dict)
    unchecked: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    is_correctable: bool = False
    num_before: Any = field(init=False)
    """How many layers config.json says before anything is written."""

    def __post_init__(self) -> None:
        layers = self.architecture.readings.get(_LAYERS)
        self.num_before = None if layers is None else layers.read(self.effect)

    def compare(self, name: str, *, correct: bool, provisional: bool) -> None:
        """Hold a setting against what config.json says of it."""
        reading, setting = self.architecture.readings[name], self._trained(name)
        sequence = self._trained(SEQUENCE).value
        compared = Comparison(name, reading, setting, self.reference, self.effect, sequence)
        if compared.stated is MALFORMED:
            self.findings.append(compared.malformed())
        elif setting.value is UNUSED or (provisional and compared.is_default):
            return
        elif setting.value is UNKNOWN:
            self.unchecked.append(name)
            self.findings += compared.contradictions()
            if compared.stated is not UNKNOWN:
                self.values[name] = compared.stated
        else:
            is_open = isinstance(setting.value, OneOf)
            self.values[name] = compared.stated if is_open else setting.value
            self.notes += compared.notes()
            chosen = compared.choice()
            if chosen is None and not compared.agrees:
                writable = None if is_open else reading.write(self.effect, setting.value)
                chosen = writable if correct else None
                self.is_correctable |= writable is not None
                if chosen is None:
                    self.findings.append(compared.finding(self.architecture.name, writable is not None))
            self.written.update(chosen or {})
            self.effect.update(chosen or {})

    def resize(self) -> None:
        """Lists in which config.json tells of each of so many layers, where the checkpoint has others."""
        num = self.values.get(_LAYERS)
        for key, told in self.reference.items():
            if key in self.written or not self.is_outgrown(told):
                continue
            if all(agree(each, told[0]) for each in told):
                self.written[key] = self.effect[key] = told[:1] * num
            else:
                self.findings.append(
                    f"{key} tells of {self.num_before} layers one by one, and nothing says which of them the"
                    f" checkpoint's {num} are: say it in the reference's config.json"
                )

    def is_outgrown(self, value: Any) -> bool:
        """Whether a value tells of each of the layers that config.json had before the checkpoint decided."""
        num, before = self.values.get(_LAYERS), self.num_before
        is_other = isinstance(num, int) and isinstance(before, int) and num != before
        return is_other and isinstance(value, list) and len(value) == before and before > 0

    def require(self, name: str) -> None:
        """See that a setting has the only value with which the table is right, on both sides."""
        required, setting = self.architecture.requires[name], self._trained(name)
        if setting.value is UNKNOWN or (setting.value is None and required.value is not None):
            self.unchecked.append(name)
            if name in self.values and not _meets(self.values[name], required.value):
                said = f"requires {shown(required.value)}, config.json says {shown(self.values[name])}"
                self.findings.append(f"{name}: the table {self.architecture.name} {said}")
        elif setting.value is UNUSED:
            return
        elif _meets(setting.value, required.value):
            self.values.setdefault(name, required.value)
        else:
            self.findings.append(_unmet(self.architecture.name, name, setting, required))

    def tell(self, name: str) -> None:
        """Tell of an arg that is on, and that no loader can follow."""
        setting = self._trained(name)
        if setting.is_known and not is_off(setting.value):
            self.notes.append(f"{name} is {shown(setting.value)}: {self.architecture.tells[name]}")

    def say(self, key: str, value: Any, *, correct: bool) -> None:
        """See that a key which the class doesn't read tells other loaders what the class does."""
        said = self.reference.get(key)
        if said is None or agree(said, value):
            return
        self.is_correctable = True
        if correct:
            self.written[key] = value
        else:
            self.findings.append(
                f"{key}: config.json says {shown(said)}, which other loaders follow; the model's class always"
                f" does what they call {shown(value)}"
            )

    def _trained(self, name: str) -> Setting:
        return self.trained.get(name, _NOTHING)


def _meets(value: Any, required: Any) -> bool:
    if isinstance(value, OneOf):
        return any(_meets(each, required) for each in value.values)
    return agree(value, required) or (is_off(value) and is_off(required))


def _unmet(table: str, name: str, setting: Setting, required: Required) -> str:
    said = f"{name}: the table {table} requires {shown(required.value)}, the checkpoint has"
    said += f" {shown(setting.value)}{behind(name, setting)}"
    return f"{said}; {required.instead}" if required.instead else said


def _put(config: dict[str, Any], keys: Mapping[str, Any]) -> None:
    """Set keys, but leave what is equal as it was written, and what is nothing unsaid."""
    for key, value in keys.items():
        if not agree(config.get(key), value):
            config[key] = value
