"""Whether an export was already made: its folder is whole, of this save and reference, with these options."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pp_export.core import file_names
from pp_export.core.errors import TargetError, VerificationError
from pp_export.disk.publish import holds_weights
from pp_export.options.kinds import ExportOptions, flag
from pp_export.steps.inputs import checkpoint_source, inputs_digest
from pp_export.steps.made_reference import reference_of
from pp_export.steps.provenance import told_options
from pp_export.verification import verify_folder


def is_exported(options: ExportOptions) -> bool:
    """Whether the output is what an export with `options` has made, by its structure and its manifest; no
    tensor is read. Called on rank 0.

    False where it is still to be made, or replaced with --overwrite. Raises TargetError where something else
    is there, and the errors of a checkpoint or reference that can't be read.
    """
    output = Path(os.path.abspath(options.output))
    if not output.is_dir() or (options.beside and not holds_weights(output)):
        return False
    faults = _faults(output)
    findings = faults or _differences(output, options)
    if findings and not options.overwrite:
        raise TargetError(
            "the output exists and is not this export"
            if not faults
            else "the output exists and is not whole",
            where={"output": output},
            findings=findings,
            advice="choose another --output, or pass --overwrite to replace it once the new one is complete",
        )
    return not findings


def _faults(output: Path) -> list[str]:
    try:
        return [str(fault) for fault in verify_folder(output, quick=True).faults] or _without_manifest(output)
    except VerificationError as error:
        return [error.what]


def _without_manifest(output: Path) -> list[str]:
    is_there = (output / file_names.MANIFEST).is_file()
    return [] if is_there else [f"there is no {file_names.MANIFEST}: another program has made it"]


def _differences(output: Path, options: ExportOptions) -> list[str]:
    told: dict[str, Any] = json.loads((output / file_names.MANIFEST).read_bytes())["provenance"]
    catalog = checkpoint_source(options).describe(())
    reference = reference_of(options, catalog)
    before, now = told["options"], told_options(options)
    found = [
        f"it was made with --{flag(name)} {before.get(name)}, asked for is {value}"
        for name, value in now.items()
        if before.get(name) != value
    ]
    iteration = catalog.description.iteration
    if told["iteration"] is not None and told["iteration"] != iteration:
        found.append(f"it is iteration {told['iteration']}, asked for is {iteration}")
    elif told.get("inputs_digest") is None:
        found.append("its manifest doesn't say of which save it is")
    elif told["inputs_digest"] != inputs_digest(catalog, reference):
        found.append("it was made of another save, of another run perhaps, or with another reference")
    return found
