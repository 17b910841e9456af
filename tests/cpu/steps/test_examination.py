"""Claims of `inspect --deep`: every byte is read, what can't be is named, and what is suspicious is told."""

from __future__ import annotations

import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from safetensors.torch import load_file
from torch.distributed.checkpoint.metadata import Metadata

import pp_export
from pp_export.checkpoint.formats import describe_checkpoint
from pp_export.core import dtypes
from pp_export.core.errors import CheckpointError, OptionError
from pp_export.core.json_values import to_json_value
from pp_export.steps import examination
from pp_export.steps.checkpoint_report import FAULTS, Examination
from pp_export.steps.examined import ValuesExaminer
from tests.cpu.checkpoint.test_legacy import DENSE, MOE, written
from tests.cpu.conftest import Checkpoint
from tests.cpu.end_to_end.test_golden import FOLDERS, GOLDEN
from tests.fixtures import toy_qwen2
from tests.fixtures.stored import canonical_values, edit_metadata, write_stored

FLOATS = ["float16", "bfloat16", "float32", "float64", "float8_e5m2", "float8_e4m3fn", "float8_e8m0fnu"]
NORM = "decoder.final_layernorm.weight"
FC2 = "decoder.layers.mlp.linear_fc2.weight"
CUT = {f"{kind}-{name}": case for kind, of in (("dense", DENSE), ("moe", MOE)) for name, case in of.items()}


def digest_of(values: torch.Tensor) -> str:
    """What the xxhash library says of a tensor's bytes."""
    return xxhash.xxh3_128(values.contiguous().flatten().view(torch.uint8).numpy().data).hexdigest()


def deep(folder: Path, **how: Any) -> Examination:
    examined = pp_export.inspect(folder, deep=True, **how).examined
    assert examined is not None
    return examined


def kinds(examined: Examination) -> set[str]:
    found = {fault.kind for fault in examined.faults}
    assert found <= FAULTS.keys()
    return found


def stored(folder: Path, change: Callable[[dict[str, torch.Tensor]], object] = lambda _: None) -> Path:
    """A checkpoint whose values `change` has changed before torch saved them."""
    values = toy_qwen2.values()
    change(values)
    return write_stored(folder / "iter_0000010", values, toy_qwen2.ARGS)


def flip_exponent(folder: Path, file_of: str, values: torch.Tensor) -> None:
    """Make element 5 of these values, wherever they lie in the file, a NaN or an infinity."""
    path = folder / file_of
    data = bytearray(path.read_bytes())
    at = data.index(values.contiguous().flatten().view(torch.uint8).numpy().tobytes()) + 5 * 2
    data[at + 1] |= 0x7F
    data[at] |= 0xC0
    path.write_bytes(data)


