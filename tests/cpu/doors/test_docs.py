"""Claims of the documentation as a whole: pages that are made of the code are up to date, every link leads
somewhere, and the site has every page.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import pytest

from pp_export.core import errors
from pp_export.options.kinds import ExportOptions
from tests.fixtures.generated_pages import DOCS, PAGES, all_messages
from tests.fixtures.messages import messages
from tests.fixtures.processes import ROOT

SITE = (ROOT / "zensical.toml").read_text(encoding="utf-8")
MADE_FOR_THE_SITE = "docs/messages.md"
TEXTS = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "launch").glob("*.md")])
ON_THE_SITE = ("docs/", "launch/", "configs/", "pp_export/schemas/")
"""Where links may lead, besides files of the top folder: what `make docs` copies."""


@pytest.mark.parametrize("name", PAGES)
def test_pages_that_are_made_of_the_code_are_up_to_date(name: str) -> None:
    """The page is what the code makes now: `python -m tests.fixtures.generated_pages` writes it anew."""
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name]()


def test_every_option_and_error_is_told() -> None:
    """Each option of an export stands on its page as key and flag, and messages of each class on theirs."""
    page = PAGES["options.md"]()
    for name in ExportOptions.__dataclass_fields__:
        assert f"| `{name}` | `--" in page
    kinds = set(re.findall(r"^## (\w+)$", all_messages(), re.MULTILINE))
    assert kinds >= {name for name in vars(errors) if name.endswith("Error")} - {"UnsafePickleError"}


def test_every_kind_of_message_is_told_in_the_words_of_the_design() -> None:
    """The page has errors, findings, faults, notes and log lines, and none of the words that the
    design does not use.
    """
    page = all_messages()
    for heading in ("Findings", "Faults", "Notes", "Log"):
        section = page.partition(f"## {heading}\n")[2].partition("\n## ")[0]
        assert section.count("\n- ") >= 5, heading
    assert not re.findall(r"^.*\b(?:chunks?|partitions?|fqns?|boxe?s?|utils)\b.*$", page, re.MULTILINE)


def test_what_troubleshooting_quotes_can_be_said() -> None:
    """Each message that the page explains is one of those in the code."""
    told = [plain(what) for _, what, _ in messages()] + [plain(what) for what in MADE_OF_PARTS]
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    tables = re.findall(r"^\| message \|.*\n\| ---.*\n((?:\|.*\n)+)", page, re.MULTILINE)
    rows = [row for table in tables for row in re.findall(r"^\| (.+?) \|", table, re.MULTILINE)]
    quoted = [each for row in rows for each in row.split("; ")]
    assert len(quoted) > 40
    assert [each for each in quoted if not any(plain(each) in what for what in told)] == []


MADE_OF_PARTS = (
    "unknown flag ...",
    "no progress for ... s: rank ... has not come",
    "no progress for ... s: the store ... is not at ...",
    "this may be a defect of pp_export",
)
"""What the source has no single text of."""


def plain(text: str) -> str:
    return re.sub(r"[`.]| \.\.\.", "", text).strip().lower()


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(text: Path) -> None:
    """Each relative link leads to a file that is there, and that the site has too, and to a heading of it."""
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text.read_text(encoding="utf-8"))):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (text.parent / path).resolve() if path else text
        name = file.relative_to(ROOT).as_posix()
        assert file.is_file() or name == MADE_FOR_THE_SITE, f"{target}: no such file"
        assert "/" not in name or name.startswith(ON_THE_SITE), f"{target}: the site doesn't have it"
        assert not anchor or anchor in anchors(file), f"{target}: no such heading"


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]+`", "", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE))


@cache
def anchors(file: Path) -> frozenset[str]:
    """Those of the headings, as code hosts and the site's generator make them."""
    text = re.sub(r"^```.*?^```$", "", file.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    plain = (re.sub(r"\]\([^)]*\)", "", heading).lower() for heading in headings)
    return frozenset(re.sub(r"[^\w\- ]", "", each).strip().replace(" ", "-") for each in plain)


def test_the_site_s_navigation_has_every_page() -> None:
    """Each page is named once, but decision records, which their own page lists; no page is named that isn't
    there.
    """
    named = re.findall(r'"([^"]+\.md)"', SITE)
    pages = {path.relative_to(ROOT).as_posix() for path in TEXTS if path.parent.name != "decisions"}
    assert sorted(named) == sorted({*pages, "docs/decisions/README.md", MADE_FOR_THE_SITE})
    records = {path.name for path in (DOCS / "decisions").glob("0*.md")}
    assert records == set(re.findall(r"\]\((0\S+\.md)\)", (DOCS / "decisions" / "README.md").read_text()))


@pytest.mark.parametrize("notebook", sorted(DOCS.rglob("*.ipynb")), ids=lambda path: path.name)
def test_notebooks_are_kept_without_what_they_print(notebook: Path) -> None:
    """No cell has an output or a number, so that running it changes nothing but those; some page links it."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert all((cell["outputs"], cell["execution_count"]) == ([], None) for cell in code)
    assert any(
        f"({notebook.name})" in page.read_text() or f"/{notebook.name})" in page.read_text() for page in TEXTS
    )
    links = [target for cell in cells for target in re.findall(r"\]\(([^)\s]+)\)", "".join(cell["source"]))]
    assert all((notebook.parent / link).is_file() for link in links if not re.match(r"\w+:", link))
