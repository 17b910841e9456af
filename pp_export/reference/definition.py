"""A model's own definition: the tensors that `save_pretrained` would write, and the values of the config that
are in effect, the class's defaults included.

The definition is the class in the transformers library, never code of the reference folder. Its import takes
seconds and 350 MB, so rank 0 asks a child process (`python -m pp_export.reference.definition`), which works
while the rank does other things and takes its memory with it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pp_export.core.config_keys import LEADS_OUTSIDE, QUANTIZATION, without
from pp_export.core.errors import ReferenceFolderError
from pp_export.core.tensors import Shape
from pp_export.process import child


@dataclass(frozen=True)
class Definition:
    """Name and shape of every tensor as it stands on disk, and the config object's values, under every name
    that the class knows them by.

    Tied weights and non-persistent buffers are left out of `tensors`; experts that the class packs in memory
    have their names on disk.
    """

    tensors: Mapping[str, Shape]
    config: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {"tensors": dict(self.tensors), "config": dict(self.config)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Definition:
        return cls({name: tuple(shape) for name, shape in value["tensors"].items()}, value["config"])


def define(config: Mapping[str, Any]) -> Definition | None:
    """The definition of the model that this config.json describes.

    None where transformers or accelerate isn't installed, or transformers has no such class. Raises
    ReferenceFolderError where the class refuses the config. Imports transformers and makes the model without
    memory for its weights; the network stays unused if HF_HUB_OFFLINE was set before that import.
    """
    name = _class_name(config)
    libraries = ("transformers", "accelerate")
    if not name or any(importlib.util.find_spec(library) is None for library in libraries):
        return None
    try:
        model_class = _library_class(name)
        if model_class is None:
            return None
        model = _empty_model(model_class, config)
        return Definition(_tensors_on_disk(model), _values_in_effect(model.config))
    except Exception as error:
        raise _refused(name, _one_line(error)) from error


class PendingDefinition:
    """The answer of `define`, on its way from a child process."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._name = _class_name(config)
        # Files and no pipes: the child never waits for us, and ends as soon as it knows the answer.
        self._answer, self._complaint = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        with tempfile.TemporaryFile() as question:
            question.write(json.dumps(config).encode())
            question.seek(0)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pp_export.reference.definition"],
                stdin=question,
                stdout=self._answer,
                stderr=self._complaint,
                env=child.environment(),
                # `-m` may put the working directory first on the path, and that may be the reference folder.
                cwd=child.PACKAGE_PARENT,
            )

    @classmethod
    def start(cls, config: Mapping[str, Any]) -> PendingDefinition:
        """Start the child for this config.json and return at once."""
        return cls(config)

    def result(self, timeout_s: float = 600) -> Definition | None:
        """What `define` returned or raised in the child; waits for it."""
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise _refused(self._name, f"no answer in {timeout_s:g} seconds") from None
        self._answer.seek(0)
        self._complaint.seek(0)
        if code != 0:
            lines = self._complaint.read().decode(errors="replace").split("\n")
            last = next((line.strip() for line in reversed(lines) if line.strip()), "nothing on stderr")
            raise _refused(self._name, last if code > 0 else f"ended by signal {-code}: {last}")
        answer = json.loads(self._answer.read())
        return None if answer is None else Definition.from_json(answer)

    def close(self) -> None:
        """End the child if it still runs; never raises."""
        self._process.kill()
        self._process.wait()
        self._answer.close()
        self._complaint.close()

    def __enter__(self) -> PendingDefinition:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def main() -> None:
    """Read a config.json on stdin, write the definition or null on stdout: the child's whole life.

    A quarter of it would go into collecting garbage and taking down libraries, neither of which is needed.
    """
    gc.disable()
    config = json.load(sys.stdin.buffer)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            found = define(config)
    except ReferenceFolderError as error:
        sys.exit(error.got)
    json.dump(None if found is None else found.to_json(), sys.stdout, default=str)
    sys.stdout.flush()
    os._exit(0)


def _class_name(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""


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
    model_config._attn_implementation = "eager"
    # With buffers, because otherwise each parameter is made on the CPU first and loses its ties on the way.
    with accelerate.init_empty_weights(include_buffers=True):
        return model_class(model_config)


def _values_in_effect(config: Any) -> dict[str, Any]:
    """The values of a config object, also under the names that the class takes for them."""
    values: dict[str, Any] = config.to_dict()
    aliases = getattr(config, "attribute_map", None) or {}
    return {**values, **{alias: values[name] for alias, name in aliases.items() if name in values}}


def _tensors_on_disk(model: Any) -> dict[str, Shape]:
    """The steps of `save_pretrained` between the model and its files."""
    left_out = _tied_away(model) | set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    state = {name: value for name, value in model.state_dict().items() if name not in left_out}
    # Releases before 5 have the same names in memory and on disk.
    if importlib.util.find_spec("transformers.core_model_loading") is not None:
        loading: Any = importlib.import_module("transformers.core_model_loading")
        state = loading.revert_weight_conversion(model, state)
    return {name: tuple(value.shape) for name, value in state.items() if hasattr(value, "shape")}


def _tied_away(model: Any) -> set[str]:
    """The names that the class declares as tied, of parameters with several; one name of each remains."""
    declared = [
        re.compile(f"{prefix}.{pattern}" if prefix else pattern)
        for prefix, module in model.named_modules()
        for pattern in getattr(module, "_tied_weights_keys", None) or ()
    ]
    groups: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups[id(parameter)].append(name)
    tied: set[str] = set()
    for names in groups.values():
        if len(names) > 1:
            matching = sorted(name for name in names if any(pattern.search(name) for pattern in declared))
            tied.update(matching[: len(names) - 1])
    return tied


def _refused(name: str, reason: str) -> ReferenceFolderError:
    return ReferenceFolderError(
        "transformers can't make the reference's model from its config.json",
        where={"file": "config.json", "class": name or "(none)"},
        got=reason,
        advice="check that config.json is complete, belongs to this model and isn't newer than transformers",
    )


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


if __name__ == "__main__":
    main()
