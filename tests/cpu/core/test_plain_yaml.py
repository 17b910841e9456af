"""Claims of `pp_export.core.plain_yaml`: plain values, and no text takes more than it has."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest

from pp_export.core.plain_yaml import MAX_BYTES, MAX_DEPTH, MAX_VALUES, YamlError, parse

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi")
)
MERGES = "a: &a {k: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 9)}]}}\n" for old, new in zip("abcdefgh", "bcdefghi")
)


def test_plain_values_are_read() -> None:
    """Mappings, lists, numbers, texts; aliases and merges too, as long as they stay small."""
    text = "a: &x {b: 1, c: [2.5, true, null, 'd']}\ne: *x\nf: {<<: *x, b: 2}\n"
    inner = {"b": 1, "c": [2.5, True, None, "d"]}
    assert parse(text) == parse(text.encode()) == {"a": inner, "e": inner, "f": {**inner, "b": 2}}
    assert parse("[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)) is not None
    assert parse("") is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "unfolds into more than"),
        (MERGES, None),
        ("&a [*a]", "contains itself"),
        ("&a {b: *a}", "contains itself"),
        ("[" * 50_000, "nested more than"),
        ("a: " * 50_000, "not YAML"),
        ("- " * 50_000 + "1", "nested more than"),
        ("\n".join(" " * i + "a:" for i in range(500)), "nested more than"),
        ("? " * 50_000, "nested more than"),
        ("9" * 5000, "not YAML"),
        ("a: " + "9" * 500, "more than 64 bits"),
        ("0x" + "f" * 500, "more than 64 bits"),
        ("1:" * 400 + "1", "more than 64 bits"),
        ("2001-99-99", "not YAML"),
        ("0x", None),
        ("!!python/object/apply:os.system ['true']", "not YAML"),
        ("!!python/name:os.system", "not YAML"),
        ("{[a]: 1}", "not YAML"),
        ("\0", "not YAML"),
        (b"\xff\xfe\xfd", "not YAML"),
        ("x" * (MAX_BYTES + 1), "more than 262,144 bytes"),
        ("[" + "1," * (MAX_VALUES + 1) + "]", "has more than 50,000 values"),
        ("{" + ",".join(f"{(2**61 - 1) * i}: 1" for i in range(5, 3000)) + "}", "more than 64 bits"),
    ],
)
def test_anything_else_is_refused(text: str | bytes, words: str | None) -> None:
    """Every trick ends with a reason, which is short, and a bomb does not take longer to refuse than to
    read.
    """
    begun = time.process_time()
    if words is None:  # releases of PyYAML differ
        with suppress(YamlError):
            parse(text)
    else:
        with pytest.raises(YamlError, match=words) as refused:
            parse(text)
        assert len(str(refused.value)) < 300
    assert time.process_time() - begun < 20
