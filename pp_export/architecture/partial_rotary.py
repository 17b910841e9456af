"""How config.json says which part of each head rotates; all of it where it says nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pp_export.architecture import rope_parameters
from pp_export.architecture.reading import Config, Reading, Statement

FACTOR = "partial_rotary_factor"
_DIM = "rotary_dim"


def _said_as(key: str) -> Reading:
    """A class that takes it also from a `key` of its own. It is written inside of `rope_parameters`, where
    release 5 looks first, and beside it, where release 4 does.
    """
    return Reading(
        tuple(dict.fromkeys((FACTOR, key))),
        lambda config: next((value for _, value in _statements(key, config)), 1.0),
        lambda config, value: {**_written(config, value), key: value},
        lambda config: _statements(key, config),
    )


def _statements(key: str, config: Config) -> list[Statement]:
    inside = config.get("rope_parameters")
    places = [(at, config.get(at)) for at in (FACTOR, key)]
    if isinstance(inside, Mapping):
        places.insert(0, (f"rope_parameters.{FACTOR}", inside.get(FACTOR)))
    return list({at: (at, value) for at, value in places if value is not None}.values())


def _written(config: Config, value: Any) -> dict[str, Any]:
    own = rope_parameters.stated(config)
    return {**rope_parameters.spelled_beside(config, {**own, FACTOR: value}), FACTOR: value}


def _with_dim(config: Config) -> list[Statement]:
    """The part, and how many elements of each head that is, which published MiniMax-M2 says instead."""
    head, dim = config.get("head_dim"), config.get(_DIM)
    said = _statements(FACTOR, config)
    if isinstance(head, int) and head > 0 and isinstance(dim, int):
        said.append((_DIM, dim / head))
    return said


def _write_with_dim(config: Config, value: Any) -> dict[str, Any]:
    head = config.get("head_dim")
    dim = {_DIM: round(head * value)} if isinstance(head, int) else {}
    return {**_written(config, value), **dim}


READINGS: Mapping[str, Reading] = {
    "partial_rotary": Reading((FACTOR,), _said_as(FACTOR).read_from, lambda *_: None),
    "partial_rotary_said": _said_as(FACTOR),
    "rotary_pct": _said_as("rotary_pct"),
    "rotary_dim": Reading(
        (FACTOR, _DIM),
        lambda config: next((value for _, value in _with_dim(config)), 1.0),
        _write_with_dim,
        _with_dim,
    ),
}
