"""How two sides differ, as text on stdout: what each tensor shows, and where in the model the errors are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from pp_export.view.text import console, empty_table, human_bytes

if TYPE_CHECKING:
    from rich.table import Table

    from pp_export.verification.by_layer import LayerErrors
    from pp_export.verification.diff import Difference, SpecDifference

_MAX_ROWS, _MAX_NAMED = 40, 3
_MAX_COLUMNS = 100
_LEVELS = "▁▂▃▄▅▆▇█"
_EQUAL, _ABSENT = "·", " "


def print_difference(result: Difference) -> None:
    """How two sides differ: a line for each tensor that does, where that is in the model, and the verdict."""
    out = console()
    for folder, names in ((result.a, result.only_in_a), (result.b, result.only_in_b)):
        for name in names:
            out.print(f"ONLY in {folder}: {name}", soft_wrap=True)
    for line in _specs_that_differ(result.other_spec):
        out.print(line, soft_wrap=True)
    for setting in result.config:
        out.print(f"FUNCTION: {setting.setting}: {setting.a!r}, {setting.b!r}", soft_wrap=True)
    if result.other_values:
        out.print(_values_that_differ(result))
    for line in layer_chart(result.by_layer):
        out.print(line, soft_wrap=True)
    for note in result.notes:
        out.print(f"note: {note}", soft_wrap=True)
    verdict = "identical" if result.identical else "within the tolerance" if result.ok else "different"
    planned = (
        "" if result.planned_bytes is None else f"; {human_bytes(result.planned_bytes)} of memory planned"
    )
    unread = f", {result.num_equal_by_digest:,} of them by the digests that both record, unread"
    out.print(
        f"{result.a} and {result.b}: {verdict} ({result.num_equal:,} tensors equal"
        f"{unread * bool(result.num_equal_by_digest)}; {human_bytes(result.num_bytes_read)} read{planned})",
        soft_wrap=True,
    )


def _specs_that_differ(specs: Iterable[SpecDifference]) -> Iterator[str]:
    """A line for each tensor of another shape, and one for all whose types alone are others."""
    names: dict[tuple[str, str], list[str]] = {}
    for spec in specs:
        (dtype_a, shape_a), (dtype_b, shape_b) = (text.split("[", 1) for text in (spec.a, spec.b))
        if shape_a != shape_b:
            yield f"SHAPE or type: {spec.name}: {spec.a}, {spec.b}"
        else:
            names.setdefault((dtype_a, dtype_b), []).append(spec.name)
    for (dtype_a, dtype_b), of_types in names.items():
        told = ", ".join(of_types[:_MAX_NAMED]) + ", ..." * (len(of_types) > _MAX_NAMED)
        count = f"{len(of_types):,} tensors" if len(of_types) > 1 else "one tensor"
        yield f"SHAPE or type: {count}, {dtype_a} and {dtype_b}: {told}"


def layer_chart(errors: Sequence[LayerErrors]) -> list[str]:
    """The largest relative error of each layer, a line for each kind of tensor, with a column for each layer,
    or for a few of them where there are many: higher is larger, by orders of magnitude. Nothing where nothing
    differs, or only outside of layers.
    """
    in_layers = [each for each in errors if each.layer is not None]
    sizes = [each.max_rel_error for each in in_layers if each.max_rel_error > 0] or [1.0]
    if not any(each.num_different for each in in_layers):
        return []
    layers = sorted({each.layer for each in in_layers if each.layer is not None})
    step = -(-len(layers) // _MAX_COLUMNS)
    columns = [layers[begin : begin + step] for begin in range(0, len(layers), step)]
    kinds = list(dict.fromkeys(each.kind for each in in_layers))
    width = max(map(len, kinds))
    each_column = "each column a layer" if step == 1 else f"each column up to {step} layers"
    lines = [f"largest relative error, layers {layers[0]} to {layers[-1]}, {each_column}; {_EQUAL} is equal:"]
    for kind in kinds:
        of_kind = [each for each in in_layers if each.kind == kind]
        worst = max(of_kind, key=lambda each: each.max_rel_error)
        marks = (
            _mark(
                [each for each in of_kind if each.layer in column],
                min(sizes, default=1.0),
                max(sizes, default=1.0),
            )
            for column in columns
        )
        told = (
            f"at most {worst.max_rel_error:.2g}, in layer {worst.layer}" if worst.num_different else "equal"
        )
        lines.append(f"  {kind:<{width}} {''.join(marks)} {told}")
    return lines


def _mark(errors: Iterable[LayerErrors], least: float, largest: float) -> str:
    """The column of some layers, between the least and the largest error of all."""
    errors = list(errors)
    if not errors:
        return _ABSENT
    if not any(each.num_different for each in errors):
        return _EQUAL
    size = max(each.max_rel_error for each in errors)
    if size <= least or least == largest:
        return _LEVELS[-1 if size == largest else 0]
    share = math.log(size / least) / math.log(largest / least)
    return _LEVELS[round(share * (len(_LEVELS) - 1))]


def _values_that_differ(result: Difference) -> Table:
    """A row for each tensor, those with the largest errors first; with a tolerance, those outside of it."""
    table = empty_table()
    columns = ["tensor", "differ", "of", "outside", "not finite", "absolute", "relative", "ULP"]
    if result.tolerance.is_exact:
        columns.remove("outside")
    for column in columns:
        table.add_column(column, overflow="fold", justify="left" if column == "tensor" else "right")
    ordered = sorted(result.other_values, key=lambda value: (-value.num_outside, -value.max_rel_error))
    for value in ordered[:_MAX_ROWS]:
        steps = "" if value.max_ulp_error is None else f"{value.max_ulp_error:,.0f}"
        told = {
            "tensor": value.name,
            "differ": f"{value.num_different:,}",
            "of": f"{value.num_elements:,}",
            "outside": f"{value.num_outside:,}",
            "not finite": f"{value.num_not_finite:,}" if value.num_not_finite else "",
            "absolute": f"{value.max_abs_error:g}",
            "relative": f"{value.max_rel_error:g}",
            "ULP": steps,
        }
        table.add_row(*(told[name] for name in columns))
    if len(ordered) > _MAX_ROWS:
        table.add_row(f"and {len(ordered) - _MAX_ROWS} more (--json lists all)")
    return table
