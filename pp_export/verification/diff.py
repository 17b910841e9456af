"""Two Hugging Face folders compared tensor by tensor, however each is cut into files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pp_export.core import weight_index
from pp_export.core.errors import VerificationError
from pp_export.core.file_names import INDEX, SINGLE_WEIGHTS

if TYPE_CHECKING:
    import torch

_STEP_ELEMENTS = 4 << 20


@dataclass(frozen=True)
class SpecDifference:
    """A tensor whose dtype or shape differs; its values were not compared."""

    name: str
    a: str
    b: str


@dataclass(frozen=True)
class ValueDifference:
    """A tensor of equal dtype and shape whose bits differ.

    `max_abs_error` is over the differing elements whose error is a finite number; `num_not_finite` counts the
    others, where a side is NaN or infinite. -0.0 and 0.0 differ, with error 0.
    """

    name: str
    num_elements: int
    num_different: int
    num_not_finite: int
    max_abs_error: float


@dataclass(frozen=True)
class Difference:
    """Everything in which two folders' tensors differ, in the order of the names."""

    a: str
    b: str
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    other_spec: tuple[SpecDifference, ...]
    other_values: tuple[ValueDifference, ...]
    num_equal: int

    @property
    def identical(self) -> bool:
        """Whether both have the same names, shapes, dtypes and bits."""
        return not (self.only_in_a or self.only_in_b or self.other_spec or self.other_values)

    def __repr__(self) -> str:
        num_different = len(self.other_spec) + len(self.other_values)
        return (
            f"Difference(a={self.a!r}, b={self.b!r}, identical={self.identical}, equal={self.num_equal},"
            f" different={num_different}, only_in_a={len(self.only_in_a)}, only_in_b={len(self.only_in_b)})"
        )

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values, as `pp_export diff --json` gives it; see `schemas/diff.json`."""
        return {"schema_version": 1, **asdict(self), "identical": self.identical}


def diff_folders(a: Path, b: Path, on_tensor: Callable[[str], None] | None = None) -> Difference:
    """Compare every tensor of `a` and `b`; `on_tensor` is told each common name once it is compared.

    One tensor of each side is in hand at a time. Raises VerificationError where a folder can't be read.
    """
    with ExitStack() as stack:
        left, right = open_folder(Path(a), stack), open_folder(Path(b), stack)
        other_spec: list[SpecDifference] = []
        other_values: list[ValueDifference] = []
        num_equal = 0
        for name in sorted(left.keys() & right.keys()):
            specs = _spec(left[name], name), _spec(right[name], name)
            if specs[0] != specs[1]:
                other_spec.append(SpecDifference(name, *specs))
            elif difference := _compare(name, left[name].get_tensor(name), right[name].get_tensor(name)):
                other_values.append(difference)
            else:
                num_equal += 1
            if on_tensor is not None:
                on_tensor(name)
    return Difference(
        a=str(a),
        b=str(b),
        only_in_a=tuple(sorted(left.keys() - right.keys())),
        only_in_b=tuple(sorted(right.keys() - left.keys())),
        other_spec=tuple(other_spec),
        other_values=tuple(other_values),
        num_equal=num_equal,
    )


def open_folder(folder: Path, stack: ExitStack) -> Mapping[str, Any]:
    """For every tensor of the folder the open file that has it."""
    from safetensors import SafetensorError, safe_open

    home: dict[str, Any] = {}
    for path in _weight_files(folder):
        try:
            file = stack.enter_context(safe_open(path, framework="pt", device="cpu"))
        except (OSError, SafetensorError) as error:
            text = f"a weight file can't be read: {error}"
            raise VerificationError(text, where={"file": path}, advice="run verify on this folder") from None
        for name in file.keys():  # noqa: SIM118 (it has no __iter__)
            if name in home:
                raise VerificationError(
                    "two files have the same tensor", where={"tensor": name, "file": path}
                )
            home[name] = file
    return home


def _weight_files(folder: Path) -> list[Path]:
    """The files that the index names, or the only one, or where there is no index all of them."""
    path = folder / INDEX
    if not path.exists():
        single = folder / SINGLE_WEIGHTS
        found = [single] if single.exists() else sorted(folder.glob("*.safetensors"))
        if not found:
            raise VerificationError("the folder has no *.safetensors", where={"folder": folder})
        return found
    try:
        with path.open("rb") as file:
            index = weight_index.parse(file.read(weight_index.MAX_BYTES + 1))
        if index.weight_map is None:
            raise ValueError("it has no weight_map")
        if index.unsafe:
            raise ValueError("it names a file that may lie outside the folder")
    except (OSError, ValueError) as error:
        text = f"the index can't be used: {error}"
        raise VerificationError(text, where={"file": path}, advice="run verify on this folder") from None
    return [folder / name for name in sorted(set(index.weight_map.values()))]


def _spec(file: Any, name: str) -> str:
    view = file.get_slice(name)
    return f"{view.get_dtype()}{list(view.get_shape())}"


def _compare(name: str, a: torch.Tensor, b: torch.Tensor) -> ValueDifference | None:
    """None where the bits are equal. Errors are computed in float64, some elements at a time."""
    import torch

    bytes_a, bytes_b = _bytes(a), _bytes(b)
    if torch.equal(bytes_a, bytes_b):
        return None
    num_different, num_not_finite, max_abs_error = 0, 0, 0.0
    for start in range(0, a.numel(), _STEP_ELEMENTS):
        step = slice(start, start + _STEP_ELEMENTS)
        differs = (bytes_a[step] != bytes_b[step]).any(dim=1)
        if not differs.any():
            continue
        wide_a, wide_b = (_wide(each[step][differs].reshape(-1).view(a.dtype)) for each in (bytes_a, bytes_b))
        errors = (wide_a - wide_b).abs()
        is_finite = torch.isfinite(errors)
        errors = errors[is_finite]
        num_different += int(differs.sum())
        num_not_finite += int((~is_finite).sum())
        max_abs_error = max(max_abs_error, float(errors.max()) if errors.numel() else 0.0)
    return ValueDifference(name, a.numel(), num_different, num_not_finite, max_abs_error)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8).view(tensor.numel(), tensor.element_size())


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """As float64 (complex as complex128), which holds every floating type exactly and int64 to 53 bits."""
    import torch

    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)
