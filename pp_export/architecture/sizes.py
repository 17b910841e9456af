"""Model sizes: what the checkpoint's training args say, held against what the reference's config.json says.

The checkpoint is the truth. The reference may only agree; where both know a size and differ, the export stops
and names both values, because weights that load under a wrong config answer wrongly without a word.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from pp_export.architecture.rules import Architecture
from pp_export.core.errors import AccountingError
from pp_export.core.tensors import TensorSpec

EMBEDDING = "embedding.word_embeddings.weight"


@dataclass(frozen=True)
class ModelSizes:
    """The sizes that transforms need, and where they came from (`training args` or `config.json`)."""

    values: Mapping[str, int]
    source: str
    vocab_size: int
    padded_vocab_size: int


def from_args(args: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes in Megatron's words; only those that the args really determine.

    `num_query_groups` counts only under `group_query_attention`: its default of 1 means nothing without it.
    """
    heads, hidden = args.get("num_attention_heads"), args.get("hidden_size")
    sizes = {
        "num_layers": args.get("num_layers"),
        "hidden_size": hidden,
        "ffn_hidden_size": args.get("ffn_hidden_size"),
        "num_attention_heads": heads,
        "num_query_groups": args.get("num_query_groups") if args.get("group_query_attention") else heads,
        "head_dim": args.get("kv_channels") or _ratio(hidden, heads),
        "norm_epsilon": args.get("norm_epsilon", args.get("layernorm_epsilon")),
        "rotary_base": args.get("rotary_base"),
        "num_experts": args.get("num_experts"),
        "moe_router_topk": args.get("moe_router_topk"),
        "moe_ffn_hidden_size": args.get("moe_ffn_hidden_size") or args.get("ffn_hidden_size"),
    }
    if "untie_embeddings_and_output_weights" in args:
        sizes["tied"] = not args["untie_embeddings_and_output_weights"]
    return {name: value for name, value in sizes.items() if value is not None}


def from_config(config: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    """The same sizes as config.json states them; `keys` is the table's `config` section."""
    sizes = {}
    for size, alternatives in keys.items():
        values = (_at(config, path.strip()) for path in alternatives.split("|"))
        value = next((value for value in values if value is not None), None)
        if value is not None:
            sizes[size] = value
    heads, hidden = sizes.get("num_attention_heads"), sizes.get("hidden_size")
    if heads is not None:
        sizes.setdefault("num_query_groups", heads)
    if (head_dim := _ratio(hidden, heads)) is not None:
        sizes.setdefault("head_dim", head_dim)
    return sizes


def reconcile(
    architecture: Architecture,
    args: Mapping[str, Any] | None,
    config: Mapping[str, Any],
    specs: Mapping[str, TensorSpec],
    vocab_size: int | None,
) -> ModelSizes:
    """The sizes to export with. Raises AccountingError listing every disagreement, with both values."""
    stated = from_config(config, architecture.config)
    trained = from_args(args) if args is not None else {}
    findings = [
        f"{size}: the checkpoint was trained with {trained[size]}, config.json says {stated[size]}"
        for size in architecture.config
        if size in trained and size in stated and not _agree(trained[size], stated[size])
    ]
    findings += [
        f"{name}: the table {architecture.name} requires {expected}, the checkpoint has {args[name]}"
        for name, expected in architecture.requires.items()
        if args is not None and name in args and args[name] != expected
    ]
    sizes = {**stated, **trained}
    needed = ("num_attention_heads", "num_query_groups", "head_dim")
    findings += [
        f"{size}: neither the training args nor config.json say it" for size in needed if size not in sizes
    ]
    findings += [
        f"{size}: {sizes[size]!r} is not a positive whole number"
        for size in needed
        if size in sizes and not _is_count(sizes[size])
    ]
    if findings:
        raise AccountingError(
            "the reference config.json is not the config of this checkpoint",
            advice="give the reference folder of the model that was trained, or correct its config.json",
            findings=findings,
        )
    padded = specs[EMBEDDING].shape[0] if EMBEDDING in specs else 0
    true = _true_vocabulary(args or {}, config, padded, vocab_size)
    values = {size: sizes[size] for size in needed} | {"vocab_size": true}
    return ModelSizes(values, "training args" if args is not None else "config.json", true, padded)


def _true_vocabulary(
    args: Mapping[str, Any], config: Mapping[str, Any], padded: int, asked: int | None
) -> int:
    """Rows of the embedding that are tokens; the rest pads it to what TP divides."""
    known = asked or config.get("vocab_size") or args.get("vocab_size")
    advice = (
        "pass --vocab-size, the number of tokens that the tokenizer can produce (as the model was trained)"
    )
    if not _is_count(known):
        raise AccountingError(
            "the embedding may be padded and its true vocabulary size is not known",
            where={"tensor": EMBEDDING},
            expected="vocab_size in the reference config.json",
            got=f"{padded} rows",
            advice=advice,
        )
    multiple = (args.get("make_vocab_size_divisible_by") or 0) * (args.get("tensor_model_parallel_size") or 0)
    fits = not multiple or math.ceil(known / multiple) * multiple == padded
    if known > padded or not (fits or asked):
        raise AccountingError(
            "the vocabulary size does not fit the embedding",
            where={"tensor": EMBEDDING},
            expected=f"a size that pads to {padded} rows" + (f" in steps of {multiple}" if multiple else ""),
            got=f"vocab_size {known}",
            advice=advice,
        )
    return known


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _ratio(hidden: Any, heads: Any) -> int | None:
    return hidden // heads if _is_count(hidden) and _is_count(heads) else None


def _at(config: Mapping[str, Any], path: str) -> Any:
    value: Any = config
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _agree(trained: Any, stated: Any) -> bool:
    if isinstance(trained, bool) or isinstance(stated, bool):
        return bool(trained) == bool(stated)
    if isinstance(trained, (int, float)) and isinstance(stated, (int, float)):
        return math.isclose(trained, stated, rel_tol=1e-6)
    return bool(trained == stated)
