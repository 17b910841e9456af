"""Claims of `pp_export.reference.own_weights`: what an index and headers say, neither of them trusted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from pp_export.core import dtypes
from pp_export.core.errors import ReferenceFolderError
from pp_export.core.tensors import TensorSpec
from pp_export.reference import own_weights
from pp_export.reference.own_weights import read_specs
from pp_export.reference.reference_folder import read_reference
from tests.fixtures.reference_files import CONFIG, INDEX, opened_meanwhile, refusal, write_files


def test_weights_of_an_index(tmp_path: Path) -> None:
    """The index gives names, the headers give shapes and types; without the files there are names only."""
    tensors: dict[str, Any] = {
        "a": np.zeros((2, 3), np.float16),
        "b": np.zeros((), np.float32),
        "c": np.zeros((0, 4), np.int64),
    }
    index = {
        "metadata": {},
        "weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors", "c": "x-2.safetensors"},
    }
    folder = write_files(tmp_path, {"config.json": CONFIG, INDEX: index})
    save_file({"a": tensors["a"]}, folder / "x-1.safetensors")
    reference = read_reference(folder)
    assert reference.weights == index["weight_map"]
    assert read_specs(reference.folder, reference.weights) is None
    save_file({"b": tensors["b"], "c": tensors["c"]}, folder / "x-2.safetensors")
    assert read_specs(reference.folder, reference.weights) == {
        "a": TensorSpec((2, 3), dtypes.from_torch("float16")),
        "b": TensorSpec((), dtypes.from_torch("float32")),
        "c": TensorSpec((0, 4), dtypes.from_torch("int64")),
    }
    save_file({"b": tensors["b"]}, folder / "x-2.safetensors")
    with pytest.raises(ReferenceFolderError) as error:
        read_specs(reference.folder, reference.weights)
    assert error.value.findings == ("c: not in x-2.safetensors",)


def test_weights_of_a_single_file(tmp_path: Path) -> None:
    """A single model.safetensors gives names and specs; a damaged one is refused."""
    folder = write_files(tmp_path, {"config.json": CONFIG})
    save_file({"a": np.zeros((2, 3), np.float32)}, folder / "model.safetensors")
    reference = read_reference(folder)
    assert reference.weights == {"a": "model.safetensors"}
    assert read_specs(reference.folder, reference.weights) == {
        "a": TensorSpec((2, 3), dtypes.from_torch("float32"))
    }
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)
    assert "can't be read" in refusal(folder).what


def test_an_element_type_that_we_do_not_know(tmp_path: Path) -> None:
    """Names are known whatever the type; specs with a type that we can't write are refused by name."""
    header = json.dumps({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    data = len(header).to_bytes(8, "little") + header + b"\0"
    reference = read_reference(write_files(tmp_path, {"config.json": CONFIG, "model.safetensors": data}))
    assert list(reference.weights or ()) == ["a"]
    with pytest.raises(ReferenceFolderError) as error:
        read_specs(reference.folder, reference.weights)
    assert error.value.findings == ("a: unknown type F4",)


@pytest.mark.parametrize(
    "shard",
    [
        *("../outside.safetensors", "/outside.safetensors", "ABSOLUTE", "sub/outside.safetensors", ""),
        *("..\\outside.safetensors", "a\0.safetensors", "outside.safetensors\n", "é.safetensors"),
        *(".hidden.safetensors", "outside.bin", "../../../../../../etc/passwd"),
        *(7, None, ["outside.safetensors"], {"outside.safetensors": 1}),
    ],
)
def test_a_shard_outside_the_folder_is_refused_unopened(
    shard: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index entry that isn't a plain file name stops the reading; the file it means is never opened."""
    save_file({"a": np.zeros(1)}, tmp_path / "outside.safetensors")
    shard = str(tmp_path / "outside.safetensors") if shard == "ABSOLUTE" else shard
    index = {"weight_map": {"good": "model-1.safetensors", "a": shard}}
    folder = write_files(tmp_path / "source", {"config.json": CONFIG, INDEX: index, "sub/x": ""})
    by_library: list[object] = []  # the library opens files without telling Python's audit hooks
    monkeypatch.setattr(own_weights, "safe_open", lambda path, **_: by_library.append(path))
    with opened_meanwhile() as opened:
        error = refusal(folder)
    assert error.findings == (f"'a': {shard!r}",)
    assert not by_library
    assert set(opened) == {str(folder / "config.json"), str(folder / INDEX)}


@pytest.mark.parametrize("index", [{}, {"weight_map": ["a"]}, {"weight_map": None}])
def test_an_index_without_weight_map(index: Any, tmp_path: Path) -> None:
    """An index that maps nothing is no index."""
    assert "no weight_map" in refusal(write_files(tmp_path, {"config.json": CONFIG, INDEX: index})).what


def test_specs_look_only_inside_the_folder(tmp_path: Path) -> None:
    """Even a map made by hand can't make the header reader leave the folder."""
    save_file({"a": np.zeros(1)}, tmp_path / "outside.safetensors")
    folder = write_files(tmp_path / "source", {"x": ""})
    with pytest.raises(ReferenceFolderError, match="leads out"):
        read_specs(folder, {"a": "../outside.safetensors"})
