"""A first draft of a table: rows that names and shapes suggest, and holes where they don't.

Works on names and shapes only. What a table to extend makes already stays with it; for each Megatron tensor
that is left, the Hugging Face tensors that are left are tried with every transform that could make them, and
names decide between those that fit. Nothing is believed of it: an export holds each row against the model.
"""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pp_export.architecture.mtp import Depths
from pp_export.architecture.rules import Architecture
from pp_export.architecture.transforms import TRANSFORMS
from pp_export.core.errors import AccountingError
from pp_export.core.tensors import Shape

_HOLES = (
    (re.compile(r"\bmtp\.layers\.(\d+)(?=\.)"), "mtp"),
    (re.compile(r"\b(?:layers|h|blocks)\.(\d+)(?=\.)"), "layer"),
    (re.compile(r"\b(?:local_)?experts\.(\d+)(?=\.)"), "expert"),
)
# What Megatron calls a tensor, and what it is often called elsewhere.
_WORDS: Mapping[str, tuple[str, ...]] = {
    "word_embeddings": ("embed_tokens", "wte", "embed_in", "word_embeddings"),
    "output_layer": ("lm_head", "embed_out", "score"),
    "final_layernorm": ("model.norm", "ln_f", "final_layer_norm", "final_norm"),
    "final_norm": ("model.norm", "ln_f", "norm_f"),
    "linear_qkv.layer_norm": ("input_layernorm", "ln_1", "attention_norm"),
    "input_layernorm": ("input_layernorm", "ln_1", "attention_norm"),
    "linear_fc1.layer_norm": ("post_attention_layernorm", "ln_2", "pre_feedforward_layernorm", "ffn_norm"),
    "pre_mlp_layernorm": ("post_attention_layernorm", "ln_2", "pre_feedforward_layernorm", "ffn_norm"),
    "linear_qkv": ("qkv", "query_key_value", "c_attn"),
    "linear_proj": ("o_proj", "out_proj", "attention.dense", "attn.c_proj"),
    "linear_fc1": ("gate_up", "up_proj", "fc1", "c_fc", "dense_h_to_4h", "w1"),
    "linear_fc2": ("down_proj", "fc2", "mlp.c_proj", "dense_4h_to_h", "w2"),
    "q_layernorm": ("q_norm", "query_layernorm", "q_layernorm"),
    "k_layernorm": ("k_norm", "key_layernorm", "k_layernorm"),
    "router.weight": ("gate.weight", "router.weight", "gate.wg"),
    "expert_bias": ("correction_bias", "expert_bias"),
    "shared_experts": ("shared_expert", "shared_mlp"),
    "softmax_offset": ("sinks",),
}
_BOTH = ("gate_up", "input_linear", "w13", "gate_and_up")
"""What the gate and the up projection are called where they are one tensor."""
_ROLES = {
    "gate": ("gate_proj", "w1", "gate"),
    "up": ("up_proj", "w3", "up"),
    "q": ("q_proj", "query", "wq"),
    "k": ("k_proj", "key", "wk"),
    "v": ("v_proj", "value", "wv"),
}


class Kind(NamedTuple):
    """Tensors whose names differ in numbers only: the pattern, the numbers, and the shape of each."""

    pattern: str
    numbers: frozenset[tuple[int, ...]]
    shape: Shape


class Row(NamedTuple):
    """A proposal: pattern, HF names by role ("" for a single one), and the transforms that shapes allow. With
    more than one only a comparison of logits tells which.
    """

    megatron: str
    hf: Mapping[str, str]
    transforms: tuple[str, ...]


@dataclass(frozen=True)
class Draft:
    """`num_inherited` tensors are made by the table that is extended; `rows` are proposed; of the tensors of
    `open_megatron` it isn't known what they become, of `missing` what makes them.
    """

    num_inherited: int
    rows: tuple[Row, ...]
    open_megatron: tuple[Kind, ...]
    missing: tuple[Kind, ...]


def draft(
    base: Architecture, stored: Mapping[str, Shape], expected: Mapping[str, Shape], sizes: Mapping[str, int]
) -> Draft:
    """What a table that extends `base` needs for the canonical tensors `stored`, where the class has the HF
    tensors `expected`. `sizes` are those of the model that transforms ask for, as far as they are known.
    """
    depths = Depths.of(stored)
    left, wanted = dict(stored), dict(expected)
    for name in stored:
        if match := base.match(name):
            made = () if match[0].drop is not None else match[0].names(match[1], depths)
            if all(each in expected for each in made):
                del left[name]
                for each in made:
                    wanted.pop(each, None)
    num_inherited = len(stored) - len(left)
    sources, targets = kinds_of(left), kinds_of(wanted)
    proposals = [
        (_score(source, row), source, row)
        for source in sources
        for row in _proposals(source, targets)
        if _fits(source, row, sizes)
    ]
    rows: list[Row] = []
    taken: set[str] = set()
    for score, source, row in sorted(proposals, key=lambda found: (-found[0], found[1].pattern)):
        rivals = [s for s, other, _ in proposals if other == source and s >= score]
        is_free = source.pattern not in taken and not taken & set(row.hf.values())
        if is_free and score >= 1 and len(rivals) == 1:
            rows.append(row)
            taken |= {source.pattern, *row.hf.values()}
    if any("transpose" in row.transforms for row in rows):  # so may a square one be, which looks the same
        square = {kind.pattern for kind in sources if len(kind.shape) == 2 and len(set(kind.shape)) == 1}
        rows = [r._replace(transforms=("copy", "transpose")) if r.megatron in square else r for r in rows]
    return Draft(
        num_inherited,
        tuple(sorted(rows, key=lambda row: row.megatron)),
        tuple(source for source in sources if source.pattern not in taken),
        tuple(target for target in targets if target.pattern not in taken),
    )


