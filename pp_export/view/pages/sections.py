"""The sections that pages are made of. One without content is empty, and left out by the page.

A table holds plain values, so that it sorts by them; how they are said is a matter of the page's scripts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Section = dict[str, Any]
Kind = Literal["text", "code", "count", "bytes", "seconds", "number", "shape"]
"""How a column's values are said: `number` in three digits, `shape` a list of sizes, `code` in one width."""


@dataclass(frozen=True)
class Column:
    """A column of a table. With `choices` one of its values can be picked to see its rows alone; `repeats`:
    few values stand in many rows, and each is written once.
    """

    name: str
    kind: Kind = "text"
    choices: bool = False
    repeats: bool = False


def verdict(text: str, *, good: bool) -> Section:
    """What a report says in one line."""
    return {"kind": "verdict", "title": "", "text": text, "good": good}


def facts(title: str, rows: Mapping[str, str], note: str = "") -> Section:
    """Texts by name."""
    return {"kind": "facts", "title": title, "note": note, "rows": list(rows.items())} if rows else {}


def notes(texts: Sequence[str]) -> Section:
    """Sentences of a report, numbered."""
    return facts("Notes", {str(number): text for number, text in enumerate(texts, start=1)})


def table(title: str, columns: Sequence[Column], rows: Iterable[Sequence[Any]], note: str = "") -> Section:
    """Rows that can be sorted, and searched where they are many."""
    values = [list(row) for row in rows]
    if not values:
        return {}
    told = []
    for at, column in enumerate(columns):
        each: Section = {"name": column.name, "as": column.kind}
        if column.choices:
            each["choices"] = True
        if column.repeats:
            numbers: dict[Any, int] = {}
            for row in values:
                row[at] = numbers.setdefault(_hashable(row[at]), len(numbers))
            each["values"] = list(numbers)
        told.append(each)
    return {"kind": "table", "title": title, "note": note, "columns": told, "rows": values}


def pairs(title: str, names: tuple[str, str], rows: Mapping[str, Any], note: str = "") -> Section:
    """A table of values by name."""
    return table(
        title, [Column(names[0], "code"), Column(names[1])], ((k, said(v)) for k, v in rows.items()), note
    )


def listed(title: str, name: str, texts: Iterable[str], note: str = "") -> Section:
    """A table of names alone."""
    return table(title, [Column(name, "code")], ([text] for text in texts), note)


def bars(title: str, series: Mapping[str, Sequence[float]], unit: str, note: str = "") -> Section:
    """A bar for each rank, of each series; `unit` is `bytes` or `s`."""
    shown = {name: values for name, values in series.items() if any(values)}
    if not shown:
        return {}
    return {"kind": "bars", "title": title, "note": note, "series": shown, "of": "rank", "unit": unit}


def lines(
    title: str, series: Mapping[str, Sequence[tuple[int, float]]], of: str, zero: str, note: str = ""
) -> Section:
    """A line for each series over whole numbers, which `of` names, on a logarithmic scale; what is 0 lies
    below it, as `zero`.
    """
    if not any(series.values()):
        return {}
    shown = {name: [list(point) for point in points] for name, points in series.items()}
    return {"kind": "lines", "title": title, "note": note, "series": shown, "of": of, "zero": zero}


def said(value: Any) -> str:
    """A JSON value as text; a text is itself."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
