"""Two Hugging Face folders compared tensor by tensor, however each is cut into files."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

from pp_export.core.errors import OptionError
from pp_export.verification.by_layer import LayerErrors, by_layer
from pp_export.verification.side_by_side import EXACT, Pair, Tolerance, ValueDifference, compare
from pp_export.verification.weights import recorded_digests, tensors_of


@dataclass(frozen=True)
class SpecDifference:
    """A tensor whose dtype or shape differs; its values were not compared."""

    name: str
    a: str
    b: str


@dataclass(frozen=True)
class ConfigDifference:
    """A setting of the function that both sides compute, and its value on each; None where it says none."""

    setting: str
    a: Any
    b: Any


@dataclass(frozen=True)
class Difference:
    """Everything in which two sides differ, tensors in the order of their names, and in `config` the function
    that their config.json, or training args, say.

    `num_equal` tensors are equal. To say so all bytes of both were read, but for `num_equal_by_digest` of
    them, of which both manifests record the same digest. `num_bytes_read` counts both sides. `by_layer` tells
    where the errors are. Where a side is a checkpoint, `planned_bytes` is the peak memory (anonymous) that
    was planned; None of two folders. `notes` are sentences on what was compared.
    """

    a: str
    b: str
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    other_spec: tuple[SpecDifference, ...]
    other_values: tuple[ValueDifference, ...]
    num_equal: int
    num_equal_by_digest: int
    num_bytes_read: int
    tolerance: Tolerance = EXACT
    config: tuple[ConfigDifference, ...] = ()
    by_layer: tuple[LayerErrors, ...] = ()
    planned_bytes: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether both say the same function and have the same names, shapes and dtypes, and values that
        differ by no more than the tolerance.
        """
        return self._is_same_model and not any(value.num_outside for value in self.other_values)

    @property
    def identical(self) -> bool:
        """Whether both say the same function and have the same names, shapes, dtypes and bits."""
        return self._is_same_model and not self.other_values

    @property
    def _is_same_model(self) -> bool:
        return not (self.only_in_a or self.only_in_b or self.other_spec or self.config)

    def __repr__(self) -> str:
        num_different = len(self.other_spec) + len(self.other_values)
        return (
            f"Difference(a={self.a!r}, b={self.b!r}, identical={self.identical}, equal={self.num_equal},"
            f" different={num_different}, only_in_a={len(self.only_in_a)}, only_in_b={len(self.only_in_b)})"
        )

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values, as `pp_export diff --json` gives it; see `schemas/diff.json`."""
        return {"schema_version": 1, **asdict(self), "identical": self.identical, "ok": self.ok}


def check_comparison(threads: int, tolerance: Tolerance) -> None:
    """Raise OptionError for less than one thread, or a tolerance that is none."""
    if threads < 1:
        raise OptionError("--threads must be positive", got=threads)
    if not all(0 <= value < math.inf for value in astuple(tolerance)):
        raise OptionError(
            "a tolerance can't be used",
            expected="finite numbers, 0 or more",
            got=f"atol {tolerance.absolute:g}, rtol {tolerance.relative:g}, ulps {tolerance.ulps:g}",
        )


def diff_folders(
    a: Path,
    b: Path,
    *,
    quick: bool = False,
    threads: int = 1,
    tolerance: Tolerance = EXACT,
    on_bytes: Callable[[int], None] | None = None,
    on_total: Callable[[int], None] = lambda _: None,
) -> Difference:
    """Compare every tensor of `a` and `b`, `threads` pieces of a few MiB at a time.

    All bytes are read: a digest tells what a file held when it was written, not what it holds. `quick` takes
    its word where the manifests of both folders record the digest of a tensor, and reads only where they
    record different ones. `on_bytes` is told the size of every read, by one thread at a time; what it raises
    ends the comparison; `on_total` is told before how many bytes that will be. Raises OptionError for less
    than one thread or a tolerance that is none, and VerificationError where a folder can't be read.
    """
    check_comparison(threads, tolerance)
    left, right = tensors_of(Path(a)), tensors_of(Path(b))
    common = sorted(left.keys() & right.keys())
    other_spec = [
        SpecDifference(name, left[name].spec, right[name].spec)
        for name in common
        if left[name].spec != right[name].spec
    ]
    pairs = [Pair(left[name], right[name]) for name in common if left[name].spec == right[name].spec]
    to_read = pairs
    if quick:
        recorded = recorded_digests(Path(a), left).items() & recorded_digests(Path(b), right).items()
        names = {name for name, _ in recorded}
        to_read = [pair for pair in pairs if pair.name not in names]
    on_total(2 * sum(pair.a.num_bytes for pair in to_read))
    other_values, num_bytes_read = compare(to_read, threads, on_bytes, tolerance)
    return Difference(
        a=str(a),
        b=str(b),
        only_in_a=tuple(sorted(left.keys() - right.keys())),
        only_in_b=tuple(sorted(right.keys() - left.keys())),
        other_spec=tuple(other_spec),
        other_values=tuple(other_values),
        num_equal=len(pairs) - len(other_values),
        num_equal_by_digest=len(pairs) - len(to_read),
        num_bytes_read=num_bytes_read,
        tolerance=tolerance,
        by_layer=by_layer((pair.name for pair in pairs), other_values),
    )
