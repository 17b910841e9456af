"""Names of adapters: LoRA's two matrices beside the weight that they change.

Canonical names are Megatron-Bridge's: `X.adapter.linear_in.weight` ([rank, inputs]) and
`X.adapter.linear_out.weight` ([outputs, rank]) of the module X (megatron/bridge/peft/lora.py); with
`adapter_q.` and the like behind `adapter.` they change only these rows (canonical_lora.py). ms-swift has
those of PEFT, `X.lora_A.default.weight` and `X.lora_B.default.weight`; what wraps the module itself may stand
in its name (`to_wrap`, `base_layer`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from pp_export.core.tensors import REFERENCE

EXPERTS = ".mlp.experts."
"""Before an expert's number."""

_HALF = re.compile(
    r"(?P<module>.+)\.adapter\.(?:adapter_(?P<part>q|k|v|gate|up)\.)?linear_(?P<half>in|out)\.weight"
)
_OF_PEFT = re.compile(r"\.lora_([AB])(?:\.default)?\.weight$")
_SAVED_WHOLE = re.compile(r"\.modules_to_save\.default(?=\.)")
_WRAPPER = re.compile(r"\.(?:to_wrap|base_layer)(?=\.)")
_ANY = re.compile(r"\.adapters?\.|(?:^|\.)lora_|\.modules_to_save\.|\.original_module\.")
_REFUSED = (
    (re.compile(r"magnitude"), "DoRA: rows with magnitudes of their own aren't merged yet"),
    (
        re.compile(r"\.adapters\."),
        "several adapters for one module (MultiLoRA)",
    ),
    (re.compile(r"lora_embedding_"), "an adapter of an embedding"),
    (re.compile(r"\.bias$"), "an adapter with a bias (lora_bias)"),
    (re.compile(r"\.(modules_to_save|original_module)\."), "a module that is stored twice, before and after"),
    (re.compile(r"\.lora_[AB]\."), "an adapter that isn't PEFT's default one"),
)


class Half(NamedTuple):
    """One of the two matrices of the adapter of `module`; `part` are the rows that it changes, "" for all."""

    module: str
    part: str
    is_out: bool


def spelled(key: str) -> str:
    """A stored key with the canonical name of an adapter in it, if it is of one."""
    key = _SAVED_WHOLE.sub("", _WRAPPER.sub("", key))
    if match := _OF_PEFT.search(key):
        return key[: match.start()] + f".adapter.linear_{'in' if match[1] == 'A' else 'out'}.weight"
    return key


def is_of_peft(key: str) -> bool:
    """Whether a stored key names a matrix as PEFT does, and so ms-swift."""
    return _OF_PEFT.search(key) is not None


def half_of(name: str) -> Half | None:
    """What a canonical name says of an adapter; None for all others."""
    match = _HALF.fullmatch(name)
    return None if match is None else Half(match["module"], match["part"] or "", match["half"] == "out")


def is_of_adapter(name: str) -> bool:
    """Whether a canonical name belongs to an adapter, of whatever kind."""
    return _ANY.search(name) is not None and not name.startswith(REFERENCE)


def refusal(name: str) -> str:
    """Why a tensor of an adapter that is none of two matrices is not used."""
    return next((why for pattern, why in _REFUSED if pattern.search(name)), "an adapter of an unknown kind")


def adapted_weights(names: Iterable[str]) -> list[str]:
    """The weights that the adapters among the `names` change; of all experts, one."""
    halves = (half_of(name) for name in names if is_of_adapter(name))
    modules = (of_expert(half.module, 0) for half in halves if half is not None)
    return list(dict.fromkeys(f"{module}.weight" for module in modules))


def is_of_all_experts(module: str) -> bool:
    """Whether a module's adapter is that of all experts."""
    return f"{EXPERTS}linear_" in module


def of_expert(module: str, number: int) -> str:
    """The module of one expert, where a module stands for that of all; else the module itself."""
    return module.replace(EXPERTS, f"{EXPERTS}{number}.") if is_of_all_experts(module) else module
