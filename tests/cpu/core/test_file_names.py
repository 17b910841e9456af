"""Claims of `pp_export.core.file_names`: a name that may be opened is one plain component."""

from __future__ import annotations

import pytest

from pp_export.core.file_names import is_weight_file, number_of, numbered_weights


@pytest.mark.parametrize(
    "name", ["model.safetensors", "a.b-C_9.safetensors", "-.safetensors", "x" * 243 + ".safetensors"]
)
def test_plain_names(name: str) -> None:
    """Letters, digits, dots, hyphens and underscores make a name."""
    assert is_weight_file(name)


@pytest.mark.parametrize(
    "name",
    [
        *("../x.safetensors", "/x.safetensors", "a/x.safetensors", "a\\x.safetensors", ".x.safetensors"),
        *("x.safetensors\n", "x\0.safetensors", "é.safetensors", "x.bin", ".safetensors", ""),
        *("x" * 244 + ".safetensors", b"x.safetensors", 7, None, ["x.safetensors"]),
    ],
)
def test_names_that_lead_elsewhere(name: object) -> None:
    """Nothing that could be a path, a hidden file, too long a name or no name at all passes."""
    assert not is_weight_file(name)


def test_numbers_come_back() -> None:
    """The numbers of a file that is one of many are read from the name that was made of them."""
    for number, total in ((1, 1), (7, 12), (99_999, 100_000), (123_456, 123_456)):
        name = numbered_weights(number, total)
        assert number_of(name) == (number, total)
        assert is_weight_file(name)
    assert numbered_weights(1, 2) == "model-00001-of-00002.safetensors"
    for name in ("model.safetensors", "model-1-of-2.safetensors", "model-00001-of-00002.bin"):
        assert number_of(name) is None
    assert number_of("model-\u0661\u0661\u0661\u0661\u0661-of-00002.safetensors") is None
