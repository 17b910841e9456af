"""Claims of `steps/exported.py`: only what is whole, and the export that is asked for, is left as it is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pp_export.core import file_names
from pp_export.core.errors import TargetError
from pp_export.options.kinds import ExportOptions
from pp_export.steps.exported import is_exported
from tests.cpu.conftest import Checkpoint, Reference
from tests.fixtures.exports import export_here
from tests.fixtures.stored import read_stored, write_stored


class Case:
    """An export, and copies of its inputs to change."""

    def __init__(self, checkpoint: Path, reference: Path, root: Path) -> None:
        self.options: dict[str, Any] = {
            "checkpoint": root / "checkpoint",
            "reference": root / "reference",
            "output": root / "export",
        }
        shutil.copytree(checkpoint, root / "checkpoint")
        shutil.copytree(reference, root / "reference")
        export_here(**self.options)

    @property
    def save(self) -> Path:
        folder: Path = self.options["checkpoint"] / "iter_0000010"
        return folder

    def is_exported(self, **changes: Any) -> bool:
        return is_exported(ExportOptions(**self.options | changes))


@pytest.fixture
def case(checkpoint: Checkpoint, reference: Reference, tmp_path: Path) -> Case:
    return Case(checkpoint("qwen2", "tp2"), reference("qwen2"), tmp_path)


def test_the_same_export_is_known_again(case: Case, tmp_path: Path) -> None:
    """Wherever the checkpoint lies now and since when, and whatever says only how an export is made."""
    assert case.is_exported()
    assert case.is_exported(overwrite=True)
    assert case.is_exported(threads=1, verify=False)
    case.options["checkpoint"].rename(tmp_path / "moved")
    os.utime(tmp_path / "moved" / "iter_0000010" / ".metadata")
    assert case.is_exported(checkpoint=tmp_path / "moved")
    assert not case.is_exported(checkpoint=tmp_path / "moved", output=tmp_path / "absent")


def test_a_folder_that_lacks_weights_is_still_to_be_made(case: Case, tmp_path: Path) -> None:
    """What lies beside a model that is to come is nobody's export."""
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "notes").touch()
    assert not case.is_exported(output=tmp_path / "beside", contents="model")


def other_weights(case: Case) -> None:
    tensors, args = read_stored(case.options["checkpoint"])
    tensors["decoder.final_layernorm.weight"] += 1
    for name in tensors:
        if tensors[name].is_floating_point():
            tensors[name] = tensors[name] * 2
    shutil.rmtree(case.save)
    write_stored(case.save, tensors, args)


def other_tokenizer(case: Case) -> None:
    (case.options["reference"] / "generation_config.json").write_text('{"top_k": 7}')


def lost_shard(case: Case) -> None:
    sorted(case.options["output"].glob("*.safetensors"))[0].unlink()


def lost_manifest(case: Case) -> None:
    for name in (file_names.MANIFEST, file_names.SUMS):
        (case.options["output"] / name).unlink()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (other_weights, "it was made of another save"),
        (other_tokenizer, "or with another reference"),
        (lost_shard, "model-00001-of"),
        (lost_manifest, "another program has made it"),
        ({"dtype": "float16"}, "made with --dtype checkpoint, asked for is float16"),
        ({"max_shard_size": "1GB"}, "made with --max-shard-size 5GB, asked for is 1GB"),
    ],
)
def test_anything_else_is_never_taken_for_it(
    case: Case, change: Callable[[Case], None] | dict[str, Any], told: str
) -> None:
    """Another save or reference, other options, or a folder that isn't whole, is an error that says so; with
    --overwrite it is to be replaced.
    """
    changes = change if isinstance(change, dict) else {}
    if not isinstance(change, dict):
        change(case)
    with pytest.raises(TargetError, match="the output exists and is not") as caught:
        case.is_exported(**changes)
    assert any(told in finding for finding in caught.value.findings), caught.value
    assert not case.is_exported(**changes, overwrite=True)


def test_a_folder_that_tells_nothing_is_not_known(case: Case, tmp_path: Path) -> None:
    """With --provenance none nothing says of which save it is."""
    quiet = {"provenance": "none", "output": tmp_path / "quiet"}
    export_here(**case.options | quiet)
    with pytest.raises(TargetError) as caught:
        case.is_exported(**quiet)
    assert caught.value.findings == ("its manifest doesn't say of which save it is",)
