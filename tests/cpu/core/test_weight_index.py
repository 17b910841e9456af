"""Claims of `pp_export.core.weight_index`: what can be followed, and all that is wrong."""

from __future__ import annotations

import json

import pytest

from pp_export.core import weight_index
from pp_export.core.strict_json import JsonError
from pp_export.core.weight_index import WeightIndex, WrongEntry, parse


def test_a_sound_index() -> None:
    """A sound index is given as it is, and nothing is wrong with it."""
    weight_map, metadata = {"a": "x-1.safetensors", "b": "x-2.safetensors"}, {"total_size": 1}
    data = json.dumps({"metadata": metadata, "weight_map": weight_map}).encode()
    assert parse(data) == WeightIndex(weight_map, metadata, ())


def test_each_wrong_entry_is_told() -> None:
    """Every entry that might lead out of the folder is told with what it says; the others remain."""
    bad = {"b": "../x.safetensors", "c": 7, "d": "x.bin", "e": None, "f": ["x.safetensors"]}
    index = parse(json.dumps({"metadata": {}, "weight_map": {"a": "x.safetensors"} | bad}).encode())
    assert index.weight_map == {"a": "x.safetensors"}
    assert {entry.tensor: entry.value for entry in index.unsafe} == bad
    assert index.wrong == tuple(index.unsafe)


@pytest.mark.parametrize("value", [None, [], "x", 1])
def test_sections_of_the_wrong_form(value: object) -> None:
    """A section that is no object is None and told; the other section is read all the same."""
    index = parse(json.dumps({"metadata": value, "weight_map": {"a": "x.safetensors"}}).encode())
    assert index.weight_map == {"a": "x.safetensors"}
    assert (index.metadata, index.wrong) == (None, (WrongEntry(None, "metadata is not an object", value),))
    index = parse(json.dumps({"metadata": {}, "weight_map": value}).encode())
    assert (index.weight_map, index.metadata, index.unsafe) == (None, {}, [])
    assert index.wrong == (WrongEntry(None, "weight_map is not an object", value),)


def test_what_is_no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no strict JSON object, or larger than any index, is refused whole."""
    for data in (b"", b"[]", b'{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}'):
        with pytest.raises(JsonError):
            parse(data)
    monkeypatch.setattr(weight_index, "MAX_BYTES", 10)
    with pytest.raises(JsonError, match="more than 10 bytes"):
        parse(b'{"a": "bcdefgh"}')
