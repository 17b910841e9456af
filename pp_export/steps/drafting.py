"""The first draft of a table for a class that none serves, as text with its holes marked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pp_export.architecture import table_files
from pp_export.architecture.draft import Draft, Kind, Row, draft
from pp_export.architecture.rules import Architecture, checked, with_rows
from pp_export.checkpoint.formats import describe_checkpoint
from pp_export.core.errors import RuleError
from pp_export.core.tensors import Shape
from pp_export.megatron import settings
from pp_export.reference.definition import class_name
from pp_export.reference.own_weights import read_specs
from pp_export.reference.pending_definition import PendingDefinition
from pp_export.reference.reference_folder import Reference, read_reference

_SIZES = {
    "num_attention_heads": "num_attention_heads",
    "num_query_groups": "num_key_value_heads",
    "head_dim": "head_dim",
}
"""Sizes that transforms ask for, and where config.json says them if the training args don't."""


def draft_table(checkpoint: Path, reference: Path, *, iteration: int | None, extends: str | None) -> str:
    """A table, in YAML, with a row for all that names and shapes of a checkpoint and of the reference's class
    tell, on top of the table `extends` (default: the nearest by name, or llama's).

    Called by one process. Raises RuleError where nothing says which tensors the class has.
    """
    catalog = describe_checkpoint(checkpoint, iteration)
    found = read_reference(reference, code=False)
    name = class_name(found.config)
    base_name = extends or next(iter(table_files.nearest(name)), "llama")
    base = table_files.load(base_name)
    stored = {tensor: spec.shape for tensor, spec in catalog.specs.items()}
    drafted = draft(base, stored, _expected(found), _sizes(catalog.description.args, found.config))
    _check(base, drafted)
    lines = [
        f"# A first draft for {name}, by names and shapes alone.",
        f"# {base_name}.yaml makes {drafted.num_inherited} of {len(stored)} tensors already.",
        "# It doesn't tell what the model computes: see to `config`, `requires`, `defaults`"
        " (`pp_export docs architectures`).",
        "# `pp_export plan --architecture THIS.yaml` names what is left; equal logits prove it.",
        f"extends: {base_name}",
        f"serves: [{name}]",
        *(
            [f"model_type: {json.dumps(kind)}"]
            if isinstance(kind := found.config.get("model_type"), str)
            else []
        ),
        "rules:" if drafted.rows else "rules: []",
        *(line for row in drafted.rows for line in _row(row)),
    ]
    if drafted.open_megatron:
        lines.append("  # What these Megatron tensors become isn't known:")
        lines += [f"  # - megatron: {kind.pattern}  # {_told(kind)}" for kind in drafted.open_megatron]
    if drafted.missing:
        lines.append("  # Nothing makes these Hugging Face tensors:")
        lines += [f"  #   hf: {kind.pattern}  # {_told(kind)}" for kind in drafted.missing]
    return "\n".join(lines) + "\n"


def _expected(reference: Reference) -> Mapping[str, Shape]:
    with PendingDefinition.start(reference.config) as asked:
        definition = asked.result()
    if definition is not None:
        return definition.tensors
    specs = read_specs(reference.folder, reference.weights)
    if specs is None:
        raise RuleError(
            "nothing says which tensors the class has",
            where={"class": class_name(reference.config)},
            expected="a class of the installed transformers, or the reference's own safetensors files",
            got="neither",
            advice="download the weights of the reference too, or install the release that has the class",
        )
    return {name: spec.shape for name, spec in specs.items()}


def _sizes(args: Mapping[str, Any] | None, config: Mapping[str, Any]) -> dict[str, int]:
    trained = {} if args is None else settings.derive(args)
    sizes = {}
    for size, key in _SIZES.items():
        own = trained[size].value if size in trained else None
        value = own if isinstance(own, int) else config.get(key)
        if isinstance(value, int):
            sizes[size] = value
    return sizes


def _check(base: Architecture, drafted: Draft) -> None:
    """Raise RuleError unless the rows are those of a table."""
    rows = [
        {"megatron": row.megatron, "hf": dict(row.hf), "transform": row.transforms[0]} for row in drafted.rows
    ]
    checked(base.name, {**base.table, "rules": with_rows(base.table["rules"], rows)})


def _row(row: Row) -> Iterator[str]:
    yield f"  - megatron: {row.megatron}"
    if set(row.hf) == {""}:
        yield f"    hf: {row.hf['']}"
    else:
        yield "    hf:"
        yield from (f"      {role}: {name}" for role, name in row.hf.items())
    first, *others = row.transforms
    if others:
        yield f"    transform: {first}  # or {', '.join(others)}: shapes don't tell"
    elif first != "copy":
        yield f"    transform: {first}"


def _told(kind: Kind) -> str:
    return f"{list(kind.shape)}, {len(kind.numbers)} of them"
