"""Pages: whole in themselves, well-formed, and safe whatever names they show."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pp_export.core.timeline import Lane, RankTimeline, Span, Timeline
from pp_export.distributed.backends import Backend
from pp_export.options.cluster import ClusterOptions
from pp_export.steps import report
from pp_export.steps.inputs import Whole, plan_export
from pp_export.steps.measured import Measured
from pp_export.steps.plan_report import PlanReport, plan_report
from pp_export.steps.report import Completed, ExportReport
from pp_export.view import html
from pp_export.view.pages import document
from pp_export.view.pages.exported import export_page
from pp_export.view.pages.planned import plan_page
from tests.fixtures.launch import ROOT
from tests.fixtures.planned import Planned

NASTY = "</script><b onload='x'>&amp; {{data}} \u2028 ]]> <!-- é"
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Parsed(HTMLParser):
    """A page's elements; fails where one is not closed, or closes another."""

    def __init__(self, page: bytes) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(page.decode())
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]][-1] += data

    @property
    def data(self) -> Any:
        return json.loads(self.texts["script"][0])


def sections_of(page: bytes) -> dict[str, Any]:
    return {section["title"]: section for section in Parsed(page).data["sections"]}


def drawn(page: bytes) -> Any:
    """What the page's script shows in a stand-in for a browser."""
    stub = ROOT / "tests" / "fixtures" / "page_stub.js"
    run = subprocess.run(["node", str(stub)], input=page, capture_output=True, check=True)
    return json.loads(run.stdout)


@pytest.fixture(scope="module")
def plan(planned: Planned) -> PlanReport:
    return plan_report(planned.inputs, planned.plan, "auto", ClusterOptions(world_size=4, nodes=2, cores=8))


@pytest.fixture(scope="module")
def done(planned: Planned) -> ExportReport:
    """The report of an export by four ranks, each of which read a file and waited."""
    measured = []
    for rank in range(4):
        spans = (Span("reads", 0.5, 1.0, 3_000_000, NASTY), Span("waits", 1.0, 1.5))
        timeline = RankTimeline(rank, 10**18 + rank * 250_000_000, (Lane("reader", spans),))
        image = Measured(10**8 + rank, {(rank + 1) % 4: 5}, {}, timeline).to_bytes()
        measured.append(Measured.from_bytes(image))
    seconds = {"plan": 0.5, "export": 1.0}
    whole = Whole(planned.inputs, planned.plan)
    return report.succeeded(whole, planned.options, Backend("gloo", "why"), Completed(), measured, seconds)


def test_a_page_is_well_formed_whatever_it_shows() -> None:
    """Names that look like the end of the data, like markup or like a place of the template change nothing:
    the page has the same elements, and gives each text back.
    """
    pages = []
    for text in ("plain", NASTY):
        section: dict[str, Any] = {"kind": "facts", "title": text, "rows": [[text, text]]}
        pages.append(Parsed(document.page(text, [section])))
    plain, nasty = pages
    assert nasty.attributes == plain.attributes
    assert nasty.texts.keys() == plain.texts.keys()
    assert nasty.texts["title"] == nasty.texts["h1"] == [NASTY]
    assert nasty.data == {"sections": [{"kind": "facts", "title": NASTY, "rows": [[NASTY, NASTY]]}]}


def test_a_page_needs_nothing_but_itself(plan: PlanReport, done: ExportReport) -> None:
    """No address, no file, no other script: it is shown offline as it is, without anybody hearing of it."""
    for page in (plan_page(plan), export_page(done)):
        assert page.count(b"<script") == 2
        parsed = Parsed(page)
        assert {name for name, _ in parsed.attributes} <= {"lang", "charset", "name", "content", "type", "id"}
        code = "\n".join([*parsed.texts["style"], parsed.texts["script"][1]])
        for word in ("http", "//cdn", "url(", "@import", "fetch", "import(", "XMLHttp", "innerHTML", "eval"):
            assert word not in code, word


def test_the_plan_s_page_holds_the_prediction(plan: PlanReport) -> None:
    """The timeline, what each rank reads, writes and takes of memory, and what bounds it."""
    sections = sections_of(plan_page(plan))
    assert sections["Predicted timeline"]["timeline"] == plan.prediction.timeline
    assert sections["Bytes of each rank"]["series"]["writes"] == [each.written_bytes for each in plan.ranks]
    assert sections["Planned peak of memory"]["series"] == {
        "anonymous": [each.peak_bytes for each in plan.ranks]
    }
    facts = dict(sections["The plan"]["rows"])
    assert facts["wall time"] == f"{plan.prediction.wall_seconds:.1f} s, bound by: {plan.prediction.bound_by}"
    assert "2 nodes with 8 cores" in dict(sections["Predicted for"]["rows"])["machine"]


