"""config.json of the export: the reference's, changed only where the export changed the truth."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pp_export.core import config_keys
from pp_export.core.config_keys import MTP_COUNTS, OTHER_FILES, QUANTIZATION, QUANTIZATION_CONFIG

DTYPE_KEYS = ("dtype", "torch_dtype")
PATH_KEYS = ("_name_or_path", "name_or_path", "tokenizer_file")
"""Where configs keep what they were loaded from."""

_HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*(/[\w.-]+)?)?")
_LANGUAGE_MODEL_KEYS = ("text_config", "language_config", "llm_config")


def corrected(
    config: Mapping[str, Any],
    *,
    dtype: str | None = None,
    vocab_size: int | None = None,
    num_mtp_layers: int | None = None,
    mtp_key: str | None = None,
    both_spellings: bool = False,
    quantization: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """The export's config.json and one sentence for each correction; None means that the reference is right.

    `dtype` is torch's name (`bfloat16`). Whichever keys the reference has are corrected, also in the configs
    nested in it. Where it has none, `torch_dtype` is added, which old and new loaders read, and `vocab_size`
    beside the other sizes of the language model, and so is `mtp_key` where there are MTP layers. With
    `both_spellings`, `dtype` and `torch_dtype` both say the type. A quantization config is removed, because
    the exported weights are not quantized that way, and so are the path of a folder that the config was
    loaded from, and names of other files that loaders would read instead of this one or of the weights;
    `quantization` is the one of the export, if its weights are.
    """
    result = copy.deepcopy(dict(config))
    removed = _remove_quantization(result) + _remove_path(result) + _remove_other_files(result)
    parts = {key: part for key, part in result.items() if key.endswith("_config") and isinstance(part, dict)}
    everywhere = [("", result), *((f"{key}.", part) for key, part in parts.items())]
    language = _language_model(result)
    corrections = []
    if dtype is not None:
        corrections += _correct(everywhere, DTYPE_KEYS, dtype, absent=("", result, "torch_dtype"))
        for key in DTYPE_KEYS if both_spellings else ():
            if key not in result:
                corrections += _correct([], (), dtype, absent=("", result, key))
    if vocab_size is not None:
        corrections += _correct(language, ("vocab_size",), vocab_size, absent=(*language[-1], "vocab_size"))
    if num_mtp_layers is not None:
        absent = (*language[-1], mtp_key) if mtp_key is not None and num_mtp_layers else None
        corrections += _correct(language, MTP_COUNTS, num_mtp_layers, absent=absent)
    if quantization is not None:
        result[QUANTIZATION_CONFIG] = dict(quantization)
        method = quantization["quant_method"]
        removed.append(
            f"config.json: {QUANTIZATION_CONFIG} is added, because the weights are quantized ({method})."
        )
    return result, corrections + removed


def num_mtp_layers(config: Mapping[str, Any]) -> int:
    """How many MTP layers a config.json promises, under whichever name."""
    return max(config_keys.num_mtp_layers(part) for _, part in _language_model(config))


def _language_model(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The config, and those nested in it that are a language model's, with their paths."""
    nested = ((key, config.get(key)) for key in _LANGUAGE_MODEL_KEYS)
    return [("", config), *((f"{key}.", part) for key, part in nested if isinstance(part, dict))]


def to_bytes(config: Mapping[str, Any]) -> bytes:
    """The byte image of a config file: keys in the order given, two spaces, UTF-8, a newline at the end."""
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()


def _correct(
    places: Sequence[tuple[str, dict[str, Any]]],
    keys: Sequence[str],
    value: str | int,
    *,
    absent: tuple[str, dict[str, Any], str] | None,
) -> list[str]:
    """Set `keys` to `value` in every place that has them; where none has, add the key that `absent` names."""
    sentences = []
    found = [(path, config, key) for path, config in places for key in keys if key in config]
    for path, config, key in found:
        old = config[key]
        if _plain(old) != value:
            config[key] = value
            sentences.append(f"config.json: {path}{key} is {value}; the reference has {json.dumps(old)}.")
    if not found and absent is not None:
        path, config, key = absent
        config[key] = value
        sentences.append(f"config.json: {path}{key} is {value}; the reference has no such key.")
    return sentences


def _plain(value: Any) -> Any:
    return value.removeprefix("torch.") if isinstance(value, str) else value


def may_be_path(value: Any) -> bool:
    """Whether a text may be a path of some machine; names of the Hub are none."""
    return isinstance(value, str) and not _HUB_NAME.fullmatch(value)


def _remove_path(config: dict[str, Any], path: str = "") -> list[str]:
    """Of what a config was loaded from, only names of the Hub are nobody's secret."""
    sentences = []
    for key, value in list(config.items()):
        if key in PATH_KEYS and may_be_path(value):
            del config[key]
            sentences.append(
                f"config.json: {path}{key} is removed, because it may be a path of the machine that wrote it."
            )
        elif isinstance(value, dict):
            sentences += _remove_path(value, f"{path}{key}.")
    return sentences


def _remove_other_files(config: dict[str, Any]) -> list[str]:
    named = [key for key in config if key in OTHER_FILES and config[key]]
    for key in named:
        del config[key]
    return [
        f"config.json: {key} is removed, because loaders would read other files than the export's."
        for key in named
    ]


def _remove_quantization(config: dict[str, Any], path: str = "") -> list[str]:
    sentences = []
    for key in [key for key in config if key in QUANTIZATION]:
        value = config.pop(key)
        if value is not None:
            method = value.get("quant_method") if isinstance(value, dict) else None
            sentences.append(
                f"config.json: {path}{key}{f' ({method})' if method else ''} is removed, "
                "because the exported weights are not quantized that way."
            )
    for key, value in config.items():
        if isinstance(value, dict):
            sentences += _remove_quantization(value, f"{path}{key}.")
    return sentences
