"""What ranks have stored of tensors, put together: every element once, of one type, or a refusal that lists
all that is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pp_export.checkpoint.catalog import StoredBox, StoredTensor
from pp_export.core.dtypes import DType
from pp_export.core.errors import CheckpointError
from pp_export.core.tensors import Shape, check_coverage

_MAX_SHOWN, _MAX_FILES = 30, 6


@dataclass
class Pieces:
    """The pieces of one tensor so far: its types and shapes as its pieces have them, its boxes, and the file
    of each.
    """

    dtypes: dict[DType, str] = field(default_factory=dict)
    shapes: dict[Shape, str] = field(default_factory=dict)
    boxes: list[StoredBox] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    def add(self, file: str, dtype: DType, shape: Shape, box: StoredBox) -> None:
        """One more piece, of a tensor of `shape`; boxes without elements are none."""
        self.dtypes.setdefault(dtype, file)
        self.shapes.setdefault(shape, file)
        if box.box.volume:
            self.boxes.append(box)
            self.files.append(file)


def put_together(pieces: Mapping[str, Pieces], advice: str) -> tuple[StoredTensor, ...]:
    """The tensors by name. Raises one CheckpointError that lists those whose pieces disagree in type or
    shape, overlap or leave gaps.
    """
    findings: list[str] = []
    tensors = []
    for name in sorted(pieces):
        of_name = pieces[name]
        faults = _disagreements(of_name)
        shape, dtype = next(iter(of_name.shapes)), next(iter(of_name.dtypes))
        try:
            check_coverage(name, shape, [stored.box for stored in of_name.boxes])
        except CheckpointError as error:
            faults.append(f"expected {error.expected}, got {error.got}, of {_named(of_name.files)}")
        findings += [f"{name}: {fault}" for fault in faults]
        tensors.append(StoredTensor(name, shape, dtype, tuple(of_name.boxes)))
    if findings:
        more = len(findings) - _MAX_SHOWN
        raise CheckpointError(
            "the pieces that ranks have stored do not make whole tensors",
            expected="every element of a tensor once, and one type and shape on all ranks",
            got=f"{len(findings)} faults",
            advice=advice,
            findings=findings[:_MAX_SHOWN] + ([f"and {more} more"] if more > 0 else []),
        )
    return tuple(tensors)


def _disagreements(of_name: Pieces) -> list[str]:
    faults = []
    if len(of_name.dtypes) > 1:
        said = ", ".join(f"{dtype.torch_name} in {file}" for dtype, file in of_name.dtypes.items())
        faults.append(f"its pieces are of several types: {said}")
    if len(of_name.shapes) > 1:
        said = ", ".join(f"{list(shape)} in {file}" for shape, file in of_name.shapes.items())
        faults.append(f"its pieces are of tensors of several shapes: {said}")
    return faults


def _named(files: Sequence[str]) -> str:
    found = list(dict.fromkeys(files))
    return ", ".join(found[:_MAX_FILES]) + (
        f" and {len(found) - _MAX_FILES} more" * (len(found) > _MAX_FILES)
    )
