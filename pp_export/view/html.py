"""Plans and exports as one HTML page each, which needs nothing but itself.

A page is data and what draws it (`view/page/`): a list of sections, each of a kind that the page's script has
a function for. To show something else, make another section.
"""

from __future__ import annotations

import html
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from statistics import median_low
from typing import TYPE_CHECKING, Any

from pp_export.core.timeline import WORDS, Timeline
from pp_export.disk import files
from pp_export.view.text import human_bytes, machine_facts

if TYPE_CHECKING:
    from pp_export.options.kinds import RunOptions
    from pp_export.steps.plan_report import PlanReport
    from pp_export.steps.report import ExportReport

Section = dict[str, Any]

_MAX_LINKS = 40
_COARSE = (
    "Of many ranks, some. Drag to move, double click or Ctrl and the wheel to zoom. Paler: merged spans, with"
    " pauses between them."
)


def write_plan(path: Path, report: PlanReport) -> None:
    """Draw what an export would do, replacing an older page."""
    files.write_file(path, [plan_page(report)])


def write_export(path: Path, report: ExportReport) -> None:
    """Draw what an export did, replacing an older page."""
    files.write_file(path, [export_page(report)])


def write_files(options: RunOptions, done: ExportReport) -> ExportReport:
    """Write what `options` ask for of an export that is published, its page and its report; called on rank 0.
    What can't be written is a note in the report that is returned: the export stands.
    """
    from pp_export.steps import report_files

    if options.html is not None:
        done = report_files.written(done, partial(write_export, options.html))
    if options.report is not None:
        done = report_files.written(done, partial(report_files.write_done, options.report))
    return done


def plan_page(report: PlanReport) -> bytes:
    """The prediction, its timeline, and what each rank does."""
    found, ranks = report.prediction, report.ranks
    of_rank = {
        "reads": [rank.read_bytes for rank in ranks],
        "sends": [rank.sent_bytes for rank in ranks],
        "writes": [rank.written_bytes for rank in ranks],
        "verifies": found.verified_bytes,
    }
    model = {
        "model": f"{report.architecture}, {report.total_parameters:,} parameters",
        "files": f"{len(report.shards):,}, {human_bytes(report.total_size)}",
        "ranks": f"{len(ranks):,} in {report.num_stages:,} stages",
        "wire": f"{report.backend or 'nothing is sent'}: {report.backend_reason}",
        "wall time": f"{found.wall_seconds:.1f} s, bound by: {found.bound_by}",
        "plan": report.fingerprint,
    }
    sections = [
        _facts("The plan", model),
        _facts("Predicted for", machine_facts(found)),
        *_timeline("Predicted timeline", found.timeline),
        _bars("Bytes of each rank", of_rank, "bytes"),
        _bars("Ended", {"seconds after the start": found.ended_seconds}, "s"),
        _bars("Planned peak of memory", {"anonymous": [rank.peak_bytes for rank in ranks]}, "bytes"),
        *_links(found.links),
        _notes(report.notes),
    ]
    return page(f"Plan for {len(ranks):,} ranks", sections)


def export_page(report: ExportReport) -> bytes:
    """What an export took, its timeline, and its memory beside what was planned."""
    seconds = sum(report.seconds.values())
    facts = {
        "output": report.output,
        "checkpoint": report.checkpoint,
        "model": f"{report.architecture}, {report.total_parameters:,} parameters",
        "files": f"{report.num_files:,}, {human_bytes(report.total_size)}",
        "verified": "every byte was re-read" if report.verified else "NOT verified",
        "wire": f"{report.backend or 'nothing was sent'}: {report.backend_reason}",
        "seconds": f"{seconds:.1f}: " + ", ".join(f"{k} {v:.2f}" for k, v in report.seconds.items()),
    }
    memory = {"measured": report.peak_anonymous_bytes, "planned": report.planned_peak_bytes}
    sections = [
        _facts("The export", facts),
        *_timeline("Measured timeline", report.timeline),
        _bars("Peak of anonymous memory of each rank", memory, "bytes"),
        *_links(report.links),
        _notes(report.notes),
    ]
    return page(f"Export of {Path(report.checkpoint).name}", sections)


def page(title: str, sections: Iterable[Section]) -> bytes:
    """The page with these sections, but for those without content. No text of theirs can be markup."""
    shown = [each for each in sections if each]
    data = json.dumps({"sections": shown}, ensure_ascii=True, separators=(",", ":"))
    for mark in "<>&":  # whatever a browser might take for the end of the data
        data = data.replace(mark, f"\\u{ord(mark):04x}")
    template = resources.files("pp_export.view").joinpath("page")
    parts = {
        "title": html.escape(title),
        "style": template.joinpath("page.css").read_text(encoding="utf-8"),
        "script": template.joinpath("page.js").read_text(encoding="utf-8"),
        "data": data,
    }
    pieces = template.joinpath("page.html").read_text(encoding="utf-8").split("{{")
    for number, piece in enumerate(pieces[1:], start=1):
        name, _, rest = piece.partition("}}")
        pieces[number] = parts[name] + rest
    return "".join(pieces).encode("utf-8", "backslashreplace")  # paths need not be text


def _facts(title: str, rows: Mapping[str, str]) -> Section:
    return {"kind": "facts", "title": title, "rows": list(rows.items())}


def _notes(notes: Sequence[str]) -> Section:
    return _facts("Notes", {str(number): note for number, note in enumerate(notes, start=1)}) if notes else {}


def _bars(title: str, series: Mapping[str, Sequence[float]], unit: str) -> Section:
    return {"kind": "bars", "title": title, "series": dict(series), "of": "rank", "unit": unit}


def _timeline(title: str, value: Mapping[str, Any]) -> list[Section]:
    """A timeline, and in numbers how long ranks were busy with what."""
    timeline = Timeline.from_json(value)
    busy: defaultdict[str, Counter[int]] = defaultdict(Counter)
    num_bytes = Counter[str]()
    for rank in timeline.ranks:
        for span in (span for lane in rank.lanes for span in lane.spans):
            busy[span.word][rank.rank] += span.busy_seconds  # type: ignore[assignment]
            num_bytes[span.word] += span.num_bytes
    rows = []
    for word in (word for word in WORDS if word in busy):
        (most_at, most), *_ = busy[word].most_common(1)
        median = median_low(busy[word].values())
        rows.append([word, f"{median:.3f} s", f"{most:.3f} s", most_at, human_bytes(num_bytes[word])])
    columns = ["word", "median of the ranks", "most", "of rank", "bytes of all shown"]
    return [
        {"kind": "timeline", "title": title, "note": _COARSE, "timeline": value, "end": timeline.end},
        {"kind": "table", "title": f"{title}: seconds busy", "columns": columns, "rows": rows},
    ]


def _links(links: Sequence[Mapping[str, int]]) -> list[Section]:
    """What went from rank to rank; of many, the most."""
    if not links:
        return []
    most = sorted(links, key=lambda link: -link["bytes"])[:_MAX_LINKS]
    rows = [[link["sender"], link["receiver"], human_bytes(link["bytes"])] for link in most]
    title = f"Links: {len(links):,}, {human_bytes(sum(link['bytes'] for link in links))}"
    title += f"; the {_MAX_LINKS} with most" * (len(links) > _MAX_LINKS)
    return [{"kind": "table", "title": title, "columns": ["from rank", "to rank", "bytes"], "rows": rows}]
