"""The folder against the model's own definition: names, shapes and types of tensors, without their values.

The definition is asked of somebody else (`Ask`), because only transformers knows it and this room imports
neither it nor what starts it. Names that loaders leave alone are notes: weights tied to others and stored all
the same, buffers that classes make themselves, and layers for predicting further tokens.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pp_export.core.config_keys import CODE, OTHER_FILES, QUANTIZATION, num_mtp_layers
from pp_export.core.errors import ExportError
from pp_export.core.file_names import CONFIG
from pp_export.verification.findings import Fault, brief, shown
from pp_export.verification.header import TensorEntry
from pp_export.verification.quantized import Entries, form_of, unpacked
from pp_export.verification.survey import Survey

_BUFFERS = re.compile(
    r"(.*\.)?((original_)?inv_freq|masked_bias|position_ids|relative_position_index)|.*\.(attn|attention)\.bias"
)
_MTP = re.compile(r"((model|language_model)\.)*mtp(_layers)?\..*")
_LAYER = re.compile(r"(?:.*\.)?layers\.([0-9]{1,6})\..*")
_HEAD = re.compile(r"(.*\.)?(lm_head|embed_out)\.weight")
_PACKED = re.compile(r"[UI]8|F[468]_.*|F4")
_INTEGER = re.compile(r"[UI](16|32|64)|BOOL")
_TYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_NUM_SHOWN = 3


class Definition(Protocol):
    """What a model consists of, as its class would save it."""

    @property
    def tensors(self) -> Mapping[str, tuple[int, ...]]:
        """Name -> shape of every tensor on disk, each tied weight once."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The config's values, the class's defaults included."""


class Pending(Protocol):
    """A definition that somebody is finding out."""

    def result(self) -> Definition | None:
        """Waits; None where nobody knows the class. Raises ExportError where the class refuses the config."""

    def close(self) -> None:
        """End the work if it is still going on."""


Ask = Callable[[Mapping[str, Any]], Pending]
"""Starts finding out the definition for a config.json, and returns at once."""


@dataclass(frozen=True)
class Held:
    """What came of holding a folder against a definition."""

    class_name: str | None = None
    """The class, if the folder was held against its definition."""
    faults: tuple[Fault, ...] = ()
    notes: tuple[str, ...] = ()


def why_not(survey: Survey) -> str | None:
    """Why a folder can't be held against a definition, or None."""
    config = survey.config
    if config is None:
        if "adapter_config.json" in survey.listing.sizes:
            return "these are adapters, which are no model without the one that they adapt"
        return f"there is no {CONFIG} that can be read"
    if not _class_name(config):
        return f"{CONFIG} names no class under architectures"
    # Of a form that is known, one can tell what the model has.
    for path, part in (("", config), *((f"{key}.", value) for key, value in config.items())):
        keys = [key for key in part if key in QUANTIZATION and part[key]] if isinstance(part, Mapping) else []
        if keys and form_of(config) is None:
            return f"by {path}{keys[0]} the weights are quantized, so their names and types are others"
    others = [key for key in sorted(OTHER_FILES) if config.get(key)]
    if others:
        return f"by {others[0]} in {CONFIG}, loaders read other files than it and its weights"
    return "weight files are missing or can't be read" if entries_of(survey) is None else None


def hold(survey: Survey, pending: Pending) -> Held:
    """Wait for the definition, and compare; only where `why_not` is None."""
    config = survey.config or {}
    name = _class_name(config)
    try:
        definition = pending.result()
    except ExportError as error:
        text = f"transformers can't make {brief(name)} from it: {shown(error.got or error.what)}"
        return Held(faults=(Fault("definition-refused", CONFIG, None, text),))
    if definition is None:
        return Held(notes=(not_held(_why_unknown(name, config)),))
    entries = entries_of(survey) or {}
    if (form := form_of(config)) is not None:
        entries = unpacked(form, entries)
    if not definition.tensors.keys() & entries.keys():
        first = [shown(next(iter(sorted(names)), "nothing")) for names in (definition.tensors, entries)]
        text = f"{shown(name)} writes other names ({first[0]}; here {first[1]}), which loaders may translate"
        return Held(notes=(not_held(f"{text}; --load can tell"),))
    faults, notes = _compare(name, definition, {**config, **definition.config}, entries)
    return Held(shown(name), tuple(faults), tuple(notes))


def not_held(why: str) -> str:
    """The note that says so."""
    return f"not compared with the model's definition: {why}"


