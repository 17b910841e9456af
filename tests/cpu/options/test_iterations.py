"""Claims of `pp_export.options.iterations`: what is asked for is one export or many, and never by mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pp_export.core.errors import OptionError
from pp_export.options.iterations import Wanted, options_of, wanted
from pp_export.options.kinds import ExportOptions

PLACE = "/exports/run-{iteration}"


@pytest.mark.parametrize(
    ("iteration", "watch", "found"),
    [
        ("100,200,latest", False, Wanted((100, 200), latest=True)),
        (" 200, 100 ,200", False, Wanted((200, 100))),
        ([100, 200], False, Wanted((100, 200))),
        (100, False, Wanted((100,))),
        ("all", False, Wanted(all=True)),
        ("latest", False, Wanted(latest=True)),
        (None, False, Wanted(latest=True)),
        (None, True, Wanted(all=True, watch=True)),
        ("all", True, Wanted(all=True, watch=True)),
        ("latest", True, Wanted(latest=True, watch=True)),
    ],
)
def test_an_output_for_each_iteration_makes_many(iteration: Any, watch: bool, found: Wanted) -> None:
    """With {iteration} in the output, numbers, words and lists mean what they say; none is the latest, and
    all that there are for who watches.
    """
    values = {"output": PLACE, "dtype": "float16"} | ({} if iteration is None else {"iteration": iteration})
    assert wanted(values, watch=watch) == (found, {**values, "iteration": None})


@pytest.mark.parametrize(
    ("iteration", "left"), [(100, 100), ("100", "100"), ("latest", None), ("ten", "ten")]
)
def test_an_output_of_its_own_is_one_export(iteration: Any, left: Any) -> None:
    """Without it there is one export, as ever; `latest` is the tracker's, which is the default."""
    assert wanted({"output": "o", "iteration": iteration}, watch=False) == (
        None,
        {"output": "o", "iteration": left},
    )
    assert wanted({"checkpoint": "c"}, watch=False) == (None, {"checkpoint": "c"})


@pytest.mark.parametrize(
    ("values", "watch", "told"),
    [
        ({"output": "o", "iteration": "100,200"}, False, "several iterations need an output each"),
        ({"output": "o", "iteration": "all"}, False, "several iterations need an output each"),
        ({"output": "o", "iteration": [1, 2]}, False, "several iterations need an output each"),
        ({"output": "o"}, True, "several iterations need an output each"),
        ({}, True, "several iterations need an output each"),
        ({"output": PLACE, "iteration": "100,ten"}, False, "--iteration can't be read"),
        ({"output": PLACE, "iteration": "-3"}, False, "--iteration can't be read"),
        ({"output": PLACE, "iteration": ""}, False, "--iteration can't be read"),
        ({"output": PLACE, "iteration": "100"}, True, "--watch exports every save"),
    ],
)
def test_what_does_not_fit_together_is_refused(values: dict[str, Any], watch: bool, told: str) -> None:
    """Several exports never go to one folder, and what nobody could mean is named."""
    with pytest.raises(OptionError, match=told):
        wanted(values, watch=watch)


def test_each_iteration_has_its_own_output() -> None:
    """The number stands where the place was, wherever that is."""
    options = ExportOptions(
        checkpoint=Path("c"), reference=Path("r"), output=Path("/e/{iteration}/m-{iteration}")
    )
    of = options_of(options, 1000)
    assert (of.output, of.iteration) == (Path("/e/1000/m-1000"), 1000)
