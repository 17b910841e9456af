"""A model's own definition: the tensors that `save_pretrained` would write, and the values of the config that
are in effect, the class's defaults included.

The definition is the class in the transformers library, never code of the reference folder. Its import takes
seconds and 350 MB, so it is a child process that runs `define` (`python -m pp_export.reference.definition`,
see `pending_definition`).
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import json
import os
import re
import sys
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from pp_export.core.config_keys import LEADS_OUTSIDE, QUANTIZATION, without
from pp_export.core.errors import ReferenceFolderError
from pp_export.core.strict_json import is_count
from pp_export.core.tensors import Shape

LIBRARIES = ("transformers", "accelerate")


@dataclass(frozen=True)
class Definition:
    """Name and shape of every tensor as it stands on disk, and the config object's values, under every name
    that the class knows them by.

    Tied weights and non-persistent buffers are left out of `tensors`; experts that the class packs in memory
    have their names on disk. `tied` are the names that were left out, and those that they are tied to.
    """

    tensors: Mapping[str, Shape]
    config: Mapping[str, Any]
    tied: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"tensors": dict(self.tensors), "config": dict(self.config), "tied": dict(self.tied)}

    @classmethod
    def from_json(cls, value: Any) -> Definition:
        """The definition that `to_json` gave; ValueError where it gave no such thing."""
        parts = [value.get(key) if isinstance(value, Mapping) else None for key in ("tensors", "config")]
        tensors, config = parts
        if not isinstance(tensors, Mapping) or not isinstance(config, Mapping):
            raise ValueError("it has no tensors and config")
        tied = value.get("tied", {})
        if not isinstance(tied, Mapping) or not all(isinstance(name, str) for name in tied.values()):
            raise ValueError("it doesn't say which names are tied")
        if not all(isinstance(shape, list) and all(map(is_count, shape)) for shape in tensors.values()):
            raise ValueError("it has tensors without a shape")
        return cls({name: tuple(shape) for name, shape in tensors.items()}, config, tied)


def define(config: Mapping[str, Any]) -> Definition | None:
    """The definition of the model that this config.json describes.

    None where transformers or accelerate isn't installed, or transformers has no such class. Raises
    ReferenceFolderError where the class refuses the config. Imports transformers and makes the model without
    memory for its weights; the network stays unused if HF_HUB_OFFLINE was set before that import.
    """
    name = class_name(config)
    if not name or missing_libraries():
        return None
    try:
        model_class = _library_class(name)
        if model_class is None:
            return None
        model = _empty_model(model_class, config)
        tied = _tied_away(model)
        return Definition(_tensors_on_disk(model, tied), values_in_effect(model.config), tied)
    except Exception as error:
        raise refused(config, _one_line(error)) from error


def missing_libraries() -> list[str]:
    """The libraries that are needed for an answer and aren't installed; imports nothing."""
    return [library for library in LIBRARIES if importlib.util.find_spec(library) is None]


def refused(config: Mapping[str, Any], reason: str) -> ReferenceFolderError:
    """The error of a config.json of which transformers makes no model, for whatever `reason`."""
    return ReferenceFolderError(
        "transformers can't make the reference's model from its config.json",
        where={"file": "config.json", "class": class_name(config) or "(none)"},
        got=reason,
        advice="check that config.json is complete, belongs to this model and isn't newer than transformers",
    )


def class_name(config: Mapping[str, Any]) -> str:
    """The class that a config.json names first; "" where it names none."""
    names = config.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""


def main() -> None:
    """Read a config.json on stdin; write its definition, or null, and what is missing for one on stdout: the
    child's whole life.

    A quarter of it would go into collecting garbage and taking down libraries, neither of which is needed.
    """
    gc.disable()
    config = json.load(sys.stdin.buffer)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            found = define(config)
    except ReferenceFolderError as error:
        sys.exit(error.got)
    answer = {"definition": found and found.to_json(), "missing": missing_libraries()}
    json.dump(answer, sys.stdout, default=str)
    sys.stdout.flush()
    os._exit(0)


def _library_class(name: str) -> Any:
    transformers: Any = importlib.import_module("transformers")
    found = getattr(transformers, name, None)
    is_model = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    return found if is_model and getattr(found, "config_class", None) is not None else None


def _empty_model(model_class: Any, config: Mapping[str, Any]) -> Any:
    accelerate: Any = importlib.import_module("accelerate")
    values = without(config, LEADS_OUTSIDE | QUANTIZATION)
    # Release 5 writes infinity as {"__float__": "Infinity"} and decodes it only when it reads a file itself.
    decode = getattr(model_class.config_class, "_decode_special_floats", None)
    model_config = model_class.config_class.from_dict(decode(values) if decode else values)
    # Kimi K2 has a type of its own for a class of DeepSeek-V3; names on disk follow from the class's.
    model_config.model_type = model_class.config_class.model_type
    model_config._attn_implementation = "eager"
    # With buffers, because otherwise each parameter is made on the CPU first and loses its ties on the way.
    with accelerate.init_empty_weights(include_buffers=True):
        return model_class(model_config)


def values_in_effect(config: Any) -> dict[str, Any]:
    """The values of a config object, also under the names that the class takes for them."""
    values: dict[str, Any] = config.to_dict()
    aliases = getattr(config, "attribute_map", None) or {}
    return {**values, **{alias: values[name] for alias, name in aliases.items() if name in values}}


def _tensors_on_disk(model: Any, tied: Collection[str]) -> dict[str, Shape]:
    """The steps of `save_pretrained` between the model and its files."""
    left_out = {*tied} | set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    state = {name: value for name, value in model.state_dict().items() if name not in left_out}
    # Releases before 5 have the same names in memory and on disk.
    if importlib.util.find_spec("transformers.core_model_loading") is not None:
        loading: Any = importlib.import_module("transformers.core_model_loading")
        state = loading.revert_weight_conversion(model, state)
    return {name: tuple(value.shape) for name, value in state.items() if hasattr(value, "shape")}


def _tied_away(model: Any) -> dict[str, str]:
    """The names that the class declares as tied, of parameters with several; one name of each remains, to
    which the others are tied.
    """
    declared = [
        re.compile(f"{prefix}.{pattern}" if prefix else pattern)
        for prefix, module in model.named_modules()
        for pattern in getattr(module, "_tied_weights_keys", None) or ()
    ]
    groups: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups[id(parameter)].append(name)
    tied: dict[str, str] = {}
    for names in groups.values():
        if len(names) > 1:
            matching = sorted(name for name in names if any(pattern.search(name) for pattern in declared))
            away = matching[: len(names) - 1]
            tied |= dict.fromkeys(away, next(name for name in names if name not in away))
    return tied


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


if __name__ == "__main__":
    main()
