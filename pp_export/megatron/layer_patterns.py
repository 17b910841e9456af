"""Args that tell of each layer in the text of an expression: frameworks store what Megatron evaluates.

Megatron's grammar (megatron/training/arguments.py `_eval_pattern`): whole numbers, lists of them, `+` and `*`
as Python has them, parentheses: `([0]*3+[1]*1)*2`. Nothing is evaluated here; it is read.
"""

from __future__ import annotations

import re

from pp_export.megatron.derivation import MAX_LAYERS

NAMES = frozenset({"moe_layer_freq", "no_rope_freq", "window_attn_skip_freq", "linear_attention_freq"})
_TOKEN = re.compile(r"(0|[1-9]\d{0,5})|([][()+*,])")
_MAX_TEXT, _MAX_DEPTH = 100_000, 20
_Value = int | list[int]


def parse(text: str) -> _Value | None:
    """The number or list that a pattern stands for; None where it is no pattern, or of too many layers."""
    tokens = [match[0] for match in _TOKEN.finditer(text[:_MAX_TEXT])]
    if not tokens or "".join(tokens) != text:
        return None
    reader = _Reader(tokens)
    try:
        value = reader.sum(0)
    except (ValueError, IndexError):
        return None
    return value if reader.at == len(tokens) else None


class _Reader:
    """Reads tokens from the first on, each rule of the grammar in a method; ValueError or IndexError where
    they don't follow it. `depth` is how many brackets are open.
    """

    def __init__(self, tokens: list[str]) -> None:
        self._tokens, self.at = tokens, 0

    def sum(self, depth: int) -> _Value:
        value = self._product(depth)
        while self._next("+"):
            value = _added(value, self._product(depth))
        return value

    def _product(self, depth: int) -> _Value:
        value = self._single(depth)
        while self._next("*"):
            value = _multiplied(value, self._single(depth))
        return value

    def _single(self, depth: int) -> _Value:
        if depth > _MAX_DEPTH:
            raise ValueError("too deep")
        token = self._tokens[self.at]
        self.at += 1
        if token.isdecimal():
            return int(token)
        if token == "(":
            value = self.sum(depth + 1)
            self._close(")")
            return value
        if token != "[":
            raise ValueError(token)
        return self._list(depth)

    def _list(self, depth: int) -> list[int]:
        values: list[int] = []
        while not self._next("]"):
            value = self.sum(depth + 1)
            if isinstance(value, list):
                raise ValueError("a list in a list")
            values.append(value)
            if not self._next(","):
                self._close("]")
                break
        return values

    def _next(self, token: str) -> bool:
        found = self.at < len(self._tokens) and self._tokens[self.at] == token
        self.at += found
        return found

    def _close(self, token: str) -> None:
        if not self._next(token):
            raise ValueError(f"{token} is missing")


def _added(a: _Value, b: _Value) -> _Value:
    if isinstance(a, list) and isinstance(b, list):
        _limited(len(a) + len(b))
        return a + b
    if isinstance(a, int) and isinstance(b, int):
        return _limited(a + b)
    raise ValueError("a number and a list")


def _multiplied(a: _Value, b: _Value) -> _Value:
    if isinstance(a, int) and isinstance(b, int):
        return _limited(a * b)
    values, count = (a, b) if isinstance(a, list) else (b, a)
    if not isinstance(values, list) or not isinstance(count, int):
        raise ValueError("two lists")
    _limited(len(values) * count)
    return values * count


def _limited(size: int) -> int:
    if size > MAX_LAYERS:
        raise ValueError("too many layers")
    return size
