"""Claims of `pp_export.verification.diff`: every difference between two folders' tensors is found and
measured.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pp_export.core.errors import VerificationError
from pp_export.verification import diff
from pp_export.verification.diff import SpecDifference, ValueDifference, diff_folders
from tests.fixtures.releases import complex_safetensors

INDEX = "model.safetensors.index.json"

DTYPES: list[Any] = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.float8_e5m2,
    torch.float8_e4m3fn,
    torch.float8_e8m0fnu,
    torch.int16,
    torch.uint16,
    torch.float16,
    torch.bfloat16,
    torch.int32,
    torch.uint32,
    torch.float32,
    torch.float64,
    torch.int64,
    torch.uint64,
    pytest.param(torch.complex64, marks=complex_safetensors),
]


def make_folder(folder: Path, *files: dict[str, torch.Tensor]) -> Path:
    """A folder with these files and an index; with one file, without an index."""
    folder.mkdir()
    if len(files) == 1:
        save_file(files[0], folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weight_map: dict[str, str] = {}
    for number, tensors in enumerate(files):
        save_file(tensors, folder / f"part-{number}.safetensors", metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, f"part-{number}.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def single(tmp_path: Path, a: torch.Tensor, b: torch.Tensor) -> ValueDifference:
    """The one difference between two folders of one tensor each."""
    difference = diff_folders(make_folder(tmp_path / "a", {"t": a}), make_folder(tmp_path / "b", {"t": b}))
    assert not difference.identical
    (only,) = difference.other_values
    return only


def test_same_tensors_in_other_files_are_identical(tmp_path: Path) -> None:
    """How a folder is cut into files makes no difference."""
    tensors = {f"t{number}": torch.randn(number, 3).to(torch.bfloat16) for number in range(6)}
    tensors |= {"scalar": torch.tensor(math.nan), "negative zero": torch.tensor([-0.0])}
    names = list(tensors)
    a = make_folder(tmp_path / "a", tensors)
    b = make_folder(
        tmp_path / "b",
        {name: tensors[name] for name in names[::2]},
        {name: tensors[name] for name in names[1::2]},
    )
    seen: list[str] = []
    difference = diff_folders(a, b, seen.append)
    assert difference.identical
    assert difference.num_equal == len(tensors)
    assert seen == sorted(tensors)
    assert json.loads(json.dumps(difference.to_json(), allow_nan=False))["identical"] is True


def test_names_and_specs(tmp_path: Path) -> None:
    """Names of one side only and differing shapes and dtypes are listed; each makes folders not identical."""
    common = {"same": torch.ones(2)}
    a = make_folder(tmp_path / "a", common | {"x": torch.ones(1), "s": torch.ones(2, 3), "d": torch.ones(4)})
    b = make_folder(
        tmp_path / "b", common | {"y": torch.ones(1), "s": torch.ones(3, 2), "d": torch.ones(4).half()}
    )
    difference = diff_folders(a, b)
    assert difference.only_in_a == ("x",)
    assert difference.only_in_b == ("y",)
    assert difference.other_spec == (
        SpecDifference("d", "F32[4]", "F16[4]"),
        SpecDifference("s", "F32[2, 3]", "F32[3, 2]"),
    )
    assert difference.num_equal == 1
    assert not difference.identical
    for other in ({"x": torch.ones(1)}, {}):
        folder = make_folder(tmp_path / f"c{len(other)}", common | other)
        assert diff_folders(a, folder).identical is False
        assert diff_folders(folder, a).identical is False


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_bit_of_any_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    """One changed bit is one differing element, whatever the element type."""
    itemsize = torch.empty(0, dtype=dtype).element_size()
    before = torch.zeros(12 * itemsize, dtype=torch.uint8)
    after = before.clone()
    after[3 * itemsize] = 1
    only = single(tmp_path, before.view(dtype).reshape(3, 4), after.view(dtype).reshape(3, 4))
    assert (only.name, only.num_elements, only.num_different, only.num_not_finite) == ("t", 12, 1, 0)
    assert only.max_abs_error > 0


def test_error_is_the_largest_over_all_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is the largest and the count complete, however many steps a tensor takes."""
    a = torch.randn(1000, dtype=torch.float64)
    b = a.clone()
    b[[3, 500, 999]] += torch.tensor([0.5, -2.0, 1.0], dtype=torch.float64)
    expected = float((a - b).abs().max())
    for step in (1, 7, 1000, 4096):
        monkeypatch.setattr(diff, "_STEP_ELEMENTS", step)
        (tmp_path / str(step)).mkdir()
        assert single(tmp_path / str(step), a, b) == ValueDifference("t", 1000, 3, 0, expected)


