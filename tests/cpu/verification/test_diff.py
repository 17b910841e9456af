"""Claims of `pp_export.verification.diff`: every difference between two folders' tensors is found and
measured.
"""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pp_export.core.errors import OptionError, VerificationError
from pp_export.verification import diff, reading, side_by_side
from pp_export.verification.diff import SpecDifference, diff_folders
from pp_export.verification.side_by_side import Tolerance, ValueDifference
from tests.fixtures.damage import flip, in_tensor
from tests.fixtures.defects import record_edit
from tests.fixtures.hf_folders import DOWN, MIDDLE, as_stranger, seal
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


def ulps(a: float, b: float) -> int:
    """How many float64 lie between, by Python's own order of them."""
    signed: list[int] = [struct.unpack("<q", struct.pack("<d", value))[0] for value in (a, b)]
    ordered = [value if value >= 0 else -(value & (1 << 63) - 1) for value in signed]
    return abs(ordered[0] - ordered[1])


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
    seen: list[int] = []
    difference = diff_folders(a, b, on_bytes=seen.append)
    assert difference.identical
    assert (difference.num_equal, difference.num_equal_by_digest) == (len(tensors), 0)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert sum(seen) == difference.num_bytes_read == 2 * size
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
    errors = (a - b).abs()
    expected, relative = float(errors.max()), float((errors / torch.maximum(a.abs(), b.abs())).max())
    steps = float(max(ulps(*pair) for pair in zip(a.tolist(), b.tolist())))
    for step, block in ((8, 8), (56, 24), (4096, 104), (1 << 20, 1 << 20)):
        monkeypatch.setattr(side_by_side, "STEP_BYTES", step)
        monkeypatch.setattr(side_by_side, "BLOCK_BYTES", block)
        (tmp_path / str(step)).mkdir()
        only = single(tmp_path / str(step), a, b)
        assert astuple(only)[:-1] == ("t", 1000, 3, 0, 3, expected, relative)
        assert only.max_ulp_error == pytest.approx(steps, rel=1e-12), "a sum of two float64"


def test_error_is_exact(tmp_path: Path) -> None:
    """The error is not rounded to the tensor's own precision."""
    a, b = torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([3e-3], dtype=torch.bfloat16)
    assert single(tmp_path, a, b).max_abs_error == 1.0 - float(b)


