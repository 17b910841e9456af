"""Claims about checkpoints that nobody foresaw: a CheckpointError, or the values that were stored."""

from __future__ import annotations

import io
import os
import pickletools
import shutil
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given

from pp_export.checkpoint import training_args
from pp_export.checkpoint.formats import describe_checkpoint
from pp_export.core.errors import CheckpointError
from pp_export.torch_file import archive
from tests.fixtures.bounds import bounded
from tests.fixtures.mutations import FUZZ_MORE, mutations, parts_of_pickle, pickle_mutations
from tests.fixtures.stored import read_all, write_stored

Mutate = Callable[[bytes], bytes]
TENSORS = {
    "decoder.layers.mlp.linear_fc2.weight": torch.arange(24, dtype=torch.float32).view(2, 3, 4),
    "decoder.final_layernorm.weight": torch.arange(4, dtype=torch.bfloat16),
    "output_layer.weight": torch.arange(8, 24, dtype=torch.int64).view(4, 4),
}
ARGS = {"num_layers": 2, "hidden_size": 4, "path": Path("/a/b"), "sizes": {1, 2}, "dtype": torch.bfloat16}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole checkpoint; nobody may write to it."""
    return write_stored(tmp_path_factory.mktemp("stored") / "iter_0000010", TENSORS, ARGS)


@pytest.fixture(scope="module")
def damaged(stored: Path) -> Path:
    """A copy, whose files are replaced again and again."""
    folder = stored.parent / "damaged" / "iter_0000010"
    return Path(shutil.copytree(stored, folder))


def check(folder: Path) -> dict[str, torch.Tensor]:
    """What is read of a damaged checkpoint, if anything is; it has no file but its own."""
    found: dict[str, torch.Tensor] = {}
    with bounded(), suppress(CheckpointError):
        found = read_all(describe_checkpoint(folder, None))
    return found


@pytest.fixture(scope="module")
def values(stored: Path) -> dict[str, torch.Tensor]:
    return read_all(describe_checkpoint(stored, None))


def with_file(stored: Path, damaged: Path, name: str, data: bytes) -> dict[str, torch.Tensor]:
    try:
        (damaged / name).write_bytes(data)
        return check(damaged)
    finally:
        shutil.copyfile(stored / name, damaged / name)


def is_stored(found: dict[str, torch.Tensor], values: dict[str, torch.Tensor]) -> bool:
    """Whether every tensor has the bytes of one that is stored: nothing ties a record to a name, or says that
    it holds all layers, but `.metadata` itself.
    """
    layers = [value for name, value in values.items() if ".layers." in name]
    stored = [*values.values(), torch.stack(layers)]
    known = {(value.dtype, value.numpy(force=True).tobytes()) for value in map(_as_bytes, stored)}
    return all((each.dtype, each.numpy().tobytes()) in known for each in map(_as_bytes, found.values()))


def _as_bytes(value: torch.Tensor) -> torch.Tensor:
    return value.contiguous().flatten().view(torch.uint8)


@FUZZ_MORE
@given(mutations())
def test_bytes_of_metadata(stored: Path, damaged: Path, values: Any, mutate: Mutate) -> None:
    """Damaged bytes in `.metadata`."""
    found = with_file(stored, damaged, ".metadata", mutate((stored / ".metadata").read_bytes()))
    assert is_stored(found, values)


@FUZZ_MORE
@given(pickle_mutations())
def test_instructions_of_metadata(
    stored: Path, damaged: Path, values: Any, mutate: Callable[[list[bytes]], bytes]
) -> None:
    """Other instructions in `.metadata`: harmful ones too."""
    parts = parts_of_pickle((stored / ".metadata").read_bytes())
    assert is_stored(with_file(stored, damaged, ".metadata", mutate(parts)), values)


@FUZZ_MORE
@given(mutations())
def test_bytes_of_records(stored: Path, damaged: Path, values: Any, mutate: Mutate) -> None:
    """Damaged bytes in the file of the tensors: what is accepted has every value right."""
    (name,) = (path.name for path in stored.glob("*.distcp"))
    found = with_file(stored, damaged, name, mutate((stored / name).read_bytes()))
    if found:
        assert found.keys() == values.keys()
        assert all(torch.equal(found[key], values[key]) for key in values)


@FUZZ_MORE
@given(mutations())
def test_bytes_of_common_pt(stored: Path, damaged: Path, mutate: Mutate) -> None:
    """Damaged bytes in `common.pt`: what is accepted has every arg right."""
    before = describe_checkpoint(stored, None).description.args
    try:
        (damaged / "common.pt").write_bytes(mutate((stored / "common.pt").read_bytes()))
        with bounded(), suppress(CheckpointError):
            assert describe_checkpoint(damaged, None).description.args == before
    finally:
        shutil.copyfile(stored / "common.pt", damaged / "common.pt")


def resealed(image: bytes, change: Callable[[str, bytes], bytes]) -> bytes:
    """An archive with other members, and the CRCs that fit."""
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(image)) as old, zipfile.ZipFile(written, "w") as new:
        for member in old.infolist():
            new.writestr(member.filename, change(member.filename.partition("/")[2], old.read(member)))
    return written.getvalue()


@FUZZ_MORE
@given(pickle_mutations())
def test_instructions_of_common_pt(stored: Path, mutate: Callable[[list[bytes]], bytes]) -> None:
    """Other instructions in the pickle of the training args, in a sound archive: a CheckpointError, or args
    that are JSON.
    """
    image = resealed(
        (stored / "common.pt").read_bytes(),
        lambda name, data: mutate(parts_of_pickle(data)) if name == "data.pkl" else data,
    )
    path = stored.parent / f"common-{os.getpid()}.pt"
    path.write_bytes(image)
    with bounded(), suppress(CheckpointError):
        state = archive.read(path, training_args.split).value
        training_args.args_of(state)
        list(training_args.notes_on(state))


def test_the_fuzzed_files_are_read_where_nothing_is_changed(stored: Path, damaged: Path, values: Any) -> None:
    """Without damage all of it is read, so that the tests above are about more than refusals."""
    assert check(damaged).keys() == values.keys()
    path = stored.parent / "sealed-again.pt"
    path.write_bytes(resealed((stored / "common.pt").read_bytes(), lambda _, data: data))
    assert archive.read(path, training_args.split).value["iteration"] == 10
    assert len(list(pickletools.genops((stored / ".metadata").read_bytes()))) > 100
