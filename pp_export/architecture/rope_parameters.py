"""`rope_parameters` of config.json (release 5 of transformers), and `rope_theta` with `rope_scaling` (release
4 and most other loaders): two spellings of one thing.

Source: transformers/modeling_rope_utils.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

DEFAULT = {"rope_type": "default"}
BASE, ORIGINAL = "rope_theta", "original_max_position_embeddings"
_READ = {
    "default": frozenset[str](),
    "linear": frozenset({"factor"}),
    "llama3": frozenset(
        {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
    ),
    "yarn": frozenset(
        {
            *("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "truncate"),
            "attention_factor",
        }
    ),
}


def stated(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says of RoPE, the base as `rope_theta` in it; what release 5 would take counts. Raises
    TypeError where it says something that is no object.
    """
    parts = [config.get(key) for key in ("rope_scaling", "rope_parameters")]
    if any(part is not None and not isinstance(part, Mapping) for part in parts):
        raise TypeError("rope_scaling and rope_parameters are objects, or null")
    found = next((dict(part) for part in parts if part), {})
    if found.get(BASE) is None and config.get(BASE) is not None:
        found[BASE] = config[BASE]
    kind = found.get("rope_type") or found.get("type")
    if config.get(ORIGINAL) is not None and kind in ("llama3", "yarn"):
        found[ORIGINAL] = config[ORIGINAL]
    return found


def has_base(config: Mapping[str, Any]) -> bool:
    """Whether a config says the base where release 5 takes it from."""
    try:
        return stated(config).get(BASE) is not None
    except TypeError:
        return False


def bases(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Every place where a config says the base, and what it says there."""
    parts = [("", config)]
    parts += [
        (f"{key}.", config[key])
        for key in ("rope_parameters", "rope_scaling")
        if isinstance(config.get(key), Mapping)
    ]
    return [(f"{path}{BASE}", part[BASE]) for path, part in parts if part.get(BASE) is not None]


def scalings(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Every place where a config says how RoPE is scaled, and what it says there."""
    places = [(key, config.get(key)) for key in ("rope_parameters", "rope_scaling")]
    positions = config.get("max_position_embeddings")
    return [(key, canonical(part, positions)) for key, part in places if isinstance(part, Mapping) and part]


def spelled(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of config.json that say `parameters` to loaders of either release, equal."""
    own = {key: value for key, value in parameters.items() if key not in (BASE, "type", "rope_type")}
    kind = str(parameters.get("rope_type") or parameters.get("type") or "default")
    base = {BASE: parameters[BASE]} if parameters.get(BASE) is not None else {}
    old = {"type": kind} if "type" in parameters else {}
    return {
        **base,
        "rope_scaling": None if kind == "default" else {"rope_type": kind, **old, **own},
        "rope_parameters": {"rope_type": kind, **base, **own},
    }


def spelled_beside(config: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The same, for what else a config says: no scaling is not said where nothing was."""
    keys = spelled(parameters)
    if keys["rope_scaling"] is None and "rope_scaling" not in config:
        del keys["rope_scaling"]
    return keys


def canonical(parameters: Mapping[str, Any], max_positions: Any = None) -> dict[str, Any]:
    """What of `parameters` has an effect, without the base, defaults written out: equal where they mean the
    same.

    `max_positions` is the config's `max_position_embeddings`, YaRN's default for the original length. Of
    types that are not known here, everything counts.
    """
    given = {key: value for key, value in parameters.items() if value is not None and key != BASE}
    kind = str(given.pop("rope_type", None) or given.get("type") or "default")
    given.pop("type", None)
    known = _READ.get(kind)
    if known is not None and not all(_is_number(given[key]) for key in known & given.keys()):
        raise TypeError("the parameters of RoPE are numbers")
    is_scaled = given.get("attention_factor", 1) != 1
    if kind in ("linear", "llama3", "yarn") and given.get("factor") == 1 and not is_scaled:
        return dict(DEFAULT)
    if kind == "yarn":
        factor = float(given.get("factor", 1.0))
        given.setdefault("original_max_position_embeddings", max_positions)
        defaults = {"beta_fast": 32, "beta_slow": 1, "truncate": True}
        given = {**defaults, "attention_factor": _attention_factor(factor, given), **given}
    return {
        "rope_type": kind,
        **{key: given[key] for key in sorted(given) if known is None or key in known},
    }


def score_factor(parameters: Mapping[str, Any]) -> float:
    """What latent attention multiplies its scores by besides, where positions are scaled."""
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    by = parameters.get("mscale_all_dim")
    return _mscale(float(parameters["factor"]), by) ** 2 if kind != "default" and by else 1.0


def with_score_factor(parameters: Mapping[str, Any], value: float) -> dict[str, Any] | None:
    """The same parameters, where they also say what latent attention multiplies its scores by; None where
    positions aren't scaled, so that they can't.

    Loaders of release 4 take what angles are multiplied by from both scales too: where both can be said, they
    stand for the factor.
    """
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    factor = float(parameters.get("factor") or 1)
    if kind == "default" or factor <= 1 or value < 1:
        return None
    own = {key: of for key, of in parameters.items() if key not in ("mscale", "mscale_all_dim")}
    of_angles = canonical(parameters).get("attention_factor", 1.0)
    denominator = _by(factor, math.sqrt(value))
    numerator = _by(factor, of_angles * math.sqrt(value))
    if denominator > 0 and numerator > 0:
        own.pop("attention_factor", None)
        return {**own, "mscale": numerator, "mscale_all_dim": denominator}
    return {**own, "attention_factor": of_angles, "mscale_all_dim": denominator}


def can_say(parameters: Any) -> bool:
    """Whether a config can say these parameters, of a type that is known here."""
    return isinstance(parameters, Mapping) and parameters.get("rope_type") in _READ


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _attention_factor(factor: float, given: Mapping[str, Any]) -> float:
    """The ratio of both scales only where both are there and not 0; one of them alone counts for nothing."""
    numerator, denominator = given.get("mscale"), given.get("mscale_all_dim")
    if numerator and denominator:
        return _mscale(factor, numerator) / _mscale(factor, denominator)
    return _mscale(factor, 1.0)


def _by(factor: float, scale: float) -> float:
    """What `_mscale` makes a `scale` of, to within its last digits."""
    return round((scale - 1) / (0.1 * math.log(factor)), 9)


def _mscale(factor: float, by: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * by * math.log(factor) + 1.0
