"""Which decoder layers each pipeline stage of a checkpoint holds, from the args it was trained with.

As in megatron-core 0.16.1 (transformer_block.py `get_num_layers_to_build`, transformer_layer.py
`get_transformer_layer_offset`, pipeline_parallel_layer_layout.py): layers are numbered through all pipeline
stages of virtual stage 0, then through all of virtual stage 1, and so on. So only their number per stage has
to be found. From 0.17 on, a hybrid model's pattern may have them, in the same order
(ssm/mamba_hybrid_layer_allocation.py `select_pipeline_segment`).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pp_export.core.errors import CheckpointError

Args = Mapping[str, Any]

LAYERS, PIPELINE, MTP = "num_layers", "pipeline_model_parallel_size", "mtp_num_layers"
LAYOUT = "pipeline_model_parallel_layout"
VIRTUAL = ("virtual_pipeline_model_parallel_size", "num_virtual_stages_per_pipeline_rank")
PER_VIRTUAL = "num_layers_per_virtual_pipeline_stage"
FIRST, LAST = "decoder_first_pipeline_num_layers", "decoder_last_pipeline_num_layers"
EMBEDDING, LOSS = "account_for_embedding_in_pipeline_split", "account_for_loss_in_pipeline_split"
HYBRID = ("hybrid_layer_pattern", "hybrid_override_pattern")
ALL = (LAYERS, PIPELINE, MTP, LAYOUT, *VIRTUAL, PER_VIRTUAL, FIRST, LAST, EMBEDDING, LOSS, *HYBRID)

WORDS = {"E": "embedding", "t": "decoder", "m": "mtp", "L": "loss"}
# Three digits at most, so that a damaged layout is refused before it unrolls without end.
REPEATS = (r"\(([^)]+)\)\*(\d{1,3})", r"(.)\*(\d{1,3})")
KINDS = frozenset("M*-EG")
"""Layers of hybrid models: Mamba, attention, MLP, experts, gated delta net."""
MAX_SHOWN = 200


@dataclass(frozen=True)
class Stage:
    """What one of Megatron's model chunks holds: pipeline stage `pipeline`, virtual stage `virtual`.

    `layers` are global numbers from 0. Further copies of the embedding, which tied weights and MTP layers
    need on other stages, are not told.
    """

    pipeline: int
    virtual: int
    layers: range
    has_embedding: bool
    has_head: bool
    num_mtp_layers: int


def virtual_size(args: Args) -> int:
    """Virtual stages per pipeline stage, 1 if there are none; all args that tell their number must agree."""
    pipeline = _number(args, PIPELINE, default=1)
    sizes = {_number(args, name) for name in VIRTUAL if args.get(name) is not None}
    if (layout := _layout(args)) is not None:
        if len(layout) % pipeline:
            raise _wrong(args, f"a layout of a multiple of {pipeline} stages, not {len(layout)}")
        sizes.add(len(layout) // pipeline)
    if (counts := _pattern_counts(args)) is not None:
        sizes.add(len(counts) // pipeline)
    if args.get(PER_VIRTUAL) is not None:
        size, rest = divmod(_num_units(args), pipeline * _number(args, PER_VIRTUAL))
        if rest or _is_uneven(args):
            raise _wrong(args, f"equal stages, which virtual ones of {args[PER_VIRTUAL]} layers divide")
        sizes.add(size)
    if len(sizes) > 1:
        raise _wrong(args, f"one number of virtual stages, not {' and '.join(map(str, sorted(sizes)))}")
    if pipeline == 1 and sizes - {1}:
        raise _wrong(args, "no virtual stages where there is one pipeline stage")
    return max(sizes, default=1)


def stages(args: Args) -> tuple[Stage, ...]:
    """All stages, ordered by pipeline and virtual stage; CheckpointError unless every layer comes once."""
    num_layers, pipeline, virtual = _number(args, LAYERS), _number(args, PIPELINE, 1), virtual_size(args)
    num_mtp = _number(args, MTP, default=0, least=0)
    # Counts per place: all pipeline stages of virtual stage 0, then all of virtual stage 1, as in a layout.
    if (layout := _layout(args)) is not None:
        _check_layout(args, layout, num_mtp)
        counts = [words.count("decoder") for words in layout]
        mtp = [words.count("mtp") for words in layout]
    else:
        counts = _pattern_counts(args) or _counts(args, pipeline, virtual)
        mtp = [0] * (len(counts) - 1) + [num_mtp]
    if sum(counts) != num_layers:
        raise _wrong(args, f"{num_layers} layers that {pipeline} x {virtual} stages hold without rest")
    if args.get("mtp_use_repeated_layer"):
        mtp = [min(count, 1) for count in mtp]
    ends = list(itertools.accumulate(counts))
    return tuple(
        Stage(
            pipeline=place % pipeline,
            virtual=place // pipeline,
            layers=range(ends[place] - counts[place], ends[place]),
            has_embedding=place == 0,
            has_head=place == len(counts) - 1,
            num_mtp_layers=mtp[place],
        )
        for first in range(pipeline)
        for place in range(first, len(counts), pipeline)
    )


def _counts(args: Args, pipeline: int, virtual: int) -> list[int]:
    """Layers of each place without a layout. Division drops what does not fit, then the sum falls short."""
    if pipeline * virtual > _num_units(args):
        raise _wrong(args, f"at least one layer for each of {pipeline} x {virtual} stages")
    if not _is_uneven(args):
        counts = [_num_units(args) // pipeline // virtual] * (pipeline * virtual)
        counts[0] -= _flag(args, EMBEDDING)
        counts[-1] -= _flag(args, LOSS)
        return counts
    if _flag(args, EMBEDDING) or _flag(args, LOSS):
        raise _wrong(args, f"no {EMBEDDING} or {LOSS} where the first or last stage has a number of its own")
    ends = {end: _number(args, name) for end, name in ((0, FIRST), (-1, LAST)) if args.get(name) is not None}
    num_middle, middle = pipeline - len(ends), 0
    if num_middle > 0:
        middle = (_number(args, LAYERS) - sum(ends.values())) // num_middle
        if middle < 1:
            raise _wrong(args, f"layers for the {num_middle} other pipeline stages too")
    row = [middle] * pipeline
    for end, count in ends.items():
        row[end] = count
    return [count // virtual for count in row] * virtual


def _pattern_counts(args: Args) -> list[int] | None:
    """Layers of each place where a hybrid model's pattern ends them with |; what follows / are MTP layers."""
    patterns = [str(args[name]).partition("/")[0] for name in HYBRID if args.get(name)]
    pattern = next((each for each in patterns if "|" in each), None)
    if pattern is None:
        return None
    pipeline, parts = _number(args, PIPELINE, 1), pattern.split("|")
    if any(each.replace("|", "") != pattern.replace("|", "") for each in patterns):
        raise _wrong(args, "one pattern of a hybrid model's layers")
    if not set(pattern) <= KINDS | {"|"} or len(parts) % pipeline:
        raise _wrong(args, f"a pattern of {', '.join(sorted(KINDS))} and a multiple of {pipeline} stages")
    if _is_uneven(args) or args.get(LAYOUT) is not None:
        raise _wrong(args, "the stages of a hybrid model's pattern alone")
    return list(map(len, parts))


