"""YAML from strangers: plain values only, and neither aliases nor merges that unfold into millions of values.

The same for job files, `--set`, architecture tables and the configs that frameworks leave beside weights.
"""

from __future__ import annotations

from typing import Any

import yaml

MAX_BYTES = 1 << 18
"""Reading it takes seconds; the longest that anybody writes has a tenth of it."""

MAX_DEPTH = 64
MAX_VALUES = 50_000
MAX_NUMBER_BITS = 64

_MAX_SHOWN = 200


class YamlError(ValueError):
    """The text is not YAML of plain values; the message continues "the file is wrong: "."""


def parse(data: bytes | str) -> Any:
    """The value of `data`; YamlError where it is none, too deep, or unfolds into too many values."""
    if len(data) > MAX_BYTES:
        raise YamlError(f"it has more than {MAX_BYTES:,} bytes")
    try:
        loader = _Loader(data)
        try:
            value = loader.get_single_data()
        finally:
            loader.dispose()
        _check_unfolded(value)
    except YamlError:
        raise
    except RecursionError:
        raise YamlError(f"it is nested more than {MAX_DEPTH} deep") from None
    except Exception as error:  # dates and numbers that are none raise what Python raises for them
        raise YamlError(f"it is not YAML: {str(error)[:_MAX_SHOWN]}") from error
    return value


class _Loader(yaml.SafeLoader):
    """Counts levels while it reads, and what merges unfold."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._depth = 0
        self._num_nodes = self._num_merged = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth, self._num_nodes = self._depth + 1, self._num_nodes + 1
        if self._num_nodes > MAX_VALUES:
            raise YamlError(f"it has more than {MAX_VALUES:,} values")
        if self._depth > MAX_DEPTH:
            raise YamlError(f"it is nested more than {MAX_DEPTH} deep")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(names)) < len(names):  # of which YAML would take the last, without a word
            twice = next(name for name in names if names.count(name) > 1)
            raise YamlError(f"the key {twice[:_MAX_SHOWN]!r} stands in it twice")
        return node

    def flatten_mapping(self, node: Any) -> None:
        super().flatten_mapping(node)
        self._num_merged += len(node.value)
        if self._num_merged > MAX_VALUES:
            raise YamlError(f"it merges mappings into more than {MAX_VALUES:,} entries")

    def construct_yaml_int(self, node: Any) -> int:
        value = super().construct_yaml_int(node)
        if value.bit_length() > MAX_NUMBER_BITS:
            raise YamlError(f"a number has more than {MAX_NUMBER_BITS} bits")
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def _check_unfolded(value: Any) -> None:
    """Raise where what aliases share, written out, would be too much: others walk it so."""
    layer, count, depth = [value], 0, 0
    while layer:
        count, depth = count + len(layer), depth + 1
        if depth > MAX_DEPTH:
            raise YamlError(f"it is nested more than {MAX_DEPTH} deep, or contains itself")
        below: list[Any] = []
        for each in layer:
            if isinstance(each, dict):
                below += each.values()
            elif isinstance(each, (list, tuple, set)):
                below += each
            if count + len(below) > MAX_VALUES:
                raise YamlError(f"it unfolds into more than {MAX_VALUES:,} values")
        layer = below
