"""Claims of `pp_export.core.strict_json`: what two parsers could read differently is refused."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pp_export.core.strict_json import MAX_DEPTH, JsonError, is_count, parse, parse_object

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**90), 10**90)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@settings(deadline=None)
@given(VALUES)
def test_what_json_can_say_is_read(value: object) -> None:
    """Any JSON value is read as Python's own reader reads it, escaped or not."""
    for ascii_only in (True, False):
        data = json.dumps(value, ensure_ascii=ascii_only).encode()
        assert parse(data) == json.loads(data) == value


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "Expecting value"),
        (b'{"a": 1} x', "Extra data"),
        (b'{"a": 1, "a": 1}', "'a' twice"),
        (b'[{"x": {"a": 1, "b": 2, "a": 3}}]', "'a' twice"),
        (b"NaN", "NaN"),
        (b"[Infinity]", "Infinity"),
        (b"[-Infinity]", "-Infinity"),
        (b"1e999", "not a finite number"),
        (b"-0", "integer"),
        (b"9" * 101, "integer"),
        (b"9" * 5000, "integer"),
        (b"[" * 100_000, "deep"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "deep"),
        (b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1), "deep"),
        (b'"\xff"', "UTF-8"),
        (b'"\xed\xa0\x80"', "UTF-8"),
        (b'"\\ud800"', "surrogates"),
        (b'{"\\uDC00": 1}', "surrogates"),
        ("\ufeff{}".encode(), "BOM"),
        ('"a"'.encode("utf-16"), "UTF-8"),
    ],
)
def test_anything_else_is_refused(data: bytes, words: str) -> None:
    """Each trick is refused with a reason, which is printable and short."""
    with pytest.raises(JsonError, match=words) as refused:
        parse(data)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 200


def test_depth_up_to_the_limit_and_whole_pairs_are_read() -> None:
    """The limits refuse nothing that keeps them."""
    value = parse(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    for _ in range(MAX_DEPTH - 1):
        (value,) = value
    assert value == []
    assert parse(b'"\\ud83d\\ude00 \\\\ud800"') == "\U0001f600 \\ud800"


def test_infinity_on_request() -> None:
    """Infinity is read where it is asked for, as a word or as a number too large; NaN never is."""
    assert parse(b"[Infinity, -Infinity, 1e999]", allow_infinity=True) == [math.inf, -math.inf, math.inf]
    with pytest.raises(JsonError, match="NaN"):
        parse(b"[NaN]", allow_infinity=True)


@pytest.mark.parametrize("data", [b"[1]", b"1", b"null", b'"{}"'])
def test_an_object_is_an_object(data: bytes) -> None:
    """Where an object is wanted nothing else will do."""
    assert parse_object(b'{"a": 1}') == {"a": 1}
    with pytest.raises(JsonError, match="not a JSON object"):
        parse_object(data)


def test_counts() -> None:
    """A count is an integer from 0 to 63 bits."""
    assert all(is_count(value) for value in (0, 1, (1 << 63) - 1))
    assert not any(is_count(value) for value in (-1, 1 << 63, True, 1.0, "1", None))