def _layout(args: Args) -> list[list[str]] | None:
    """The words of each place; a text is unrolled as by megatron's `parse_str_to_list`."""
    layout = args.get(LAYOUT)
    if isinstance(layout, str):
        text = layout.replace(",", "")
        for repeat in REPEATS:
            text = re.sub(repeat, lambda match: match[1] * int(match[2]), text)
        if set(text) <= WORDS.keys() | {"|"}:
            return [[WORDS[letter] for letter in stage] for stage in text.split("|")]
    elif isinstance(layout, list | tuple) and all(isinstance(stage, list | tuple) for stage in layout):
        rows = [[str(word).strip().lower() for word in stage] for stage in layout]
        if rows and {word for row in rows for word in row} <= set(WORDS.values()):
            return rows
    elif layout is None:
        return None
    raise _wrong(args, f"{LAYOUT}: a text like Ettt|(tt|)*29,m|L or a list per stage of {[*WORDS.values()]}")


def _check_layout(args: Args, layout: list[list[str]], num_mtp: int) -> None:
    """What megatron's `validate_layer_layout` asks, and TransformerConfig of the other args."""
    if _is_uneven(args) or _flag(args, EMBEDDING) or _flag(args, LOSS):
        raise _wrong(args, "a layout alone, without args for the first or last stage")
    num_layers, pipeline = _number(args, LAYERS), _number(args, PIPELINE, 1)
    # Lists of words are as long as the layout, whatever the numbers say.
    words = [word for stage in layout for word in stage]
    inner = {"decoder": num_layers, "mtp": num_mtp}
    if len(words) != 2 + sum(inner.values()) or words != [
        "embedding",
        *(word for word, count in inner.items() for _ in range(count)),
        "loss",
    ]:
        raise _wrong(args, f"a layout of embedding, {num_layers} decoder, {num_mtp} mtp, loss, in this order")
    if num_mtp and all(stage.count("mtp") < num_mtp for stage in layout[-pipeline:]):
        raise _wrong(args, "a layout with all MTP layers in one stage, of the last virtual stage")


def _num_units(args: Args) -> int:
    return _number(args, LAYERS) + _flag(args, EMBEDDING) + _flag(args, LOSS)


def _is_uneven(args: Args) -> bool:
    return args.get(FIRST) is not None or args.get(LAST) is not None


def _flag(args: Args, name: str) -> bool:
    value = args.get(name)
    if not isinstance(value, bool | None):
        raise _wrong(args, f"{name}: true or false")
    return value or False


def _number(args: Args, name: str, default: int | None = None, least: int = 1) -> int:
    value = default if args.get(name) is None else args[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise _wrong(args, f"{name}: a whole number, at least {least}")
    return value


def _wrong(args: Args, expected: str) -> CheckpointError:
    told = [f"{name}={args[name]!r}"[:MAX_SHOWN] for name in ALL if args.get(name) is not None]
    return CheckpointError(
        "the training args do not tell which layers each pipeline stage holds",
        expected=expected,
        got=", ".join(told) or "none of these args",
        advice="save the checkpoint again; its args are damaged, edited or of a release that is not known",
    )
