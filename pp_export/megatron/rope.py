"""How training args scale rotary positions, said as transformers' `rope_parameters`, without the base.

Sources: megatron/core/models/common/embeddings/rotary_pos_embedding.py and yarn_rotary_pos_embedding.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

Values = tuple[dict[str, Any], ...]

ARGS = (
    *("position_embedding_type", "rotary_seq_len_interpolation_factor", "use_rope_scaling", "rope_scaling"),
    *("rope_scaling_factor", "scale_factor", "low_freq_factor", "high_freq_factor", "old_context_len"),
    *("rotary_scaling_factor", "yarn_rotary_scaling_factor", "yarn_original_max_position_embeddings"),
    *("yarn_beta_fast", "yarn_beta_slow", "yarn_mscale", "yarn_mscale_all_dim", "mscale", "mscale_all_dim"),
    *("yarn_correction_range_round_to_int", "max_position_embeddings", "multi_latent_attention", "rope_type"),
    *("original_max_position_embeddings", "beta_fast", "beta_slow"),
)
DEFAULT = {"rope_type": "default"}
# Constants of `RotaryEmbedding._apply_scaling`.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_IGNORED_FACTOR = 8.0


def scaling(args: Mapping[str, Any]) -> tuple[Values, str] | None:
    """The values that the args leave open, one where they are definite, and why; None where they say
    nothing.
    """
    framework = args.get("rope_scaling")
    if isinstance(framework, str):
        framework = json.loads(framework) if framework.lstrip().startswith("{") else None
        if framework is None:
            return None
    if isinstance(framework, Mapping):  # ms-swift hands the model config.json's own
        return ({"original_max_position_embeddings": args.get("max_position_embeddings"), **framework},), ""
    return _scaling_of_args(args)


def _scaling_of_args(args: Mapping[str, Any]) -> tuple[Values, str] | None:
    if args.get("multi_latent_attention"):
        return _latent(args)
    if args.get("position_embedding_type") == "yarn":
        return _yarn(args)
    interpolation = args.get("rotary_seq_len_interpolation_factor")
    linear = {"rope_type": "linear", "factor": interpolation} if interpolation else DEFAULT
    scaled = _llama3(args)
    if scaled is not None and linear is not DEFAULT and scaled[0][0] is not DEFAULT:
        return ({"rope_type": "llama3 and linear", "factor": interpolation},), ""
    if linear is not DEFAULT:
        return (linear,), ""
    return scaled if scaled is None or "rotary_seq_len_interpolation_factor" in args else _if_on(scaled)


def _if_on(scaled: tuple[Values, str]) -> tuple[Values, str] | None:
    """Llama 3's scaling, if it is on; that it is off doesn't say that there is no other."""
    return scaled if scaled[0][0] is not DEFAULT else None


def _llama3(args: Mapping[str, Any]) -> tuple[Values, str] | None:
    if "scale_factor" in args and "low_freq_factor" in args:  # NeMo 2, which keeps all four numbers
        own = {
            "factor": args["scale_factor"],
            "low_freq_factor": args["low_freq_factor"],
            "high_freq_factor": args.get("high_freq_factor"),
            "original_max_position_embeddings": args.get("old_context_len"),
        }
        return ({"rope_type": "llama3", **own},), ""
    by_config, by_flag = args.get("rope_scaling"), args.get("use_rope_scaling")
    if by_config is None and by_flag is None:
        return None
    if not by_config and not by_flag:
        return (DEFAULT,), ""
    factor = args.get("rope_scaling_factor")
    factor = _IGNORED_FACTOR if factor is None else float(factor)
    asked = {"rope_type": "llama3", "factor": factor, **_LLAMA3}
    if by_config or factor == _IGNORED_FACTOR:
        return (asked,), ""
    # NVIDIA/Megatron-LM#6305: `gpt_builders.py` passed the switch on, and not the factor.
    used = {"rope_type": "llama3", "factor": _IGNORED_FACTOR, **_LLAMA3}
    why = (
        f"--rope-scaling-factor {factor:g} was asked for, and Megatron-LM's GPT models ignored it and used"
        f" {_IGNORED_FACTOR:g} before #6306 (August 2026)"
    )
    return (asked, used), why


def _latent(args: Mapping[str, Any]) -> tuple[Values, str] | None:
    """Of latent attention, which has args of its own and scales by YaRN unless it is told not to
    (core/transformer/multi_latent_attention.py).
    """
    if args.get("rope_type") == "rope":
        return (DEFAULT,), ""
    factor = args.get("rotary_scaling_factor")
    scales: list[Any] = [args.get(name) for name in ("mscale", "mscale_all_dim")]
    if factor is None or None in scales:
        return None
    if factor == 1:
        return (DEFAULT,), ""
    numerator, denominator = (_mscale(float(factor), scale) for scale in scales)
    own = {
        "rope_type": "yarn",
        "factor": float(factor),
        "beta_fast": args.get("beta_fast") or 32,
        "beta_slow": args.get("beta_slow") or 1,
        "truncate": True,
        "attention_factor": numerator / denominator,
    }
    original, positions = args.get("original_max_position_embeddings"), args.get("max_position_embeddings")
    lengths = dict.fromkeys((original,) if original else (4096, positions or 4096))
    why = "megatron-core scaled from max_position_embeddings on through release 0.13, later from 4096 on"
    return tuple({**own, "original_max_position_embeddings": length} for length in lengths), why


def score_factors(args: Mapping[str, Any]) -> tuple[float, ...]:
    """What latent attention multiplied its scores by besides: through release 0.13 by `mscale`, since then by
    `mscale_all_dim`. Raises TypeError where the args don't say it.
    """
    factor = float(args["rotary_scaling_factor"])
    return tuple(dict.fromkeys(_mscale(factor, args[name]) ** 2 for name in ("mscale_all_dim", "mscale")))


def _yarn_factor(args: Mapping[str, Any]) -> Any:
    own = args.get("yarn_rotary_scaling_factor")
    return args.get("rotary_scaling_factor") if own is None else own


def _yarn(args: Mapping[str, Any]) -> tuple[Values, str] | None:
    """YaRN of a model without MLA, with the defaults of `YarnRotaryEmbedding`."""

    def first(*names: str, default: Any) -> Any:
        return next((args[name] for name in names if args.get(name) is not None), default)

    if _yarn_factor(args) is None:
        return None
    factor = float(_yarn_factor(args))
    numerator = first("yarn_mscale", "mscale", default=None)
    denominator = first("yarn_mscale_all_dim", "mscale_all_dim", default=None)
    scales = None not in (numerator, denominator)
    own = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": first("yarn_original_max_position_embeddings", default=4096),
        "beta_fast": first("yarn_beta_fast", default=32),
        "beta_slow": first("yarn_beta_slow", default=1),
        "truncate": first("yarn_correction_range_round_to_int", default=True),
        "attention_factor": _mscale(factor, numerator) / _mscale(factor, denominator)
        if scales
        else _mscale(factor, 1.0),
    }
    return (own,), ""


def _mscale(factor: float, by: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * by * math.log(factor) + 1.0
