"""Where in a model two sides differ: the largest errors of each layer, by kind of tensor."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from pp_export.verification.side_by_side import ValueDifference

_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks)\.([0-9]{1,6})\.")
_KINDS = (
    ("vision", re.compile(r"visual|vision|image|multi_modal")),
    ("norms", re.compile(r"norm\w*(\.(weight|bias))?$|(^|\.)ln_")),
    ("embedding", re.compile(r"embed|(^|\.)wte\.")),
    ("head", re.compile(r"(^|\.)(lm_head|embed_out|output)\.")),
    ("router", re.compile(r"router|(^|\.)gate\.")),
    ("experts", re.compile(r"expert")),
    ("attention", re.compile(r"attn|attention")),
    ("mixer", re.compile(r"mixer|mamba|ssm|conv|rnn")),
    ("mlp", re.compile(r"mlp|feed_forward|ffn|(^|\.)(fc|w)[0-9]")),
)
"""In the order in which they are tried."""
OTHERS = "others"
KINDS = (*(kind for kind, _ in _KINDS), OTHERS)


@dataclass(frozen=True)
class LayerErrors:
    """The tensors of one kind in one layer, or in none: how many there are, how many of them differ, and the
    largest errors, as in `ValueDifference`.
    """

    kind: str
    layer: int | None
    num_tensors: int
    num_different: int
    max_abs_error: float
    max_rel_error: float
    max_ulp_error: float | None


def by_layer(compared: Iterable[str], values: Iterable[ValueDifference]) -> tuple[LayerErrors, ...]:
    """The errors of all tensors that were `compared`, kind after kind, each in the order of the layers; those
    of no layer come first.
    """
    found = {value.name: value for value in values}
    groups: defaultdict[tuple[str, int | None], list[str]] = defaultdict(list)
    for name in compared:
        groups[kind_of(name), _layer_of(name)].append(name)
    order = sorted(groups, key=lambda key: (KINDS.index(key[0]), -1 if key[1] is None else key[1]))
    return tuple(_errors(kind, layer, groups[kind, layer], found) for kind, layer in order)


def kind_of(name: str) -> str:
    """What a tensor is, by its Hugging Face name; `OTHERS` where that doesn't tell."""
    return next((kind for kind, pattern in _KINDS if pattern.search(name)), OTHERS)


def _layer_of(name: str) -> int | None:
    match = _LAYER.search(name)
    return int(match[1]) if match else None


def _errors(kind: str, layer: int | None, names: list[str], found: dict[str, ValueDifference]) -> LayerErrors:
    differ = [found[name] for name in names if name in found]
    steps = [value.max_ulp_error for value in differ if value.max_ulp_error is not None]
    return LayerErrors(
        kind,
        layer,
        len(names),
        len(differ),
        max((value.max_abs_error for value in differ), default=0.0),
        max((value.max_rel_error for value in differ), default=0.0),
        max(steps, default=None if differ else 0.0),
    )