def _compare(
    name: str, definition: Definition, config: Mapping[str, Any], entries: Entries
) -> tuple[list[Fault], list[str]]:
    faults: list[Fault] = []
    ignored: dict[str, list[str]] = {}
    for tensor, shape in definition.tensors.items():
        if tensor not in entries:
            text = f"{name} has it, of shape {list(shape)}; no weight file does"
            faults.append(Fault("definition-missing", CONFIG, tensor, text))
    for tensor, (file, entry) in entries.items():
        expected = definition.tensors.get(tensor)
        if expected is None:
            if why := _why_ignored(entry, definition, config, entries):
                ignored.setdefault(why, []).append(tensor)
            else:
                text = f"the file has it; {name} lacks it"
                faults.append(Fault("definition-unexpected", file, tensor, text))
            continue
        if tuple(expected) != entry.shape:
            text = f"it has shape {brief(list(entry.shape))}, in {name} {list(expected)}"
            faults.append(Fault("definition-shape", file, tensor, text))
        if _is_packed(entry):
            text = f"it is {entry.dtype}, {name} computes with floats of 16 bits or more, and {CONFIG} has no"
            faults.append(Fault("wrong-dtype", file, tensor, f"{text} quantization_config"))
    return faults, [f"{_some(names)}: {why}" for why, names in ignored.items()] + _type_notes(config, entries)


def _type_notes(config: Mapping[str, Any], entries: Entries) -> list[str]:
    """A note where no tensor has the type that config.json says, so that loaders which take it round all."""
    said = str(config.get("dtype") or config.get("torch_dtype") or "").removeprefix("torch.")
    there = {entry.dtype for _, entry in entries.values()}
    if said not in _TYPES or not there or _TYPES[said] in there:
        return []
    return [f"{CONFIG} says {said}, and no tensor is of it: loaders convert them, or take {sorted(there)[0]}"]


def _why_ignored(
    entry: TensorEntry, definition: Definition, config: Mapping[str, Any], entries: Entries
) -> str | None:
    if _BUFFERS.fullmatch(entry.name):
        return "a buffer that the class makes itself; loaders ignore it"
    if _HEAD.fullmatch(entry.name) and not any(map(_HEAD.fullmatch, definition.tensors)):
        same = [other for _, other in entries.values() if other.name in definition.tensors]
        if any("embed" in other.name and other.shape == entry.shape for other in same):
            return "tied to the embedding and stored all the same; that both are equal was not looked at"
    if is_of_mtp(entry.name, config):
        return "for predicting further tokens; transformers' class leaves it out, other servers use it"
    return None


def is_of_mtp(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a tensor is of a layer for predicting further tokens, which no class has."""
    return bool(_MTP.fullmatch(name)) or _is_beyond_layers(name, config)


def _is_beyond_layers(name: str, config: Mapping[str, Any]) -> bool:
    found, num_layers = _LAYER.fullmatch(name), config.get("num_hidden_layers")
    num_more = num_mtp_layers(config)
    return found is not None and type(num_layers) is int and 0 <= int(found[1]) - num_layers < num_more


def _is_packed(entry: TensorEntry) -> bool:
    """Eight bits and less are always a quantized weight; wider integers may be a buffer of indexes."""
    is_weight = entry.name.rpartition(".")[2] in ("weight", "bias")
    return bool(_PACKED.fullmatch(entry.dtype) or (is_weight and _INTEGER.fullmatch(entry.dtype)))


def entries_of(survey: Survey) -> Entries | None:
    """Tensor -> file and entry, of the files that loaders read; None where one of them has no header."""
    named = survey.listing.weight_files() if survey.weight_map is None else set(survey.weight_map.values())
    if not named or not set(named) <= survey.headers.keys():
        return None
    return {entry.name: (file, entry) for file in sorted(named) for entry in survey.headers[file].tensors}


def _class_name(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""


def _why_unknown(name: str, config: Mapping[str, Any]) -> str:
    for library in ("transformers", "accelerate"):
        if importlib.util.find_spec(library) is None:
            return f"{library} is not installed"
    why = f"the installed transformers has no class {brief(name)}"
    has_code = any(config.get(key) for key in CODE)
    return f"{why}; its own code (auto_map) is never run" if has_code else why


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NUM_SHOWN:,} more" if len(names) > _NUM_SHOWN else ""
    return ", ".join(map(shown, names[:_NUM_SHOWN])) + more
