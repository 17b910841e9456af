"""Claims of `pp_export.core.config_keys`: whoever builds a model drops every key that leads outside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pp_export.core.config_keys import CODE, LEADS_OUTSIDE, QUANTIZATION, without
from pp_export.core.errors import ReferenceFolderError
from pp_export.reference.definition import define
from pp_export.verification.loading import load_faults

PLAIN: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "hidden_size": 8, "rope_scaling": None}


def test_without_reaches_every_depth() -> None:
    """A key is taken out of every object, in lists too, and the value given stays as it was."""
    value = {"x": 1, "a": {"x": 2, "y": [{"x": 3, "z": 4}, "x"]}}
    assert without(value, ["x"]) == {"a": {"y": [{"z": 4}, "x"]}}
    assert value["x"] == 1


def _leading(keys: frozenset[str]) -> dict[str, Any]:
    """A config with all of `keys`, at its top and nested in an object and in a list."""
    leads = dict.fromkeys(keys, "somebody/elsewhere")
    return PLAIN | leads | {"text_config": {"a": 1, **leads}, "parts": [{"b": 2, **leads}]}


class _SeenError(Exception):
    pass


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The configs that a class of transformers is given; it takes none."""
    transformers: Any = pytest.importorskip("transformers")
    seen: list[dict[str, Any]] = []

    def from_dict(config: dict[str, Any]) -> None:
        seen.append(config)
        raise _SeenError

    monkeypatch.setattr(transformers.LlamaConfig, "from_dict", from_dict)
    return seen


CLEAN = PLAIN | {"text_config": {"a": 1}, "parts": [{"b": 2}]}


def test_the_definition_asks_for_nothing_outside(seen: list[dict[str, Any]]) -> None:
    """The class that tells which tensors to expect sees no key that leads outside, and no quantization."""
    with pytest.raises(ReferenceFolderError):
        define(_leading(LEADS_OUTSIDE | QUANTIZATION))
    assert seen == [CLEAN]


def test_loading_asks_for_nothing_outside(seen: list[dict[str, Any]], tmp_path: Path) -> None:
    """The class that loads a folder sees no key that leads outside."""
    (tmp_path / "config.json").write_text(json.dumps(_leading(LEADS_OUTSIDE)))
    (fault,) = load_faults(tmp_path)
    assert (fault.kind, seen) == ("load-failed", [CLEAN])


def test_the_keys_that_were_a_hole_are_known() -> None:
    """Weights elsewhere, kernels and fusions lead outside as code does."""
    assert CODE | {"transformers_weights", "kernel_config", "fusion_config"} <= LEADS_OUTSIDE
    for kind in ("attn", "experts"):
        for name in (f"{kind}_implementation", f"_{kind}_implementation", f"_{kind}_implementation_internal"):
            assert name in LEADS_OUTSIDE
