"""What a checkpoint says of the run that wrote it: the training args, wherever they are kept.

A state that Megatron saved has them: `common.pt` (megatron-core up to 0.18), the item `common_state` (from
0.19), the items `args` and `iteration` (plain DCP). Where a framework saves none, it keeps a config beside:
see `model_config`. Pickles are read as data; nothing that they name is imported.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pp_export.checkpoint import model_config
from pp_export.checkpoint.catalog import Interleave
from pp_export.core.errors import UnsafePickleError
from pp_export.megatron.training_grid import DECISIVE
from pp_export.torch_file import allow_list, archive, inert, unpickler

COMMON, COMMON_STATE = "common.pt", "common_state/"
_ROUTED = re.compile(r"\.mlp\.experts\..*linear_fc1\.(weight|bias)$")
_SHARED = re.compile(r"\.mlp\.shared_experts\.linear_fc1\.(weight|bias)$")
_LAYOUT = re.compile(r"(tensor|(virtual_)?pipeline|expert|expert_tensor|context)(_model)?_parallel_size")
_SIZES = ("num_layers", "hidden_size", "num_attention_heads")
_MAX_NAMES, _MAX_OBJECTS = 8, 1_000_000


@dataclass(frozen=True)
class Found:
    """The args in Megatron-LM's words (None where there are none), what else was beside them, and sentences
    for the user.
    """

    args: Mapping[str, Any] | None = None
    iteration: int | None = None
    writer: tuple[str, ...] = ()
    is_disentangled: bool = False
    notes: tuple[str, ...] = ()

    @property
    def layout(self) -> dict[str, int]:
        """The parallel sizes of the run."""
        return layout_of(self.args or {})


def layout_of(args: Mapping[str, Any]) -> dict[str, int]:
    """The parallel sizes among training args."""
    return {n: v for n, v in sorted(args.items()) if _LAYOUT.fullmatch(n) and isinstance(v, int)}


def interleave_of(args: Mapping[str, Any] | None) -> Callable[[str], Interleave | None]:
    """How gate and up take turns in the tensor of a name, as the training args say."""
    known = args or {}
    tensor = known.get("tensor_model_parallel_size") or 1
    kinds = (
        (_ROUTED, "moe_mlp_glu_interleave_size", known.get("expert_tensor_parallel_size") or tensor),
        (_SHARED, "moe_shared_expert_glu_interleave_size", tensor),
    )

    def find(name: str) -> Interleave | None:
        fitting = ((known.get(key), parts) for kind, key, parts in kinds if kind.search(name))
        return next((Interleave(block, parts) for block, parts in fitting if block), None)

    return find


def read(folder: Path, items: Mapping[str, tuple[str, int, int]]) -> Found:
    """The args of the run that wrote `folder`; `items` are (file, offset, length) of what DCP stored as
    bytes.

    Megatron-Bridge's config goes before args, which a run that began from a checkpoint of Megatron-LM may
    carry along; other configs stand in for them only.
    """
    config = model_config.find(folder)
    try:
        state = _from_state(_common(folder, items))
    except UnsafePickleError as error:
        if config is None or not config.goes_first:
            raise
        state = Found(notes=(f"{error.what}; it was left alone, since {config.path.name} says all",))
    if config is None or (state.args is not None and not config.goes_first):
        return state
    args = model_config.read(config)
    differing = [
        f"{name} ({args[name]!r}, not {state.args[name]!r})"
        for name in DECISIVE
        if state.args and name in state.args and args.get(name) is not None
        if _text(args[name]) != _text(state.args[name])
    ]
    notes = list(state.notes)
    if differing:
        said = ", ".join(differing)
        notes.append(f"{config.path.name} counts where the training args say otherwise: {said}")
    if not any(args.get(name) for name in _SIZES):
        notes.append(
            f"{config.path.name} has no model's sizes where they are known to stand: nearly nothing of the"
            " function can be compared"
        )
    return replace(
        state,
        args=args,
        writer=(config.writer,),
        is_disentangled=config.is_disentangled,
        notes=tuple(notes),
    )


def split(value: Any) -> tuple[list[Any], list[Any]]:
    """The training args in what a pickle of a state holds, and all the rest; see `unpickler.load`."""
    state = _state(value)
    if not isinstance(state, dict) or "args" not in state:
        return [], [value]
    rest = {key: part for key, part in state.items() if key != "args"}
    return [state["args"]], [rest, *getattr(state, "__dict__", {}).values()]


def args_of(state: Any) -> dict[str, Any] | None:
    """The `args` namespace of a checkpoint's state as JSON values; None where it has none, or none in it."""
    values = _values(state.get("args") if isinstance(state, dict) else None)
    return unpickler.plain({str(key): value for key, value in values.items()}) or None


def notes_on(state: Any) -> Iterator[str]:
    """Which objects of frameworks are among the args of a checkpoint's state."""
    names: list[str] = []
    modules: set[str] = set()
    left = itertools.count()
    for name, value in _values(state.get("args") if isinstance(state, dict) else None).items():
        of_value = {
            ".".join(item.module.split(".")[:2])
            for item in itertools.takewhile(lambda _: next(left) < _MAX_OBJECTS, inert.everything_in(value))
            if isinstance(item, inert.InertObject) or inert.is_kind(item)
            if allow_list.is_of_framework(item.module)
        }
        names += [str(name)] if of_value else []
        modules |= of_value
    if names:
        yield (
            f"the training args hold objects of {_listed(sorted(modules))} ({_listed(sorted(names))}),"
            " kept as text and never used"
        )


def _values(args: Any) -> dict[Any, Any]:
    """The names and values of a namespace, or of an object that stands for one."""
    if isinstance(args, inert.InertObject):
        return (args.attributes() or {}) | dict(args.__dict__.get("pairs", ()))
    return args if isinstance(args, dict) else {}


def _state(value: Any) -> Any:
    """A state, which megatron-core 0.19 wraps into a list."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _from_state(state: Any) -> Found:
    iteration = state.get("iteration") if isinstance(state, dict) else None
    return Found(args_of(state), iteration if type(iteration) is int else None, notes=tuple(notes_on(state)))


def _common(folder: Path, items: Mapping[str, tuple[str, int, int]]) -> Any:
    """The state that all ranks share, from wherever this release keeps it."""
    if (folder / COMMON).is_file():
        return archive.read(folder / COMMON, split).value
    common = next((key for key in sorted(items) if key.startswith(COMMON_STATE)), None)
    if common is not None:
        return _state(_read_item(folder, items[common], split))
    splits: dict[str, unpickler.Split | None] = {"args": lambda value: ([value], []), "iteration": None}
    return {key: _read_item(folder, items[key], of) for key, of in splits.items() if key in items}


def _read_item(folder: Path, item: tuple[str, int, int], of: unpickler.Split | None) -> Any:
    file, offset, length = item
    return archive.read_part(folder / file, offset, length, of)


def _text(value: Any) -> str:
    """How a value is compared: configs write types with the name of their module."""
    return str(value).removeprefix("torch.")


def _listed(names: list[str]) -> str:
    more = [f"and {len(names) - _MAX_NAMES} more"] if len(names) > _MAX_NAMES else []
    return ", ".join([*names[:_MAX_NAMES], *more])