def test_values_without_a_difference_in_numbers(tmp_path: Path) -> None:
    """NaN and infinity are counted apart, so the error stays finite; zeros of other sign differ by 0."""
    a = torch.tensor([1.0, math.nan, math.inf, 0.0, math.inf, math.nan])
    b = torch.tensor([1.5, 2.0, -math.inf, -0.0, math.inf, math.nan])
    only = single(tmp_path, a, b)
    assert only == ValueDifference("t", 6, 4, 2, 4, 0.5, 1 / 3, 1 << 22)
    largest = torch.finfo(torch.float64).max
    (tmp_path / "x").mkdir()
    pair = [torch.tensor([sign * largest], dtype=torch.float64) for sign in (1, -1)]
    assert single(tmp_path / "x", *pair) == ValueDifference("t", 1, 1, 1, 1, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_units_in_the_last_place_are_values_of_the_type(tmp_path: Path, dtype: torch.dtype) -> None:
    """So many are counted as torch steps from one value to the next, across zero and powers of two too."""
    a = torch.tensor([1.0, -1.0, 0.0, 2.0, 1e-7, -0.0], dtype=dtype)
    for count in (1, 5, 300):
        b = a.clone()
        for _ in range(count):
            b = torch.nextafter(b, torch.full_like(b, -3.0))
        (tmp_path / str(count)).mkdir()
        assert single(tmp_path / str(count), a, b).max_ulp_error == count


def test_a_tolerance_decides_what_is_ok(tmp_path: Path) -> None:
    """`atol` plus `rtol` of the larger, or so many ULP: counted are the elements that are outside of both;
    NaNs of other bits are within any tolerance, an infinity beside a number is within none.
    """
    a = torch.tensor([100.0, 1.0, 0.0, math.nan, 7.0])
    b = torch.tensor([101.0, 1.5, 1e-6, math.nan, 7.0])
    b.view(torch.int32)[3] += 1
    folders = make_folder(tmp_path / "a", {"t": a}), make_folder(tmp_path / "b", {"t": b})
    for tolerance, num_outside in (
        (Tolerance(), 4),
        (Tolerance(absolute=1e-5), 2),
        (Tolerance(relative=0.01), 2),
        (Tolerance(absolute=1e-5, relative=0.01), 1),
        (Tolerance(absolute=1.0), 0),
        (Tolerance(ulps=1 << 22), 1),
    ):
        found = diff_folders(*folders, tolerance=tolerance)
        assert (found.other_values[0].num_outside, found.ok) == (num_outside, num_outside == 0), tolerance
        assert not found.identical
    c = make_folder(tmp_path / "c", {"t": torch.tensor([100.0, 1.0, 0.0, math.nan, math.inf])})
    assert not diff_folders(folders[0], c, tolerance=Tolerance(1e9, 1e9, 1e9)).ok
    for wrong in (Tolerance(-1.0), Tolerance(math.nan), Tolerance(ulps=math.inf)):
        with pytest.raises(OptionError, match="a tolerance can't be used"):
            diff_folders(*folders, tolerance=wrong)


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


def test_neither_torch_nor_safetensors_is_needed(tmp_path: Path) -> None:
    """A comparison imports neither, nor numpy before it begins, whatever differs."""
    a = make_folder(tmp_path / "a", {"t": torch.ones(4).to(torch.float8_e4m3fn), "u": torch.ones(2)})
    b = make_folder(tmp_path / "b", {"t": torch.zeros(4).to(torch.float8_e4m3fn), "u": torch.zeros(2)})
    code = "import sys; from pathlib import Path; from pp_export.verification.diff import diff_folders\n"
    code += "assert not {'torch', 'safetensors', 'numpy'} & sys.modules.keys()\n"
    code += f"assert len(diff_folders(Path({str(a)!r}), Path({str(b)!r})).other_values) == 2\n"
    code += "assert not {'torch', 'safetensors'} & sys.modules.keys()\n"
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=Path(diff.__file__).parent.parent, timeout=60
    )


@pytest.mark.parametrize("threads", [1, 3])
def test_counts_and_errors_are_those_of_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """Random bits of every type, cut into other files on either side: each tensor's figures are what torch
    computes of whole tensors, however many threads work and wherever their steps fall.
    """
    monkeypatch.setattr(side_by_side, "STEP_BYTES", 24 * 40)
    monkeypatch.setattr(side_by_side, "BLOCK_BYTES", 24 * 5)
    generator = torch.Generator().manual_seed(0)
    a: dict[str, torch.Tensor] = {}
    b: dict[str, torch.Tensor] = {}
    for number, dtype in enumerate(each for each in DTYPES if isinstance(each, torch.dtype)):
        num_elements = 300 + number
        high = 2 if dtype == torch.bool else 256
        bits = torch.randint(high, (num_elements * dtype.itemsize,), generator=generator, dtype=torch.uint8)
        changed = bits.clone().reshape(num_elements, -1)
        where = torch.randint(num_elements, (7,), generator=generator)
        changed[where] = torch.randint(high, (7, dtype.itemsize), generator=generator, dtype=torch.uint8)
        a[f"{dtype}"], b[f"{dtype}"] = bits.view(dtype), changed.reshape(-1).view(dtype)
        a[f"{dtype} same"] = b[f"{dtype} same"] = bits.clone().view(dtype)
    names = list(b)
    halves = [{name: b[name] for name in names[part::2]} for part in (1, 0)]
    found = diff_folders(
        make_folder(tmp_path / "a", a), make_folder(tmp_path / "b", *halves), threads=threads
    )
    expected = []
    for name in sorted(a):
        itemsize = a[name].element_size()
        bytes_a, bytes_b = (each[name].view(torch.uint8).view(-1, itemsize) for each in (a, b))
        differs = (bytes_a != bytes_b).any(1)
        if differs.any():
            in_a, in_b = (each[name].double()[differs] for each in (a, b))
            errors = (in_a - in_b).abs()
            is_finite = errors.isfinite()
            relative = (errors / torch.maximum(in_a.abs(), in_b.abs())).nan_to_num(0)
            largest = [float(of[is_finite].max()) if is_finite.any() else 0.0 for of in (errors, relative)]
            num = int(differs.sum())
            counts = num, num - int(is_finite.sum()), num
            expected.append((name, a[name].numel(), *counts, *largest))
    assert [astuple(value)[:-1] for value in found.other_values] == expected
    assert found.num_equal == len(a) - len(expected) >= len(a) // 2


