"""Sections as one HTML document."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from importlib import resources

from pp_export.view.pages.sections import Section

_STYLES = ("page.css", "tables.css")
_SCRIPTS = ("texts.js", "canvas.js", "tables.js", "charts.js", "timeline.js", "page.js")
"""In the order in which they need each other; one script on the page."""


def page(title: str, sections: Iterable[Section]) -> bytes:
    """The page with these sections, but for those without content. No text of theirs can be markup."""
    shown = [each for each in sections if each]
    data = json.dumps({"sections": shown}, ensure_ascii=True, separators=(",", ":"))
    for mark in "<>&":  # whatever a browser might take for the end of the data
        data = data.replace(mark, f"\\u{ord(mark):04x}")
    parts = {
        "title": html.escape(title),
        "style": "".join(map(_asset, _STYLES)),
        "script": "".join(map(_asset, _SCRIPTS)),
        "data": data,
    }
    pieces = _asset("page.html").split("{{")
    for number, piece in enumerate(pieces[1:], start=1):
        name, _, rest = piece.partition("}}")
        pieces[number] = parts[name] + rest
    return "".join(pieces).encode("utf-8", "backslashreplace")  # paths need not be text


def _asset(name: str) -> str:
    return resources.files("pp_export.view.pages").joinpath("assets", name).read_text(encoding="utf-8")
