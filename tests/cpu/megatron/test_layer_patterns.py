"""Claims of `pp_export.megatron.layer_patterns`: a text means what Python makes of it, or nothing."""

from __future__ import annotations

import random

import pytest

from pp_export.core.settings import UNKNOWN
from pp_export.megatron import settings
from pp_export.megatron.layer_patterns import parse


@pytest.mark.parametrize(
    "text",
    [
        "([0]*3+[1]*58)",
        "[0,1,1]",
        "([1]*3+[0]*1)*3",
        "2*([1]+[0]*2)",
        "[0]*(1+2)+[1,0,]",
        "[]",
        "[]*4+[1]",
        "[1]*0",
        "4",
        "(3)",
        "2*3+1",
        "[2*3,1+1]",
    ],
)
def test_patterns_are_what_python_makes_of_them(text: str) -> None:
    """The texts of Megatron's own help among them."""
    assert parse(text) == eval(text)


def test_what_is_read_of_random_texts_is_what_python_makes_of_them() -> None:
    """Texts over the letters of the grammar; Python itself allows more of them."""
    generator, num_read = random.Random(7), 0
    for _ in range(30_000):
        text = "".join(generator.choice("01239,[]()+*") for _ in range(generator.randrange(1, 9)))
        read = parse(text)
        if read is not None:
            assert read == eval(text), text
            num_read += 1
    assert num_read > 500


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[0]*3 + [1]",
        "[0]*-1",
        "[0]**2",
        "[[0]]",
        "[0]+1",
        "[0]*[1]",
        "([0]",
        "[0])",
        "__import__('os')",
        "[0]*999999",
        "[0]*99999*99999",
        "999999*999999*999999",
        "(" * 50 + "1" + ")" * 50,
        "M*M-",
        "[007]",
        "0" * 200_000,
    ],
)
def test_anything_else_is_none(text: str) -> None:
    """No name, no sign, no unending list; what isn't a pattern stays the text that it is."""
    assert parse(text) is None


def test_settings_are_compared_as_lists() -> None:
    """As Megatron itself stores them; a text of which nothing is known says nothing."""
    args = {
        "num_layers": 4,
        "num_experts": 8,
        "window_size": (7, 0),
        "seq_length": 64,
        "experimental_attention_variant": "gated_delta_net",
        "moe_layer_freq": "([0]*1+[1]*3)",
        "no_rope_freq": "[0,1]*2",
        "window_attn_skip_freq": "[1,0,0,1]",
        "linear_attention_freq": "([1]*3+[0])",
    }
    derived = settings.derive(args)
    assert derived["moe_layers"].value == [0, 1, 1, 1]
    assert derived["rope_layers"].value == [1, 0, 1, 0]
    assert derived["windows"].value == [8, None, None, 8]
    assert derived["linear_layers"].value == [1, 1, 1, 0]
    assert settings.derive({**args, "moe_layer_freq": "2"})["moe_layers"].value == [1, 0, 1, 0]
    assert settings.derive({**args, "moe_layer_freq": "every second"})["moe_layers"].value is UNKNOWN
