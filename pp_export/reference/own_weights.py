"""What the reference's own weights say: which tensors there are, in which files, their shapes and types."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from pp_export.core import dtypes, weight_index
from pp_export.core.errors import ReferenceFolderError
from pp_export.core.file_names import INDEX, SINGLE_WEIGHTS
from pp_export.core.strict_json import JsonError
from pp_export.core.tensors import Shape, TensorSpec
from pp_export.reference.safe_files import not_json, read_bytes, real_file


def read_weight_map(folder: Path) -> dict[str, str] | None:
    """Tensor name -> file, from the single file, as loaders prefer, or from the index; None without both."""
    indexed = _read_index(folder) if os.path.lexists(folder / INDEX) else None
    if os.path.lexists(folder / SINGLE_WEIGHTS):
        return dict.fromkeys(_read_header(folder, SINGLE_WEIGHTS), SINGLE_WEIGHTS)
    return indexed


def read_specs(folder: Path | None, weight_map: Mapping[str, str] | None) -> dict[str, TensorSpec] | None:
    """Shape and element type of the tensors of `weight_map`, from the headers of their files.

    None where there is no folder or map, or where a file that it names is absent.
    """
    if folder is None or weight_map is None:
        return None
    if not all(os.path.lexists(folder / file) for file in set(weight_map.values())):
        return None
    headers = {file: _read_header(folder, file) for file in sorted(set(weight_map.values()))}
    specs, findings = {}, []
    for name, file in weight_map.items():
        shape, type_name = headers[file].get(name, ((), ""))
        dtype = dtypes.from_safetensors(type_name)
        if dtype is not None:
            specs[name] = TensorSpec(shape, dtype)
        else:
            findings.append(f"{name}: " + (f"unknown type {type_name}" if type_name else f"not in {file}"))
    if findings:
        raise ReferenceFolderError(
            "the reference's own weights don't tell which tensors the model has",
            where={"reference": folder},
            findings=findings,
        )
    return specs


def _read_index(folder: Path) -> dict[str, str]:
    data = read_bytes(folder, INDEX, weight_index.MAX_BYTES)
    try:
        index = weight_index.parse(data)
    except JsonError as error:
        raise not_json(folder / INDEX, error) from error
    if index.weight_map is None or index.unsafe:
        raise ReferenceFolderError(
            "the index of the weights has no weight_map, or names files that can't be files of this folder",
            where={"file": folder / INDEX},
            expected="tensor name: NAME.safetensors, of letters, digits, dots, hyphens and underscores",
            findings=[f"{entry.tensor!r}: {entry.value!r}" for entry in index.unsafe],
        )
    return index.weight_map


def _read_header(folder: Path, file: str) -> dict[str, tuple[Shape, str]]:
    """Tensor name -> shape and the element type's safetensors name."""
    path = real_file(folder, file)
    try:
        with safe_open(path, framework="numpy") as weights:
            names = weights.keys()
            tensors = {name: weights.get_slice(name) for name in names}
            return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in tensors.items()}
    except (SafetensorError, OSError) as error:
        raise ReferenceFolderError(
            "a file of the reference's weights can't be read", where={"file": folder / file}, got=error
        ) from error
