"""Stored keys to canonical names.

megatron-core stacks what is alike: a homogeneous decoder is stored under one key per parameter, with the
layer as leading axis (`decoder.layers.<rest>`), and grouped experts with the expert as the next
(`mlp.experts.experts.<rest>`). See `sharded_state_dict` in megatron/core/transformer/transformer_block.py and
transformer/moe/experts.py. Other spellings are settled first, by `framework_prefix` and `spelled`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from pp_export.architecture import adapter_names
from pp_export.core.errors import CheckpointError
from pp_export.core.tensors import REFERENCE, Box, Shape
from pp_export.core.words import counted

_NUMBER = re.compile(r"(\d+)")
_STACKED_LAYER = re.compile(r"^((?:[\w]+\.)*layers\.)(?!\d)")
_STACKED_EXPERT = re.compile(r"\.experts\.experts\.(?!\d)")
_SINGLE_EXPERT = re.compile(r"\.experts\.(?:experts|local_experts)\.(?=\d)")
_GROUPED_EXPERT = re.compile(r"\.experts\.(linear_fc[12])\.(weight|bias)(\d+)(?=$|_[wv]$)")
_HALF_OF_GLU = re.compile(r"(\.linear_fc1\.(?:weight|bias))_([wv])$")
_SECTION = re.compile(
    r"(\.(?:in_proj(?:\.adapter\.linear_out)?|conv1d)[._](?:weight|bias))"
    r"\.(query|key|value|z|x|B|C|dt|beta|alpha)$"
)
_IN_SECTIONS = re.compile(
    r"\.(?:mixer|self_attention)\.(?:in_proj(?:\.adapter\.linear_out)?\.weight|conv1d[._](?:weight|bias))$"
)
_PARTS = (
    ("w", "v"),
    ("query", "key", "value", "z", "beta", "alpha"),
    ("query", "key", "value"),
    ("z", "x", "B", "C", "dt"),
    ("x", "B", "C"),
)
_PREFIXES = ("model.module.module.", "model.module.", "model.", "module.module.", "module.")
_ROOTS = ("embedding.", "decoder.", "output_layer.", "mtp.")


class CanonicalKey(NamedTuple):
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
    """How the stored `key` maps to canonical names. Which numbers it has changes nothing, so it is found out
    once for all keys that are alike but for them.
    """
    if key.startswith(REFERENCE):
        return CanonicalKey(key, 0)
    parts = _NUMBER.split(key)
    parts[::2], num_stacked = _canonical_texts("0".join(parts[::2]))
    return CanonicalKey("".join(parts), num_stacked)


@lru_cache(maxsize=1 << 12)
def _canonical_texts(key: str) -> tuple[list[str], int]:
    """The texts between the numbers of the template that `key` maps to, in which all numbers are 0, and how
    many axes are stacked.
    """
    template, num_layers = _STACKED_LAYER.subn(r"\1{}.", key)
    template = _SINGLE_EXPERT.sub(".experts.", template)
    template, num_experts = _STACKED_EXPERT.subn(".experts.{}.", template)
    return template.split("0"), num_layers + num_experts


def framework_prefix(keys: Iterable[str]) -> str:
    """What a framework put before Megatron's names, `module.` for example; the longest that fits some key."""
    keys = list(keys)
    for prefix in _PREFIXES:
        beginnings = tuple(prefix + root for root in _ROOTS)
        if any(key.startswith(beginnings) for key in keys):
            return prefix
    return ""


def spelled(key: str) -> tuple[str, str | None]:
    """A key as Megatron spells it, and which part of a tensor it is, if only one.

    megatron-core writes the halves of a fused gate and up projection apart as `weight_w` and `weight_v` where
    it must not cut a tensor twice (`singleton_local_shards`, fsdp_dtensor); a grouped expert is then
    `linear_fc1.weight7_w` (megatron/core/transformer/fsdp_dtensor_checkpoint.py). Of a projection or
    convolution of Mamba or of a gated delta net it always writes the sections apart, `in_proj.weight.z` for
    example (`_split_tensor_factory` in megatron/core/ssm).
    """
    key = _GROUPED_EXPERT.sub(r".experts.\3.\1.\2", adapter_names.spelled(key))
    for pattern in (_HALF_OF_GLU, _SECTION):
        if match := pattern.search(key):
            return pattern.sub(r"\1", key), match[2]
    return key, None


def in_order(parts: Iterable[str | None]) -> tuple[str, ...] | None:
    """Parts of a tensor as their rows follow one another in it; None unless they are all that one has."""
    found = frozenset(parts)
    return next((order for order in _PARTS if found == frozenset(order)), None)


def check_sections(whole: Iterable[str]) -> None:
    """Raise CheckpointError where a tensor of those stored as a `whole` is one that megatron-core stores in
    sections: what order its rows have, another one at each tensor parallel size, then isn't known.
    """
    found = [name for name in whole if _IN_SECTIONS.search(name)]
    if found:
        raise CheckpointError(
            "a projection or convolution of a Mamba or a gated delta net is stored whole, and the order"
            " of its rows is not known",
            where={"tensor": found[0]},
            expected=f"its sections under keys of their own, {found[0]}.NAME, as megatron-core stores them",
            got=f"{counted(len(found), 'such tensor')}",
            advice="frameworks with modules of their own (ms-swift) export these models themselves; with"
            " Megatron-LM save with --ckpt-format torch_dist",
        )