def kinds_of(shapes: Mapping[str, Shape]) -> list[Kind]:
    """The tensors by pattern and shape, in the order of patterns."""
    found: defaultdict[tuple[str, Shape], set[tuple[int, ...]]] = defaultdict(set)
    for name, shape in shapes.items():
        pattern, numbers = name, []
        for hole, word in _HOLES:
            if (match := hole.search(pattern)) and "{" + word + "}" not in pattern:
                pattern = pattern[: match.start(1)] + "{" + word + "}" + pattern[match.end(1) :]
                numbers.append(int(match[1]))
        found[pattern, shape].add(tuple(numbers))
    return sorted(Kind(pattern, frozenset(numbers), shape) for (pattern, shape), numbers in found.items())


def _proposals(source: Kind, targets: list[Kind]) -> Iterator[Row]:
    """Every row that could make some of the targets of a source."""
    alike = [target for target in targets if target.numbers == source.numbers]
    for target in alike:
        if transforms := _whole(source, target, target.shape):
            yield Row(source.pattern, {"": target.pattern}, transforms)
        elif _is_padded(source, target):
            yield Row(source.pattern, {"": target.pattern}, ("vocabulary",))
    if "{expert}" in source.pattern:
        count = len({numbers[-1] for numbers in source.numbers})
        layers = {numbers[:-1] for numbers in source.numbers}
        for target in (target for target in targets if target.numbers == layers):
            if target.shape[:1] == (count,) and (transforms := _whole(source, target, target.shape[1:])):
                yield Row(source.pattern, {"": target.pattern}, transforms)
    for linear, transform in (("linear_fc1.", "split_glu"), ("linear_qkv.", "split_qkv")):
        if linear in source.pattern:
            yield from _splits(source, alike, transform)


def _splits(source: Kind, alike: list[Kind], transform: str) -> Iterator[Row]:
    roles = TRANSFORMS[transform].roles
    by_stem: defaultdict[str, dict[str, Kind]] = defaultdict(dict)
    for target in alike:
        for role in roles:
            word = next((word for word in _ROLES[role] if word in target.pattern.split(".")[-2]), None)
            if word is not None and target.shape[1:] == source.shape[1:]:
                by_stem[target.pattern.replace(word, "*")].setdefault(role, target)
                break
    for found in by_stem.values():
        if set(found) == set(roles) and sum(kind.shape[0] for kind in found.values()) == source.shape[0]:
            yield Row(source.pattern, {role: found[role].pattern for role in roles}, (transform,))
            return


def _whole(source: Kind, target: Kind, shape: Shape) -> tuple[str, ...]:
    """The transforms that may make a target of this shape (one of a stack) of a source as a whole. What holds
    several projections in one has its rows in an order that no shape tells.
    """
    is_turned = source.shape != shape and source.shape[::-1] == shape
    if source.shape != shape and not is_turned:
        return ()
    if "layer_norm" not in source.pattern and "linear_qkv." in source.pattern:
        return ("fuse_qkv_transposed", "transpose") if is_turned else ("fuse_qkv", "copy")
    if "linear_fc1." in source.pattern and any(word in target.pattern for word in _BOTH):
        both = ("glu", "interleave_glu")
        return tuple(f"{name}_transposed" for name in both) if is_turned else both
    return ("transpose",) if is_turned else ("copy",)


def _fits(source: Kind, row: Row, sizes: Mapping[str, int]) -> bool:
    """Whether the sizes of the model let the transform take this tensor apart."""
    transform = TRANSFORMS[row.transforms[0]]
    if not set(transform.needs) <= sizes.keys():
        return not transform.needs
    try:
        transform.geometry(source.shape, {**sizes, "vocab_size": 1})
    except AccountingError:
        return False
    return True


def _is_padded(source: Kind, target: Kind) -> bool:
    is_of_words = "word_embeddings" in source.pattern or source.pattern.startswith("output_layer")
    return is_of_words and source.shape[1:] == target.shape[1:] and source.shape[:1] > target.shape[:1]


def _score(source: Kind, row: Row) -> float:
    """How much names speak for a row: whole points for words that mean the same."""
    names = " ".join(row.hf.values())
    words = [others for word, others in _WORDS.items() if word in source.pattern]
    hits = sum(any(other in names for other in others) for others in words)
    is_same_part = source.pattern.rpartition(".")[2].split("_")[-1] in names.rpartition(".")[2]
    is_split = row.transforms[0].startswith("split_")
    alike = difflib.SequenceMatcher(None, source.pattern, names).ratio()
    return hits + is_split + 0.5 * is_same_part + 0.4 * alike - (len(words) > hits) * 0.25
