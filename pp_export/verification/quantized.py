"""Quantized weights in the forms that config.json can say here: what is stored of each, and whether it is.

Known are float8 with a scale for each block (`fp8`), and float8 or packed int8 with one for each row
(`compressed-tensors`). Of other forms nothing is said.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pp_export.core.config_keys import QUANTIZATION, QUANTIZATION_CONFIG
from pp_export.core.file_names import CONFIG
from pp_export.core.strict_json import is_count
from pp_export.verification.findings import Fault, brief
from pp_export.verification.header import TensorEntry

Entries = Mapping[str, tuple[str, TensorEntry]]
"""Tensor -> its file, and what the header says of it."""

_WEIGHT, _PACKED, _SHAPE = ".weight", ".weight_packed", ".weight_shape"
_FLOATS = ("F32", "BF16", "F16")
_POWERS = ("F8_E8M0", "U8")
_PER_WORD = 4
_COMPUTED = "BF16"
"""Stands for whatever type the model computes with."""


@dataclass(frozen=True)
class Form:
    """How weights are stored: blocks of `block` values, or rows, have a scale each. `kept` are modules whose
    weights are not quantized.
    """

    block: tuple[int, int] | None
    is_packed: bool
    kept: frozenset[str]

    @property
    def weight(self) -> str:
        return _PACKED if self.is_packed else _WEIGHT

    @property
    def scale(self) -> str:
        return ".weight_scale" if self.block is None else ".weight_scale_inv"

    def scales(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the scales of a weight that is stored in `shape`."""
        if self.block is None:
            return (shape[0], 1)
        return tuple(-(-size // step) for size, step in zip(shape, self.block))


def form_of(config: Mapping[str, Any]) -> Form | None:
    """The form that a config.json says; None where it says none, or one that isn't known."""
    said = config.get(QUANTIZATION_CONFIG)
    others = (config.get(key) for key in QUANTIZATION - {QUANTIZATION_CONFIG})
    if not isinstance(said, Mapping) or any(others) or said.get("kv_cache_scheme"):
        return None
    read = _BY_METHOD.get(str(said.get("quant_method")))
    return None if read is None else read(said)


def _of_blocks(said: Mapping[str, Any]) -> Form | None:
    block = said.get("weight_block_size")
    if said.get("activation_scheme") != "dynamic" or not isinstance(block, list) or len(block) != 2:
        return None
    kept = said.get("modules_to_not_convert") or said.get("ignored_layers")
    is_size = all(is_count(size) and size > 0 for size in block)
    return Form((block[0], block[1]), is_packed=False, kept=_names(kept)) if is_size else None


def _of_rows(said: Mapping[str, Any]) -> Form | None:
    groups = said.get("config_groups")
    if not isinstance(groups, Mapping) or len(groups) != 1:
        return None
    (group,) = groups.values()
    parts = [
        group.get(key) if isinstance(group, Mapping) else None for key in ("weights", "input_activations")
    ]
    weights, activations = parts
    wanted = {"num_bits": 8, "strategy": "channel", "symmetric": True}
    if not isinstance(weights, Mapping) or any(weights.get(key) != value for key, value in wanted.items()):
        return None
    if isinstance(activations, Mapping) and activations.get("dynamic") is not True:
        return None
    is_packed = _FORMATS.get((str(said.get("format")), str(weights.get("type"))))
    return None if is_packed is None else Form(None, is_packed, _names(said.get("ignore")))


_BY_METHOD: Mapping[str, Callable[[Mapping[str, Any]], Form | None]] = {
    "fp8": _of_blocks,
    "compressed-tensors": _of_rows,
}
_FORMATS = {("float-quantized", "float"): False, ("pack-quantized", "int"): True}


def faults_of(form: Form, entries: Entries) -> list[Fault]:
    """What is not as the form says it: scales that are missing, of another shape or type, or of nothing; and
    weights that config.json says are not quantized.
    """
    return [
        Fault("quantized-form", file, name, message)
        for name, (file, entry) in entries.items()
        for message in _messages(form, entry, entries)
    ]


def unpacked(form: Form, entries: Entries) -> Entries:
    """The tensors as the model has them: each quantized weight under its own name and shape, no scales."""
    found: dict[str, tuple[str, TensorEntry]] = {}
    for name, (file, entry) in entries.items():
        if _is_quantized(form, entry):
            module, shape = name.removesuffix(form.weight), entry.shape
            if form.is_packed and len(shape) == 2:
                shape = (shape[0], shape[1] * _PER_WORD)
            own = replace(entry, name=module + _WEIGHT, dtype=_COMPUTED, shape=shape)
            found[own.name] = file, own
        elif _module_of(form, name) is None:
            found[name] = file, entry
    return found


def _messages(form: Form, entry: TensorEntry, entries: Entries) -> Iterator[str]:
    module = _module_of(form, entry.name)
    if module is not None:
        own = entries.get(module + form.weight)
        if own is None or not _is_quantized(form, own[1]):
            yield f"there is no quantized weight {brief(module + form.weight)} that it would belong to"
        return
    if not _is_quantized(form, entry):
        return
    module = entry.name.removesuffix(form.weight)
    if len(entry.shape) != 2:
        yield f"it is quantized and has shape {brief(list(entry.shape))}, no rows and columns"
        return
    if any(module == kept or module.startswith(f"{kept}.") for kept in form.kept):
        yield f"it is quantized, and {CONFIG} says that it isn't"
    shapes = {form.scale: (form.scales(entry.shape), (*_FLOATS, *(_POWERS if form.block else ())))}
    if form.is_packed:
        shapes[_SHAPE] = (2,), ("I64",)
    for suffix, (shape, types) in shapes.items():
        found = entries.get(module + suffix)
        if found is None:
            yield f"it is quantized, and there is no {brief(module + suffix)}"
        elif found[1].shape != shape or found[1].dtype not in types:
            got = f"{found[1].dtype} {brief(list(found[1].shape))}"
            yield f"its {suffix[1:]} is {got}, not {types[0]} {list(shape)}"


def _is_quantized(form: Form, entry: TensorEntry) -> bool:
    return entry.name.endswith(form.weight) and entry.dtype == ("I32" if form.is_packed else "F8_E4M3")


def _module_of(form: Form, name: str) -> str | None:
    """The module of which a tensor is what belongs to a quantized weight; None where it is none of that."""
    ends = (form.scale, *((_SHAPE,) if form.is_packed else ()))
    return next((name.removesuffix(end) for end in ends if name.endswith(end)), None)


def _names(value: object) -> frozenset[str]:
    """Plain names of a list: patterns of strangers are not matched."""
    listed: Collection[object] = value if isinstance(value, list) else ()
    return frozenset(each for each in listed if isinstance(each, str) and each and not each.startswith("re:"))