def test_the_export_s_page_holds_what_was_measured(done: ExportReport) -> None:
    """Each rank's spans since the first began, memory beside the plan's, links, and seconds by word."""
    sections = sections_of(export_page(done))
    timeline = Timeline.from_json(sections["Measured timeline"]["timeline"])
    assert timeline.phases == {"plan": (0.0, 0.5), "export": (0.5, 1.5)}
    assert [rank.lanes[0].spans[0].begin for rank in timeline.ranks] == [0.5, 0.75, 1.0, 1.25]
    assert sections["Measured timeline"]["end"] == timeline.end == 2.25
    memory = sections["Peak of anonymous memory of each rank"]["series"]
    assert memory["measured"] == [10**8 + rank for rank in range(4)]
    assert memory["planned"] == list(done.planned_peak_bytes)
    assert sections["Measured timeline: seconds busy"]["rows"] == [
        ["waits", 0.5, 0.5, 0, None],
        ["reads", 0.5, 0.5, 0, 12_000_000],
    ]
    (links,) = [each for title, each in sections.items() if title.startswith("Links: 4")]
    assert links["rows"][0] == [0, 1, 5]
    of_ranks = sections["Bytes of each rank"]["series"]
    assert of_ranks == {"reads": [3_000_000] * 4, "sends": [5] * 4, "receives": [5] * 4}


def test_what_was_left_out_corrected_and_not_checked_is_told(done: ExportReport) -> None:
    """Each tensor that was dropped, with the reason; corrections; NaNs; and everything that nothing was held
    against.
    """
    told = replace(
        done,
        dropped={NASTY: "it is no weight"},
        taken_from_reference=("taken",),
        config_corrections=("config.json: vocab_size is 7.",),
        not_finite={"burnt": 3},
        settings={"rotary_base": 10000, "windows": None},
        settings_unchecked=("windows",),
        args_unknown=("use_magic",),
        verified=False,
        source_checked=False,
    )
    sections = sections_of(export_page(told))
    assert sections["Left out of the model: 1"]["rows"] == [[NASTY, "it is no weight"]]
    assert sections["Taken from the reference: 1"]["rows"] == [["taken"]]
    assert ["corrected", "vocab_size is 7."] in sections["config.json"]["rows"]
    assert sections["NaN or infinity: 1 tensor"]["rows"] == [["burnt", 3]]
    assert sections["Settings of the function: 2"]["rows"] == [
        ["rotary_base", "10000", "the training args"],
        ["windows", "null", "nothing: not known"],
    ]
    assert dict(sections["Not checked"]["rows"]) == {
        "the folder": "nothing was re-read from the disk (--no-verify)",
        "the source": "its bytes were held against no checksums",
        "names and shapes": "held against the table itself alone: nothing independent confirms them",
        "settings": "the training args don't tell windows",
        "training args": "no table knows use_magic",
    }
    assert sections[""]["good"] is False


def test_a_page_of_very_many_ranks_stays_small(planned: Planned) -> None:
    """At 16,384 ranks the page is below 2 MB."""
    options = replace(planned.options, pipeline_parallel=None)
    made = plan_report(planned.inputs, plan_export(planned.inputs, options, 16384), "auto")
    page = plan_page(made)
    assert len(page) < 2_000_000
    assert len(sections_of(page)["Bytes of each rank"]["series"]["reads"]) == 16384


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node, as a browser's stand-in")
def test_the_script_shows_all_of_it(plan: PlanReport, done: ExportReport) -> None:
    """Run against a stand-in for a browser, the script of a page draws every lane, tells what a span was, and
    shows texts as they are.
    """
    shown = drawn(plan_page(replace(plan, notes=(NASTY,))))
    assert NASTY in shown["text"]
    assert plan.fingerprint in shown["text"]
    lanes = sum(len(rank["lanes"]) for rank in plan.prediction.timeline["ranks"])
    timeline = shown["canvases"][0]
    assert timeline["boxes"] > lanes
    assert {f"rank {rank}  main" for rank in range(4)} <= set(timeline["texts"])
    measured = drawn(export_page(done))["canvases"][0]
    told = "\n".join(measured["hints"])
    assert f"reader: reads {NASTY}" in told
    assert re.search(r"3 MB, 6 MB/s", told)


def test_pages_are_written_where_the_options_say(
    plan: PlanReport, done: ExportReport, tmp_path: Path
) -> None:
    """A page replaces an older one; of a folder without a manifest it says that no tensors are shown."""
    for _ in range(2):
        html.write_plan(tmp_path / "plan.html", plan)
        html.write_export(tmp_path / "export.html", done)
    assert (tmp_path / "plan.html").read_bytes() == plan_page(plan)
    notes = sections_of((tmp_path / "export.html").read_bytes())["Notes"]["rows"]
    assert "no tensors are shown" in notes[-1][1]
