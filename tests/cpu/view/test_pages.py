"""Pages of what is looked at: what they hold, where they may go, and that they take nothing from a result."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import pp_export
from pp_export.comparing import diff
from pp_export.core.errors import OptionError
from pp_export.verification import Verification
from pp_export.view.html import Page
from pp_export.view.pages.verified import verification_page
from tests.cpu.view.test_html import sections_of
from tests.fixtures import toy_qwen2
from tests.fixtures.damage import flip, in_tensor
from tests.fixtures.exports import remembering
from tests.fixtures.stored import write_stored

ROW = "model.layers.2.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, its export with the export's page, and a copy in which one tensor is broken."""
    root = tmp_path_factory.mktemp("pages")
    with remembering():
        pp_export.export_checkpoint(
            toy_qwen2.write_checkpoint(root / "checkpoint"),
            reference=toy_qwen2.write_reference(root / "reference"),
            output=root / "export",
            html=root / "export.html",
        )
    shutil.copytree(root / "export", root / "broken")
    flip(file_with(root / "broken", ROW), in_tensor(ROW))(root / "broken")
    return root


def file_with(folder: Path, name: str) -> str:
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            if name in opened.keys():  # noqa: SIM118  not a mapping
                return file.name
    raise AssertionError(name)


def rows_of(section: dict[str, Any]) -> list[list[Any]]:
    """The rows of a table, with each value in its place."""
    columns = [column.get("values") for column in section["columns"]]
    return [
        [cell if known is None else known[cell] for cell, known in zip(row, columns)]
        for row in section["rows"]
    ]


def test_an_export_s_page_has_every_tensor(root: Path) -> None:
    """Names, shapes and files are those that safetensors' own reader finds."""
    sections = sections_of((root / "export.html").read_bytes())
    (tensors,) = (rows_of(each) for title, each in sections.items() if title.startswith("Tensors: "))
    found = []
    for file in (root / "export").glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            found += [[name, opened.get_slice(name).get_shape(), file.name] for name in opened.keys()]  # noqa: SIM118
    assert sorted([name, shape, file] for name, shape, _, _, _, file in tensors) == sorted(found)


def test_a_verification_s_page_has_its_faults(root: Path, tmp_path: Path) -> None:
    """Each fault with file, tensor and message, what was checked, and how fast."""
    result = pp_export.verify(root / "broken", html=tmp_path / "page")
    sections = sections_of((tmp_path / "page").read_bytes())
    assert rows_of(sections["Faults"]) == [[f.file, f.tensor, f.kind, f.message] for f in result.faults]
    assert [ROW, "wrong-digest"] in [row[1:3] for row in rows_of(sections["Faults"])]
    assert dict(sections["What was checked"]["rows"])["read"].endswith("/s")
    assert sections[""]["good"] is False


def test_a_comparison_s_page_says_where_errors_are(root: Path, tmp_path: Path) -> None:
    """The plot has the error of the layer in which one tensor differs, and none elsewhere."""
    result = diff(root / "export", root / "broken", html=tmp_path / "page")
    sections = sections_of((tmp_path / "page").read_bytes())
    (value,) = result.other_values
    assert sections["Errors over the layers"]["series"]["mlp"] == [
        [0, 0.0],
        [1, 0.0],
        [2, value.max_rel_error],
        [3, 0.0],
    ]
    assert [row[0] for row in rows_of(sections["Of other values: 1 tensor"])] == [ROW]
    same = diff(root / "export", root / "export", html=tmp_path / "page")
    assert same.identical
    assert sections_of((tmp_path / "page").read_bytes()).keys() == {"", "The comparison"}


def test_a_checkpoint_s_page_has_every_key(root: Path, tmp_path: Path) -> None:
    """Keys, shapes and sizes as they were stored."""
    pp_export.inspect(root / "checkpoint" / "iter_0000010", html=tmp_path / "page")
    sections = sections_of((tmp_path / "page").read_bytes())
    stored = rows_of(sections[f"Stored weights: {len(toy_qwen2.SHAPES)} keys"])
    values = toy_qwen2.values()
    assert {key: (shape, size) for key, shape, _, size, _ in stored} == {
        key: (list(shape), values[key].nbytes) for key, shape in toy_qwen2.SHAPES.items()
    }


def test_the_page_of_read_bytes_says_what_is_wrong(tmp_path: Path) -> None:
    """Read to the last byte, a checkpoint's page has the digest of every tensor, what is suspicious, and a
    fault for the tensor in which a bit is another.
    """
    values = toy_qwen2.values()
    values["decoder.final_layernorm.weight"][3] = float("nan")
    folder = write_stored(tmp_path / "iter_0000010", values, toy_qwen2.ARGS)
    page = tmp_path / "page"
    good = pp_export.inspect(folder, deep=True, html=page)
    sections = sections_of(page.read_bytes())
    assert sections[""]["text"] == "every byte is there; 1 tensor suspicious"
    assert good.examined is not None
    tensors = rows_of(sections[f"Tensors: {len(good.examined.tensors)}"])
    assert {row[0]: row[3] for row in tensors} == {n: t.digest for n, t in good.examined.tensors.items()}
    assert [row[4] for row in tensors if row[0] == "decoder.final_layernorm.weight"] == ["1 NaN"]

    (file,) = folder.glob("*.distcp")
    image = bytearray(file.read_bytes())
    image[image.index(values["output_layer.weight"].view(torch.uint8).numpy().tobytes()) + 5] ^= 1
    file.write_bytes(image)
    bad = pp_export.inspect(folder, deep=True, html=page)
    sections = sections_of(page.read_bytes())
    assert sections[""]["good"] is bad.ok is False
    assert [row[1:3] for row in rows_of(sections["Faults"])] == [["output_layer.weight", "damaged"]]
    assert "MB/s" in dict(sections["The checkpoint"]["rows"])["read"]


@pytest.mark.parametrize(
    ("look", "folder"),
    [
        (lambda root, page: pp_export.verify(root / "export", html=page), "export"),
        (lambda root, page: diff(root / "export", root / "broken", html=page), "broken"),
        (lambda root, page: pp_export.inspect(root / "checkpoint", html=page), "checkpoint"),
        (lambda root, page: pp_export.compare_logits(root / "export", root / "none", html=page), "export"),
    ],
    ids=["verify", "diff", "inspect", "compare_logits"],
)
def test_where_a_page_can_t_go_is_said_before(
    root: Path, look: Callable[[Path, Path], object], folder: str
) -> None:
    """Nothing is looked at for a page that could not be written, or would be a part of what is looked at."""
    for page, told in (
        (root / "none" / "page.html", "folder does not exist"),
        (root / "export", "place is a folder"),
        (root / folder / "page.html", "can't lie in the folder that it tells of"),
    ):
        with pytest.raises(OptionError, match=told):
            look(root, page)
    assert not (root / folder / "page.html").exists()


def test_a_page_that_can_t_be_written_is_a_note(tmp_path: Path) -> None:
    """What was found is given back all the same, and its verdict stays."""
    result = Verification("folder", (), 1, 1, 1, "full", made_by_us=True)
    (tmp_path / "gone").mkdir()
    page = Page(tmp_path / "gone" / "page.html")
    (tmp_path / "gone").rmdir()
    noted = page.of(result, verification_page)
    assert noted.ok
    assert "the page could not be written" in noted.notes[-1]
    assert Page(None).of(result, verification_page) is result
