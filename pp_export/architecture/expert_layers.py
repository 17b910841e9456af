"""How config.json says which layers have experts, 1 or 0 per layer, and what experts and router are like.

Kinds of classes (transformers' modeling files): each N-th layer but for some; all behind the first dense
ones; those that a list names; all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pp_export.architecture import windows
from pp_export.core.settings import UNKNOWN, is_nth
from pp_export.core.strict_json import is_count

Config = Mapping[str, Any]

STEP, DENSE, FIRST_DENSE = "decoder_sparse_step", "mlp_only_layers", "first_k_dense_replace"
TYPES = "mlp_layer_types"
NUMBERS, INTERVAL = "moe_layers", "interleave_moe_layer_step"
RANGE = ("moe_layer_interval", "moe_layer_start_index", "moe_layer_end_index")
METHOD, _LIMITED, _GREEDY = "topk_method", "group_limited_greedy", "greedy"
_DENSE, _SPARSE = "dense", "sparse"
_EITHER = ((TYPES, FIRST_DENSE), (FIRST_DENSE, TYPES))


def of_sparse(config: Config) -> Any:
    """Qwen's: each `decoder_sparse_step`-th layer, counted from 1, but for those in `mlp_only_layers`."""
    layers, step = windows.num_layers(config), config.get(STEP)
    step, dense = 1 if step is None else step, set(config.get(DENSE) or ())
    if layers is None or not isinstance(step, int) or step < 1:
        return UNKNOWN
    return [int(layer not in dense and is_nth(layer, step)) for layer in range(layers)]


def write_sparse(_: Config, value: Any) -> dict[str, Any]:
    """The keys that name the dense layers."""
    return {STEP: 1, DENSE: [i for i, sparse in enumerate(value) if not sparse]}


def after_dense(config: Config) -> Any:
    """DeepSeek's: all but the first `first_k_dense_replace`."""
    layers, first = windows.num_layers(config), config.get(FIRST_DENSE)
    if layers is None or not isinstance(first, int):
        return UNKNOWN
    return [int(layer >= first) for layer in range(layers)]


def write_after_dense(_: Config, value: Any) -> dict[str, Any] | None:
    """The key that counts the dense layers, if they are the first ones."""
    first = value.index(1) if 1 in value else len(value)
    return {FIRST_DENSE: first} if all(value[first:]) else None


def of_types(config: Config) -> Any:
    """Those that `mlp_layer_types` calls sparse, else all but the first `first_k_dense_replace`."""
    kinds, layers = config.get(TYPES), windows.num_layers(config)
    if not isinstance(kinds, list):
        return after_dense(config)
    if not {_DENSE, _SPARSE}.issuperset(kinds):
        raise TypeError(f"{TYPES} are {_DENSE} or {_SPARSE}")
    return [int(kind == _SPARSE) for kind in kinds[:layers]]


def statements_of_types(config: Config) -> list[tuple[str, Any]]:
    """What each of the two keys says, where it is there."""
    alone = {key: {k: v for k, v in config.items() if k != other} for key, other in _EITHER}
    return [(key, of_types(alone[key])) for key, _ in _EITHER if config.get(key) is not None]


def write_types(config: Config, value: Any) -> dict[str, Any]:
    """The list, and the count of dense layers for loaders that read that one, if they are the first ones."""
    kinds = [_SPARSE if sparse else _DENSE for sparse in value]
    return {TYPES: kinds, **(write_after_dense(config, value) or {})}


def of_interval(config: Config) -> Any:
    """Llama 4's: those that `moe_layers` numbers, else each N-th."""
    numbers, step, layers = config.get(NUMBERS), config.get(INTERVAL), windows.num_layers(config)
    if layers is None:
        return UNKNOWN
    if numbers is not None:
        return [int(i in numbers) for i in range(layers)]
    return [int(is_nth(i, step)) for i in range(layers)] if is_count(step) and step else UNKNOWN


def statements_of_interval(config: Config) -> list[tuple[str, Any]]:
    """What each of the two keys says, where it is there."""
    alone = ({**config, NUMBERS: None}, {**config, INTERVAL: None})
    return [
        (key, of_interval(part)) for key, part in zip((INTERVAL, NUMBERS), alone) if part.get(key) is not None
    ]


def write_interval(_: Config, value: Any) -> dict[str, Any]:
    """The numbers, and the interval for loaders that read that one, if there is one."""
    numbers = [i for i, sparse in enumerate(value) if sparse]
    step = numbers[0] + 1 if numbers else 0
    is_regular = step and numbers == list(range(step - 1, len(value), step))
    return {NUMBERS: numbers, **({INTERVAL: step} if is_regular else {})}


def of_range(config: Config) -> Any:
    """Ernie's: each N-th layer of those from one number to another, which are in."""
    layers = windows.num_layers(config)
    step, first, last = (config.get(key) for key in RANGE)
    if layers is None or not (is_count(step) and step and isinstance(first, int) and isinstance(last, int)):
        return UNKNOWN
    end = layers - 1 if last == -1 else last
    return [int(is_nth(i, step) and first <= i <= end) for i in range(layers)]


def write_range(_: Config, value: Any) -> dict[str, Any] | None:
    """The three keys, if they can say it."""
    numbers = [i for i, sparse in enumerate(value) if sparse]
    if not numbers:
        return None
    for step in range(1, len(value) + 1):
        said = dict(zip(RANGE, (step, numbers[0], numbers[-1])))
        if of_range({"num_hidden_layers": len(value), **said}) == list(value):
            return said
    return None


def groups(config: Config) -> Any:
    """[groups, chosen groups] of experts; None where all experts compete."""
    count, chosen = config.get("n_group"), config.get("topk_group")
    if count and chosen == 0:
        raise ValueError("no group is chosen, so that no expert is")
    return [count, chosen] if count and chosen and chosen < count else None


def write_groups(_: Config, value: Any) -> dict[str, Any] | None:
    """The keys that say them; one group is none."""
    count, chosen = value or (1, 1)
    return {"n_group": count, "topk_group": chosen} if count else None


def groups_by_method(config: Config) -> Any:
    """The same where a method says that they count, as DeepSeek-V2's routers need to be told."""
    return groups(config) if config.get(METHOD) == _LIMITED else None


def write_groups_by_method(config: Config, value: Any) -> dict[str, Any] | None:
    """The keys that say them, and the method."""
    keys = write_groups(config, value)
    return None if keys is None else {**keys, METHOD: _LIMITED if value else _GREEDY}


def shared_size(config: Config, key: str = "n_shared_experts") -> Any:
    """The size of all shared experts together, each of which is as large as a routed one."""
    count, size = config.get(key), config.get("moe_intermediate_size")
    return count * size if count and is_count(count) and is_count(size) else None


def write_shared(config: Config, value: Any, key: str = "n_shared_experts") -> dict[str, Any] | None:
    """The key that counts them, if their size is that of whole experts."""
    count, rest = divmod(value or 0, config["moe_intermediate_size"])
    return None if rest else {key: count}


def every_layer(config: Config) -> Any:
    """All layers, in classes that have experts in each."""
    layers = windows.num_layers(config)
    return UNKNOWN if layers is None else [1] * layers