def test_many_small_tensors_are_read_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors that lie one behind the other on both sides are one read on each, and memory is that of the
    threads, however large the folders are.
    """
    tensors = {f"t{number}": torch.full((5,), number) for number in range(1000)}
    a, b = make_folder(tmp_path / "a", tensors), make_folder(tmp_path / "b", tensors)
    reads: list[int] = []
    buffers: list[int] = []
    read, make = reading._read_once, reading.make_buffer

    def counted(file: Any, position: int, into: memoryview) -> int:
        reads.append(position)
        return read(file, position, into)

    def made(num_bytes: int) -> memoryview:
        buffers.append(num_bytes)
        return make(num_bytes)

    monkeypatch.setattr(reading, "_read_once", counted)
    monkeypatch.setattr(side_by_side, "make_buffer", made)
    assert diff_folders(a, b, threads=2).num_equal == 1000
    assert len(reads) == 2
    assert buffers == [side_by_side.STEP_BYTES] * 4


def test_quick_takes_the_word_of_both_manifests(sealed: Path, folder: Path) -> None:
    """Without `quick` every byte counts. With it, equal records of both folders are enough, and what they
    don't say, or say differently, is read all the same.
    """
    whole = diff_folders(sealed, folder)
    assert (whole.identical, whole.num_equal_by_digest) == (True, 0)
    quick = diff_folders(sealed, folder, quick=True)
    assert (quick.num_equal, quick.num_equal_by_digest, quick.num_bytes_read) == (9, 9, 0)
    flip(MIDDLE, in_tensor(DOWN))(folder)
    assert diff_folders(sealed, folder, quick=True).identical
    assert [value.name for value in diff_folders(sealed, folder).other_values] == [DOWN]
    seal(folder)  # now the record tells of the changed bit
    quick = diff_folders(sealed, folder, quick=True)
    assert [value.name for value in quick.other_values] == [DOWN]
    assert (quick.num_equal_by_digest, quick.num_bytes_read) == (8, 2 * 8 * 24 * 2)


def test_quick_reads_what_no_manifest_proves(sealed: Path, folder: Path) -> None:
    """A manifest that is missing, was changed, or doesn't fit the files proves nothing, so all is read."""
    record_edit("xxh3_128", "0" * 32, resealed=False)(folder)
    assert diff_folders(sealed, folder, quick=True).num_equal_by_digest == 0
    record_edit("shape", [24, 8])(folder)
    assert diff_folders(sealed, folder, quick=True).num_equal_by_digest == 8
    as_stranger(folder)
    assert diff_folders(sealed, folder, quick=True).num_equal_by_digest == 0


def test_what_on_bytes_raises_ends_the_comparison(sealed: Path) -> None:
    """And so does a file that becomes shorter meanwhile; less than one thread is refused."""

    def stop(num_bytes: int) -> None:
        raise OSError(28, "told to stop")

    with pytest.raises(OSError, match="told to stop"):
        diff_folders(sealed, sealed, threads=2, on_bytes=stop)
    with pytest.raises(OptionError):
        diff_folders(sealed, sealed, threads=0)


def test_a_file_that_becomes_shorter_is_an_error(
    sealed: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is cut after its header was read can't be compared, and is named."""
    read = reading._read_once

    def cut(file: Any, position: int, into: memoryview) -> int:
        return min(read(file, position, into), 30)

    monkeypatch.setattr(reading, "_read_once", cut)
    monkeypatch.setattr(reading.UncachedFile, "_size", lambda _: 30)
    with pytest.raises(VerificationError, match="became shorter") as caught:
        diff_folders(sealed, folder)
    assert "safetensors" in str(caught.value.where["file"])