def test_error_is_exact(tmp_path: Path) -> None:
    """The error is not rounded to the tensor's own precision."""
    a, b = torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([3e-3], dtype=torch.bfloat16)
    assert single(tmp_path, a, b).max_abs_error == 1.0 - float(b)


def test_values_without_a_difference_in_numbers(tmp_path: Path) -> None:
    """NaN and infinity are counted apart, so the error stays finite; zeros of other sign differ by 0."""
    a = torch.tensor([1.0, math.nan, math.inf, 0.0, math.inf, math.nan])
    b = torch.tensor([1.5, 2.0, -math.inf, -0.0, math.inf, math.nan])
    only = single(tmp_path, a, b)
    assert only == ValueDifference("t", 6, 4, 2, 0.5)
    largest = torch.finfo(torch.float64).max
    (tmp_path / "x").mkdir()
    pair = [torch.tensor([sign * largest], dtype=torch.float64) for sign in (1, -1)]
    assert single(tmp_path / "x", *pair) == ValueDifference("t", 1, 1, 1, 0.0)


def test_index_decides_which_files_count(tmp_path: Path) -> None:
    """With an index only its files are compared; without, model.safetensors, or else all weight files."""
    tensors = {"t": torch.ones(2)}
    a = make_folder(tmp_path / "a", tensors, {"u": torch.ones(1)})
    b = make_folder(tmp_path / "b", tensors, {"u": torch.ones(1)})
    save_file({"t": torch.zeros(2)}, b / "consolidated.safetensors")
    assert diff_folders(a, b).identical
    (a / INDEX).unlink()
    assert diff_folders(a, b).identical


def test_broken_folders_are_errors(tmp_path: Path) -> None:
    """What can't be compared is an error that names the file, never a difference of zero tensors."""
    good = make_folder(tmp_path / "good", {"t": torch.ones(2)})
    broken = make_folder(tmp_path / "broken", {"t": torch.ones(2)}, {"u": torch.ones(2)})
    index = json.loads((broken / INDEX).read_text())

    def expect(words: str) -> None:
        for pair in ((good, broken), (broken, good)):
            with pytest.raises(VerificationError, match=words):
                diff_folders(*pair)

    for weight_map in ({"t": "../good/model.safetensors"}, {"t": 1}, {"t": [1]}, [1], None):
        (broken / INDEX).write_text(json.dumps(index | {"weight_map": weight_map}))
        expect("index can't be used")
    (broken / INDEX).write_text("[" * 100_000)
    expect("index can't be used")
    (broken / INDEX).write_text(json.dumps(index))
    save_file({"t": torch.ones(1)}, broken / "part-1.safetensors")
    expect("two files have the same tensor")
    (broken / "part-1.safetensors").write_bytes(b"x")
    expect("weight file can't be read")
    (broken / "part-1.safetensors").unlink()
    expect("weight file can't be read")
    (tmp_path / "empty").mkdir()
    with pytest.raises(VerificationError, match=r"no \*\.safetensors"):
        diff_folders(good, tmp_path / "empty")


def test_import_is_light() -> None:
    """Importing the module imports neither torch nor safetensors."""
    code = "import sys, pp_export.verification.diff\n"
    code += "assert not {'torch', 'safetensors', 'numpy'} & sys.modules.keys()"
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=Path(diff.__file__).parent.parent, timeout=60
    )
