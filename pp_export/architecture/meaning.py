"""Closed meaning: config.json and the training args say the same function, or the export stops.

Names and shapes don't show what a model computes. Here every setting that a table knows is compared with the
value in effect of config.json: what the file says, else what the class does by default. What the class can't
say is refused. What config.json leaves to a default, or says in one spelling only, is written out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pp_export.architecture import rope_parameters
from pp_export.architecture.comparison import Comparison, behind, shown
from pp_export.architecture.rules import Architecture, Required
from pp_export.core.errors import AccountingError
from pp_export.core.settings import MALFORMED, UNKNOWN, UNUSED, OneOf, Setting, agree, is_off

Config = Mapping[str, Any]
Settings = Mapping[str, Setting]

SEQUENCE = "sequence_length"
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
    return result


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
            effect.pop("rope_scaling", None)
            effect.pop(rope_parameters.BASE, None)
        effect.update(library)
    heads, hidden = effect.get("num_attention_heads"), effect.get("hidden_size")
    if isinstance(heads, int) and isinstance(hidden, int) and heads > 0:
        for key, value in (("num_key_value_heads", heads), ("head_dim", hidden // heads)):
            if effect.get(key) is None:
                effect[key] = architecture.defaults.get(key, value) if key not in config else value
    return effect


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
    effect = in_effect(architecture, reference, library)
    known = trained or {}
    values: dict[str, Any] = {}
    written: dict[str, Any] = {}
    unchecked, notes, findings = [], [], []
    is_correctable = False
    for name, reading in architecture.readings.items():
        setting = known.get(name, _NOTHING)
        compared = Comparison(name, reading, setting, reference, effect, known.get(SEQUENCE, _NOTHING).value)
        if compared.stated is MALFORMED:
            findings.append(compared.malformed())
            continue
        if setting.value is UNUSED or (provisional and compared.is_default):
            continue
        if setting.value is UNKNOWN:
            unchecked.append(name)
            findings += compared.contradictions()
            if compared.stated is not UNKNOWN:
                values[name] = compared.stated
            continue
        notes += compared.notes()
        values[name] = compared.stated if isinstance(setting.value, OneOf) else setting.value
        chosen = compared.choice()
        if chosen is None and not compared.agrees:
            can_say = None if isinstance(setting.value, OneOf) else reading.write(effect, setting.value)
            is_correctable |= can_say is not None
            if not correct or can_say is None:
                findings.append(compared.finding(architecture.name, can_say is not None))
                continue
            chosen = can_say
        written.update(chosen or {})
        effect.update(chosen or {})
    for name, required in architecture.requires.items():
        setting = known.get(name, _NOTHING)
        if setting.value is UNKNOWN or (setting.value is None and required.value is not None):
            unchecked.append(name)
        elif setting.value is not UNUSED and not _meets(setting.value, required.value):
            findings.append(_unmet(architecture.name, name, setting, required))
        if name in values and not _meets(values[name], required.value) and setting.value is UNKNOWN:
            findings.append(
                f"{name}: the table {architecture.name} requires {shown(required.value)}, config.json says"
                f" {shown(values[name])}"
            )
    if findings:
        raise AccountingError(
            "the reference config.json is not the config of this checkpoint",
            advice="give the reference folder of the model that was trained, or correct its config.json"
            + (", or let the checkpoint decide (--config-from checkpoint)" if is_correctable else ""),
            findings=findings,
        )
    notes += [
        f"{name} is {shown(known[name].value)}: {text}"
        for name, text in architecture.tells.items()
        if name in known and not is_off(known[name].value) and known[name].is_known
    ]
    unwritten = {key: value for key, value in (library or {}).items() if key not in written}
    config = spelled_out(architecture, {**reference, **written}, unwritten)
    return Meaning(values, config, frozenset(written), tuple(dict.fromkeys(unchecked)), tuple(notes))


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
