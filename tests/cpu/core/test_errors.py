"""Claims of `pp_export.core.errors`: a message says what, where, expected, found and what to do, also on
other ranks.
"""

from __future__ import annotations

import json

import pytest

from pp_export.core import errors
from pp_export.core.errors import ExportError


def _kinds() -> list[type[ExportError]]:
    found, todo = [], [ExportError]
    while todo:
        kind = todo.pop()
        found.append(kind)
        todo += [each for each in kind.__subclasses__() if each.__module__ == errors.__name__]
    return sorted(found, key=lambda kind: kind.__name__)


KINDS = _kinds()


def _full(kind: type[ExportError]) -> ExportError:
    return kind(
        "it broke",
        where={"rank": 3, "file": "a.distcp"},
        expected=[1, 2],
        got=0,
        advice="do this",
        findings=["first", "second"],
    )


def test_message_has_every_field_in_reading_order() -> None:
    """The text names what, the places in their order, expected, got, the advice and every finding, a line
    each.
    """
    assert str(_full(ExportError)).splitlines() == [
        "it broke",
        "  where:    rank 3, file a.distcp",
        "  expected: [1, 2]",
        "  got:      0",
        "  do:       do this",
        "  - first",
        "  - second",
        "  more:     pp_export docs ExportError",
    ]
    assert str(ExportError("only this")) == "only this\n  more:     pp_export docs ExportError"


def test_many_findings_are_shortened_in_print_but_not_in_the_report() -> None:
    """A long list of findings is cut in the text, which says how many are left out; the JSON has them all."""
    error = ExportError("many", findings=[f"finding {number}" for number in range(100)])
    lines = str(error).splitlines()
    assert lines[-2] == f"  - and {100 - errors.MAX_PRINTED_FINDINGS} more (--report FILE lists all)"
    assert len(lines) == errors.MAX_PRINTED_FINDINGS + 3
    assert len(json.loads(json.dumps(error.to_json()))["findings"]) == 100
    assert "--report" not in str(ExportError("all", findings=["x"] * errors.MAX_PRINTED_FINDINGS))


def test_at_adds_places_and_keeps_known_ones() -> None:
    """`at` adds what a caller knows and never overwrites what the place of the failure knew better."""
    error = ExportError("it broke", where={"file": "inner"})
    assert error.at(file="outer", rank=1) is error
    assert error.where == {"file": "inner", "rank": "1"}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_json_round_trip_keeps_class_and_fields(kind: type[ExportError]) -> None:
    """An error that travels as JSON comes back as the same class with the same fields, on any rank."""
    error = _full(kind)
    back = errors.from_json(json.loads(json.dumps(error.to_json())))
    assert type(back) is kind
    assert back.to_json() == error.to_json()
    assert str(back) == str(error)


def test_an_unknown_kind_is_still_an_error() -> None:
    """A kind that this release doesn't know becomes the base class; missing fields stay empty."""
    back = errors.from_json({"kind": "FutureError", "what": "it broke"})
    assert type(back) is ExportError
    assert (back.where, back.expected, back.advice, back.findings) == ({}, None, None, ())
