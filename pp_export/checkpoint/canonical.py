"""Stored keys to canonical names.

megatron-core stacks what is alike: a homogeneous decoder is stored under one key per parameter, with the
layer as leading axis (`decoder.layers.<rest>`), and grouped experts with the expert as the next
(`mlp.experts.experts.<rest>`). See `sharded_state_dict` in megatron/core/transformer/transformer_block.py and
transformer/moe/experts.py.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

from pp_export.tensors import Box, Shape

_STACKED_LAYER = re.compile(r"^((?:[\w]+\.)*layers\.)(?!\d)")
_STACKED_EXPERT = re.compile(r"\.experts\.experts\.(?!\d)")
_SINGLE_EXPERT = re.compile(r"\.experts\.experts\.(?=\d)")


@dataclass(frozen=True)
class CanonicalKey:
    """A stored key as a name template with one `{}` per leading stacking axis."""

    template: str
    num_stacked: int

    def expand(self, box: Box) -> list[tuple[str, Box]]:
        """The canonical tensors that a stored box touches, in the order of its bytes, and the box of each."""
        stacked = [
            range(box.offset[axis], box.offset[axis] + box.shape[axis]) for axis in range(self.num_stacked)
        ]
        inner = Box(box.offset[self.num_stacked :], box.shape[self.num_stacked :])
        return [(self.template.format(*numbers), inner) for numbers in itertools.product(*stacked)]

    def names(self, shape: Shape) -> list[str]:
        """All canonical names that a stored tensor of `shape` holds."""
        return [
            self.template.format(*numbers)
            for numbers in itertools.product(*map(range, shape[: self.num_stacked]))
        ]


def canonical(key: str) -> CanonicalKey:
    """How the stored `key` maps to canonical names."""
    template, num_layers = _STACKED_LAYER.subn(r"\1{}.", key)
    template = _SINGLE_EXPERT.sub(".experts.", template)
    template, num_experts = _STACKED_EXPERT.subn(".experts.{}.", template)
    return CanonicalKey(template, num_layers + num_experts)