@pytest.mark.parametrize("step_bytes", [40, 4 << 20])
@pytest.mark.parametrize("folder", FOLDERS)
def test_digests_are_those_of_the_values_that_were_saved(
    folder: str, step_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every release and format, in steps of part of a row and of whole tensors, by several threads."""
    monkeypatch.setattr(examination, "STEP_BYTES", step_bytes)
    counted: list[int] = []
    totals: list[int] = []
    examined = deep(GOLDEN / folder, threads=3, on_bytes=counted.append, on_total=totals.append)
    expected = load_file(GOLDEN / folder / "expected.safetensors")
    assert examined.ok
    assert {name: each.digest for name, each in examined.tensors.items()} == {
        name: digest_of(values) for name, values in expected.items()
    }
    num_bytes = sum(values.nbytes for values in expected.values())
    assert [examined.num_bytes_read] == totals == [sum(counted)] == [num_bytes]


@pytest.mark.parametrize(
    ("model", "layouts"),
    [("qwen2", ("tp4", "pp2vpp3")), ("qwen3_moe", ("tp1", "ep2etp2")), ("qwen2_legacy", ("tp4",))],
)
def test_digests_are_the_same_of_every_layout(
    checkpoint: Checkpoint, model: str, layouts: tuple[str, ...]
) -> None:
    """However ranks cut the model, a tensor has one digest: that of its values as torch loads them."""
    found = [deep(checkpoint(model, layout)) for layout in layouts]
    digests = [{name: each.digest for name, each in examined.tensors.items()} for examined in found]
    assert all(examined.ok and examined.tensors for examined in found)
    assert all(each == digests[0] for each in digests)


@pytest.mark.parametrize("case", CUT)
def test_digests_are_those_of_what_ranks_have_cut(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows and columns of parts, rows that take turns, transposed parts, and views of one buffer are put
    together step by step.
    """
    monkeypatch.setattr(examination, "STEP_BYTES", 200)
    source = written(tmp_path, *CUT[case])
    examined = deep(source.folder, threads=2)
    assert examined.ok
    assert {name: each.digest for name, each in examined.tensors.items()} == {
        name: digest_of(values) for name, values in source.tensors.items()
    }


def test_damage_of_what_lies_transposed_is_named(tmp_path: Path) -> None:
    """Values that don't lie in order are compared with the CRC-32 at the end: each damaged record is named,
    not only the first, and only what lies in them has no digest.
    """
    shutil.copytree(GOLDEN / "0.16.1-legacy-grouped-ep", tmp_path / "run")
    catalog = describe_checkpoint(tmp_path / "run", None)
    slices = [each for of in catalog.slices.values() for each in of if each.strides is not None]
    items = sorted({each.item for each in slices})[:2]
    assert len(items) == 2
    for item in map(catalog.stored_items.__getitem__, items):
        path = Path(catalog.description.folder) / catalog.files[item.file]
        data = bytearray(path.read_bytes())
        data[item.offset] ^= 1
        path.write_bytes(data)
    examined = deep(tmp_path / "run")
    assert [fault.kind for fault in examined.faults] == ["damaged", "damaged"]
    lost = {name for name, of in catalog.slices.items() if any(each.item in items for each in of)}
    assert {name for name, each in examined.tensors.items() if each.digest is None} == lost
    assert lost < catalog.specs.keys()


@pytest.mark.parametrize("name", FLOATS)
def test_what_is_no_number_is_counted(name: str) -> None:
    """Random bytes of every floating type have as many NaNs and infinities as torch says."""
    dtype = getattr(torch, name)
    data = torch.randint(0, 256, (1 << 16,), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    data[:8] = 0xFF
    values = data.view(dtype).double()
    examiner = ValuesExaminer(dtypes.from_torch(name))
    for begin in range(0, len(data), 1 << 13):
        examiner.take(data.numpy().data[begin : begin + (1 << 13)])
    seen = examiner.seen()
    assert seen.num_nan == int(values.isnan().sum()) > 0
    assert seen.num_infinite == int(values.isinf().sum())
    assert (seen.is_zero, seen.is_constant) == (False, False)


def test_suspicious_values_are_told_and_are_no_fault(tmp_path: Path) -> None:
    """NaN, infinite, all zeros and one value throughout, as a training that went wrong saves them, each of
    its own layer; one number alone is no constant, zeros of both signs are zeros.
    """

    def change(values: dict[str, torch.Tensor]) -> None:
        values[FC2][0] = 0
        values[FC2][1] = -0.0
        values[FC2][1, :, ::2] = 0.0
        values[FC2][2] = 0.25
        values[FC2][3, 7, 9] = float("nan")
        values[NORM][3:5] = float("inf")
        values["decoder.layers.self_attention.linear_qkv.bias"][2, 0] = -float("inf")

    examined = deep(stored(tmp_path, change))
    assert examined.ok
    told = {name: each.suspicions for name, each in examined.tensors.items() if each.suspicions}
    assert told == {
        "decoder.layers.0.mlp.linear_fc2.weight": ("all zeros",),
        "decoder.layers.1.mlp.linear_fc2.weight": ("all zeros",),
        "decoder.layers.2.mlp.linear_fc2.weight": ("one value throughout",),
        "decoder.layers.3.mlp.linear_fc2.weight": ("1 NaN",),
        NORM: ("2 infinite",),
        "decoder.layers.2.self_attention.linear_qkv.bias": ("1 infinite",),
    }


def test_a_flipped_exponent_is_damage_and_a_nan(tmp_path: Path) -> None:
    """Bits that flipped on the disk are found by the CRC-32 and by what they make of the value; what shares
    the record has no digest any more, and all others keep theirs.
    """
    folder = stored(tmp_path)
    values = toy_qwen2.values()
    flip_exponent(folder, "__0_0.distcp", values[FC2][1])
    examined = deep(folder)
    [fault] = examined.faults
    assert (fault.kind, fault.tensor, fault.file) == ("damaged", FC2, "__0_0.distcp")
    assert "CRC-32" in fault.message
    assert examined.tensors["decoder.layers.1.mlp.linear_fc2.weight"].suspicions == ("1 NaN",)
    expected = {name: digest_of(each) for name, each in canonical_values(values).items()}
    for name, each in examined.tensors.items():
        assert each.digest == (None if "linear_fc2" in name else expected[name])


def test_a_flipped_exponent_in_a_rank_s_file(tmp_path: Path) -> None:
    """The same in the format of one file per rank."""
    shutil.copytree(GOLDEN / "0.16.1-legacy-pp", tmp_path / "run")
    values = load_file(GOLDEN / "0.16.1-legacy-pp" / "expected.safetensors")
    folder = tmp_path / "run" / "iter_0000010"
    name = "decoder.layers.1.mlp.linear_fc2.weight"
    assert values[name].dtype == torch.bfloat16
    [file] = [
        path.relative_to(folder)
        for path in folder.rglob("model_optim_rng.pt")
        if values[name].view(torch.uint8).numpy().tobytes() in path.read_bytes()
    ]
    flip_exponent(folder, str(file), values[name])
    examined = deep(tmp_path / "run")
    [fault] = examined.faults
    assert (fault.kind, fault.tensor) == ("damaged", name)
    assert examined.tensors[name].num_nan == 1
    assert examined.tensors[name].digest is None
    assert all(each.digest for other, each in examined.tensors.items() if other != name)


@pytest.mark.parametrize("kept", [0.0, 0.5, None])
def test_a_truncated_or_missing_file(tmp_path: Path, kept: float | None) -> None:
    """What a rank's file lacks is named, file and tensors; what lies elsewhere is read and right."""
    shutil.copytree(GOLDEN / "0.16.1-dense", tmp_path / "run")
    file = max((tmp_path / "run").rglob("*.distcp"), key=lambda path: path.stat().st_size)
    if kept is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
    with pytest.raises(CheckpointError, match="missing, truncated"):
        pp_export.inspect(tmp_path / "run")
    examined = deep(tmp_path / "run")
    assert kinds(examined) == {"missing", "unreadable"}
    assert any(file.name in fault.message for fault in examined.faults if fault.kind == "missing")
    lost = [fault for fault in examined.faults if fault.kind == "unreadable"]
    assert {fault.file for fault in lost} == {file.name}
    expected = load_file(GOLDEN / "0.16.1-dense" / "expected.safetensors")
    right = {name for name, each in examined.tensors.items() if each.digest == digest_of(expected[name])}
    without = {name for name, each in examined.tensors.items() if each.digest is None}
    assert right
    assert without
    assert right | without == expected.keys()


def _lose_a_box(metadata: Metadata) -> None:
    del metadata.state_dict_metadata[NORM].chunks[0]  # type: ignore[union-attr]


def _store_nowhere(metadata: Metadata) -> None:
    for index in [each for each in metadata.storage_data if each.fqn == NORM]:
        del metadata.storage_data[index]


@pytest.mark.parametrize(
    ("lose", "found"), [(_lose_a_box, {"uncovered"}), (_store_nowhere, {"missing", "uncovered"})]
)
def test_boxes_that_are_lost(tmp_path: Path, lose: Callable[[Metadata], None], found: set[str]) -> None:
    """A box that `.metadata` doesn't have, or has without a place: its tensor is named, others are read."""
    folder = stored(tmp_path)
    edit_metadata(folder, lose)
    examined = deep(folder)
    assert kinds(examined) == found
    assert {fault.tensor for fault in examined.faults} == {NORM}
    expected = canonical_values(toy_qwen2.values())
    for name, each in examined.tensors.items():
        assert each.digest == (None if name == NORM else digest_of(expected[name]))
    assert not examined.tensors[NORM].suspicions


def test_a_layer_that_one_rank_did_not_save_is_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Of a tensor that ranks share, the layers are named whose boxes are lost; what is left is looked at."""
    shutil.copytree(checkpoint("qwen2", "tp2pp2"), tmp_path / "run")
    folder = Path(describe_checkpoint(tmp_path / "run", None).description.folder)

    def lose(metadata: Metadata) -> None:
        chunks = metadata.state_dict_metadata[FC2].chunks  # type: ignore[union-attr]
        chunks[:] = [each for each in chunks if tuple(each.offsets) != (0, 0, 0)]

    edit_metadata(folder, lose)
    examined = deep(folder)
    assert kinds(examined) == {"uncovered"}
    without = {name for name, each in examined.tensors.items() if each.digest is None}
    assert without == {fault.tensor for fault in examined.faults}
    assert "decoder.layers.0.mlp.linear_fc2.weight" in without
    assert all("linear_fc2" in name for name in without)


def test_a_rank_s_file_that_ends_too_early_ends_it(tmp_path: Path) -> None:
    """What lies where in a file of one rank is said at its end: without that the file is named, no more."""
    shutil.copytree(GOLDEN / "0.16.1-legacy-pp", tmp_path / "run")
    file = min((tmp_path / "run").rglob("model_optim_rng.pt"))
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError) as caught:
        deep(tmp_path / "run")
    assert file.parent.name in str(caught.value)


def test_memory_is_a_few_steps(tmp_path: Path) -> None:
    """A tensor of many steps takes no more memory than a few of them, read straight or put together."""
    large = torch.randn(4096, 4096, generator=torch.Generator().manual_seed(2))
    folder = stored(tmp_path, lambda values: values.update({NORM: large}))
    deep(folder)  # imports
    tracemalloc.start()
    try:
        # From when the metadata is read: of it, Python's own read takes room for the largest there may be.
        examined = deep(folder, threads=1, on_total=lambda _: tracemalloc.reset_peak())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert examined.tensors[NORM].digest == digest_of(large)
    assert peak < 8 * examination.STEP_BYTES < large.nbytes


def test_a_caller_can_end_it(tmp_path: Path) -> None:
    """What `on_bytes` raises comes out, and no thread goes on; threads must be some."""

    class EnoughError(Exception):
        pass

    def stop(_: int) -> None:
        raise EnoughError

    folder = stored(tmp_path)
    with pytest.raises(EnoughError):
        deep(folder, on_bytes=stop)
    with pytest.raises(OptionError, match="at least one thread"):
        deep(folder, threads=0)


def test_it_is_told_as_json(tmp_path: Path) -> None:
    """The report has it all; without `deep` it has nothing of it, and is the same otherwise."""
    folder = stored(tmp_path)
    report = pp_export.inspect(folder, deep=True)
    shallow = pp_export.inspect(folder)
    assert report.ok
    assert report.to_json()["examined"] == to_json_value(report.examined)
    assert shallow.to_json() == {**report.to_json(), "examined": None}
