"""Two vocabularies for one model: Megatron-LM's training args, and the attributes of megatron-core's
TransformerConfig, which Megatron-Bridge and NeMo store instead of args and which a live model carries.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from functools import partial
from typing import Any

_RENAMED = {
    "num_moe_experts": "num_experts",
    "layernorm_epsilon": "norm_epsilon",
    "layernorm_zero_centered_gamma": "apply_layernorm_1p",
    "num_layers_in_first_pipeline_stage": "decoder_first_pipeline_num_layers",
    "num_layers_in_last_pipeline_stage": "decoder_last_pipeline_num_layers",
    "seq_len_interpolation_factor": "rotary_seq_len_interpolation_factor",
}
_OF_CONFIG_FILES = ("_target_", "_partial_", "_call_", "_args_", "_name_", "_builder_")
_UNSTORABLE = object()


def as_args(config: Mapping[str, Any]) -> dict[str, Any]:
    """The training args that a TransformerConfig, or a framework's config with its fields, stands for.

    Words that differ are translated, all others are kept. Values are JSON: functions become their dotted
    name, other objects, of which nothing can be known, are left out.
    """
    values = {name: _plain(value) for name, value in config.items() if _is_word(name)}
    known = {name: value for name, value in values.items() if value is not _UNSTORABLE}
    args = {name: value for name, value in known.items() if name not in _RENAMED}
    args.update({_RENAMED[name]: value for name, value in known.items() if name in _RENAMED})
    if "num_query_groups" in known:
        args["num_query_groups"] = known["num_query_groups"] or known.get("num_attention_heads")
        args["group_query_attention"] = True
    shared = known.get("share_embeddings_and_output_weights")
    if isinstance(args.pop("share_embeddings_and_output_weights", None), bool):
        args["untie_embeddings_and_output_weights"] = not shared
    if not known.get("should_pad_vocab"):
        args.pop("make_vocab_size_divisible_by", None)
    return args


def _is_word(name: Any) -> bool:
    return isinstance(name, str) and name not in _OF_CONFIG_FILES


def _plain(value: Any) -> Any:
    """`value` as JSON; `_UNSTORABLE` where it is an object that says nothing by itself."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping) and "_target_" in value:
        return _named(value)
    if isinstance(value, (list, tuple, Mapping)):
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
        items = {str(key): _plain(item) for key, item in pairs}
        if any(item is _UNSTORABLE for item in items.values()):
            return _UNSTORABLE
        return items if isinstance(value, Mapping) else list(items.values())
    if isinstance(value, partial) or hasattr(value, "__qualname__"):
        return _of_callable(value)
    is_dtype = str(value).startswith("torch.")
    return str(value) if is_dtype or isinstance(value, Enum) else _UNSTORABLE


def _of_callable(value: Any) -> Any:
    if isinstance(value, partial):
        return _function(_plain(value.func), [*value.args, *value.keywords.items()])
    return _function(f"{getattr(value, '__module__', None) or ''}.{value.__qualname__}".lstrip("."), [])


def _named(value: Mapping[str, Any]) -> Any:
    """The dotted name of what YAML files of frameworks name: objects, and functions, of which some of the
    parameters may be given.
    """
    target, given = str(value["_target_"]), list(value.get("_args_") or ())
    is_partial = bool(value.get("_partial_"))
    if target == "functools.partial" and given:
        inner, is_partial = given.pop(0), True
        target = _plain(inner)
    own = [(name, each) for name, each in value.items() if _is_word(name)]
    return _function(target, [*given, *own] if is_partial else [])


def _function(target: Any, given: list[Any]) -> Any:
    """A function by its name. With parameters given, it is one of its own: only GELU's tanh form is known."""
    if not isinstance(target, str) or target.endswith("<lambda>"):
        return _UNSTORABLE
    if given == [("approximate", "tanh")] and target.endswith("gelu"):
        return f"{target}_tanh"
    return _UNSTORABLE if given else target
