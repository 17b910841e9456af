"""Claims: each report's page shows itself in a browser, alone and without a complaint; its tables sort,
search and filter, its drawings tell of what is under the pointer, and no name in it is markup.

`make test-browser` installs Chromium and what drives it, and runs this; `make figures` also puts the pictures
of the pages where the documentation shows them.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import xxhash
from safetensors import safe_open

from pp_export.shards.manifests import ShardManifest, TensorManifest
from pp_export.steps.report import ExportReport
from pp_export.view.pages.exported import export_page
from tests.browser.browser import Browser, missing
from tests.browser.reports import LAYERS, MARKUP, NASTY_TENSOR, NOTE, Reports, make_reports
from tests.fixtures.hf_folders import header_of
from tests.fixtures.processes import ROOT

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())
FIGURES = ROOT / "docs" / "figures"
MAX_PICTURE_BYTES = 150_000
PAGES = {
    "plan": {"The plan", "Predicted timeline", "Bytes of each rank", "Planned peak of memory", "Not checked"},
    "export": {"Measured timeline", "Peak of anonymous memory of each rank", "Not checked", "config.json"},
    "many": {"Iterations: 2"},
    "inspect_metadata": {"The checkpoint", "Training args"},
    "inspect": {"The checkpoint", "Tensors: 87", "Training args"},
    "verify_ok": {"What was checked"},
    "verify": {"What was checked", "Faults", "Files at fault", "What these faults are"},
    "diff": {"The comparison", "Errors over the layers", "Errors by layer", "Only in B: 1 tensor"},
    "diff_nasty": {"The comparison"},
    "verify_nasty": {"Faults"},
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reports]:
    """Pictures for the documentation are made of reports in a folder whose name can be shown."""
    if "PP_EXPORT_FIGURES" not in os.environ:
        yield make_reports(tmp_path_factory.mktemp("reports"))
        return
    root = Path(tempfile.gettempdir(), "demo")
    root.mkdir()
    try:
        yield make_reports(root)
    finally:
        shutil.rmtree(root)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as running:
        yield running


@pytest.mark.parametrize("name", PAGES)
def test_every_page_shows_itself(reports: Reports, browser: Browser, name: str) -> None:
    """All sections are there, everything that draws has drawn, and the page asked for nothing."""
    browser.open(reports.page(name))
    assert set(browser.titles) >= PAGES[name]
    for section in map(browser.section, browser.titles):
        assert section.rows or section.facts or section.is_drawn()
    browser.check()


def test_the_tensors_are_those_of_the_files(reports: Reports, browser: Browser) -> None:
    """Sorted by name or size, by a click on the column, the rows are what safetensors' own reader finds; more
    than a hundred are leafed through.
    """
    browser.open(reports.page("export"))
    tensors = browser.section("Tensors")
    sizes = {name: size for _, name, size, _ in stored(reports)}
    assert tensors.count == f"1\u2013100 of {len(sizes)}"
    tensors.click("tensor")
    ordered = tensors.column(0)
    tensors.click("\u203a")
    ordered += tensors.column(0)
    assert sorted(ordered) == sorted(sizes)
    ends = [ordered.index(f"model.layers.{layer}.mlp.up_proj.weight") for layer in range(LAYERS)]
    assert ends == sorted(ends), "layer 10 comes after layer 2"
    tensors.click("bytes")
    assert sizes[tensors.column(0)[0]] == max(sizes.values())
    tensors.click("bytes")
    assert sizes[tensors.column(0)[0]] == min(sizes.values())
    found = [sizes[name] for name in tensors.column(0)]
    assert found == sorted(found)
    browser.check()


def test_tensors_are_searched_by_name_and_digest(reports: Reports, browser: Browser) -> None:
    """Words that are typed leave the rows that have all of them, also a digest, which is that of the bytes in
    the file; a file that is picked leaves its tensors.
    """
    browser.open(reports.page("export"))
    tensors = browser.section("Tensors")
    tensors.type("LAYERS.3. proj bias")
    names = [name for _, name, _, _ in stored(reports)]
    assert sorted(tensors.column(0)) == sorted(
        name for name in names if "layers.3." in name and "proj" in name and "bias" in name
    )
    assert tensors.count == f"3 (of {len(names)})"
    file, name, _, digest = stored(reports)[7]
    tensors.type(digest)
    row = next(row for row in tensors.rows if row[0] == name)
    assert row[5] == file
    tensors.type("")
    assert tensors.count == f"1\u2013100 of {len(names)}"
    tensors.pick(file)
    assert sorted(tensors.column(0)) == sorted(n for f, n, _, _ in stored(reports) if f == file)
    tensors.type("nothing has this name")
    assert tensors.rows == []
    browser.check()


def test_drawings_tell_what_is_under_the_pointer(reports: Reports, browser: Browser) -> None:
    """A rank's memory beside its plan; the timeline, at another scale after a click; and errors of a layer,
    without a series that was switched off.
    """
    browser.open(reports.page("export"))
    told = browser.section("Peak of anonymous memory").point(0.2, 0.9)
    assert told.startswith("rank 0\nmeasured: ")
    assert "planned: " in told
    timeline = browser.section("Measured timeline")
    before = timeline.element.find_element("tag name", "canvas").screenshot_as_png
    timeline.click("+")
    assert timeline.element.find_element("tag name", "canvas").screenshot_as_png != before
    browser.check()

    browser.open(reports.page("diff"))
    errors = browser.section("Errors over the layers")
    layers = browser.section("Errors by layer")
    layers.type("mlp")
    largest = next(row[5] for row in layers.rows if row[1] == str(LAYERS - 1))
    assert errors.point(0.98, 0.5).splitlines()[0] == f"layer {LAYERS - 1}"
    assert f"mlp: {largest}" in errors.point(0.98, 0.5)
    drawn = errors.element.find_element("tag name", "canvas").screenshot_as_png
    errors.click("mlp")
    assert errors.element.find_element("tag name", "canvas").screenshot_as_png != drawn
    browser.check()


def test_faults_are_found_by_kind_and_file(reports: Reports, browser: Browser) -> None:
    """Each thing that was broken is named; a kind that is picked leaves its faults."""
    browser.open(reports.page("verify"))
    faults = browser.section("Faults")
    assert {row[2] for row in faults.rows} == {"wrong-digest", "missing-file", "unlisted-file"}
    faults.pick("wrong-digest")
    assert {row[0][:11] for row in faults.rows} == {"model-00002", "model-00004"}
    faults.type("k_proj.bias")
    assert [row[1] for row in faults.rows] == ["model.layers.2.self_attn.k_proj.bias"]
    assert "recorded is" in faults.rows[0][3]
    browser.check()


@pytest.mark.parametrize("name", ["diff_nasty", "verify_nasty", "verify"])
def test_no_name_is_markup(reports: Reports, browser: Browser, name: str) -> None:
    """What looks like markup in names of folders, files, tensors and settings is read as it is."""
    browser.open(reports.page(name))
    assert NOTE in browser.text if name == "verify" else MARKUP in browser.text
    if name == "diff_nasty":
        assert NASTY_TENSOR in browser.text
        browser.section("Of other values").type("<B>3&AMP;</B>")
        assert browser.section("Of other values").column(0) == ["model.layers.3.mlp.<b>3&amp;</b>.weight"]
    assert browser.driver.title != "ran"
    assert (
        browser.driver.find_elements("css selector", "main img, main b, main i:not(.legend i), main u, s")
        == []
    )
    browser.check()


def test_very_many_tensors_can_be_searched(reports: Reports, browser: Browser, tmp_path: Path) -> None:
    """The page of an export of 200,000 tensors shows a hundred of them, and finds and sorts all."""
    report = ExportReport.from_json(json.loads((reports.root / "export.json").read_bytes()))
    tensors = tuple(
        TensorManifest(
            f"model.layers.{n // 2000}.mlp.experts.{n % 2000}.up_proj.weight",
            "BF16",
            (n % 7 + 1, 8),
            0,
            n + 1,
            f"{n:032x}",
        )
        for n in range(200_000)
    )
    shard = ShardManifest("model-00001-of-00001.safetensors", 1, "0" * 64, "0" * 32, tensors)
    page = tmp_path / "many.html"
    page.write_bytes(export_page(report, [shard]))
    browser.open(page)
    found = browser.section("Tensors: 200,000")
    assert len(found.rows) == 100
    found.click("bytes")
    assert found.rows[0][0] == "model.layers.99.mlp.experts.1999.up_proj.weight"
    found.type("layers.42. experts.17.")
    assert found.column(0) == ["model.layers.42.mlp.experts.17.up_proj.weight"]
    browser.check()


PICTURES = {
    "report-export": ("export", "", 700),
    "report-timeline": ("export", "Measured timeline", 620),
    "report-tensors": ("export", "Tensors", 380),
    "report-plan": ("plan", "Bytes of each rank", 760),
    "report-verify": ("verify", "", 760),
    "report-diff": ("diff", "", 860),
    "report-inspect": ("inspect", "", 780),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pages_have_their_picture_taken(
    reports: Reports, browser: Browser, name: str, tmp_path: Path
) -> None:
    """The pictures that the documentation shows can be made at any time, and are small; `make figures` puts
    them there.
    """
    page, section, height = PICTURES[name]
    browser.open(reports.page(page))
    folder = FIGURES if "PP_EXPORT_FIGURES" in os.environ else tmp_path
    picture = folder / f"{name}.png"
    browser.picture(picture, height=height, at=browser.section(section) if section else None)
    assert 5_000 < picture.stat().st_size < MAX_PICTURE_BYTES
    assert f"figures/{name}.png" in (ROOT / "docs" / "reports.md").read_text()
    assert (FIGURES / f"{name}.png").is_file()


def test_dark_pages_are_for_who_wants_them(reports: Reports) -> None:
    """Where the user prefers dark pages, text is brighter than paper."""

    def brightness(color: str) -> int:
        return sum(map(int, color.partition("(")[2].rstrip(")").split(",")[:3]))

    with Browser(dark=True) as dark:
        dark.open(reports.page("diff"))
        body = dark.driver.find_element("tag name", "body")
        ink, paper = (body.value_of_css_property(name) for name in ("color", "background-color"))
        assert brightness(ink) > brightness(paper)
        dark.check()


def stored(reports: Reports) -> list[tuple[str, str, int, str]]:
    """File, name, bytes and XXH3-128 of each tensor of the export, by safetensors and xxhash."""
    found = []
    for file in sorted((reports.root / "exports" / "run").glob("*.safetensors")):
        with safe_open(file, framework="numpy") as opened:
            names = list(opened.keys())
        header, start = header_of(file)
        image = file.read_bytes()
        for name in names:
            begin, end = header[name]["data_offsets"]
            digest = xxhash.xxh3_128_hexdigest(image[start + begin : start + end])
            found.append((file.name, name, end - begin, digest))
    return found
