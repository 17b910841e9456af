"""Claims: docs/live_export.ipynb runs from its first cell to its last, and shows what it says.

`make test-notebook` installs what runs notebooks and runs this; see `requirements.txt`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.processes import ROOT

nbclient = pytest.importorskip("nbclient", reason="what runs notebooks isn't installed")
pytest.importorskip("ipykernel", reason="what runs notebooks isn't installed")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The cells of code with their outputs, run by a kernel of this Python, offline."""
    import nbformat

    folder: Path = tmp_path_factory.mktemp("notebook")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("HF_HUB_OFFLINE", "1"),
            ("IPYTHONDIR", str(folder / "ipython")),
            ("JUPYTER_RUNTIME_DIR", str(folder / "runtime")),
            ("TMPDIR", str(folder)),
        ):
            patch.setenv(name, value)
        notebook = nbformat.read(ROOT / "docs" / "live_export.ipynb", as_version=4)
        nbformat.validate(notebook)
        nbclient.NotebookClient(
            notebook, timeout=180, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
        ).execute()
    assert not list(folder.glob("tmp*")), "what it wrote is gone"
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_it_exports_what_was_trained(ran: list[Any]) -> None:
    """Progress is told to the last step, the folder is proved, and both models answer alike."""
    [progress] = [text for text in map(printed, ran) if "moving bytes" in text]
    lines = progress.splitlines()
    assert lines[-2].startswith("published Qwen2ForCausalLM: ")
    written, verified = lines[-1].replace(" read back", "").split(" bytes written, ")
    assert written == verified != "0"
    results = [text for text in map(result, ran) if text]
    assert any(text.startswith("Verification(") and "ok=True" in text for text in results)
    assert any(text.startswith("'largest difference of a logit: ") for text in results)


def test_it_opens_the_report(ran: list[Any]) -> None:
    """As a table, and as a page within the page: whole, its text kept in one attribute."""
    found = [each["data"] for cell in ran for each in cell.outputs if "data" in each]
    [shown] = [data["text/html"] for data in found if "text/html" in data]
    table, _, frame = shown.partition("</table>")
    assert "<tr><th>every byte read back</th><td>True</td></tr>" in table
    assert frame.startswith("<iframe ")
    assert frame.count("<") == 2
    assert "&lt;!doctype html" in frame.lower()


def test_nothing_goes_wrong_on_the_way(ran: list[Any]) -> None:
    """No cell has an error or a warning."""
    assert [each for cell in ran for each in cell.outputs if each.output_type == "error"] == []
    told = "".join(each.text for cell in ran for each in cell.outputs if each.get("name") == "stderr")
    assert "Warning" not in told, told


def printed(cell: Any) -> str:
    return "".join(each.text for each in cell.outputs if each.get("name") == "stdout")


def result(cell: Any) -> str:
    """The text of the last value of a cell, if it has one."""
    found = [each for each in cell.outputs if each.output_type == "execute_result"]
    return str(found[0]["data"]["text/plain"]) if found else ""
