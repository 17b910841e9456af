"""What the shards of a staging folder are made from. A later run goes on with them if its own work is the
same; ranks don't count, since the bytes don't depend on them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pp_export.checkpoint.identity import file_identities
from pp_export.core import file_names, strict_json
from pp_export.core.digest import json_digest
from pp_export.core.json_values import to_json_value
from pp_export.core.version import VERSION
from pp_export.disk import files
from pp_export.options.kinds import ResultOptions, SourceOptions, flag
from pp_export.steps.inputs import Whole

Work = Mapping[str, Mapping[str, str]]
"""Facts by subject, each as a text."""

_MAX_BYTES = 256 << 20


def work_of(whole: Whole, options: ResultOptions) -> Work:
    """The work of an export of files: version, options, model, checkpoint, and the layout of the result."""
    inputs, plan = whole.inputs, whole.plan
    base = options.base if isinstance(options, SourceOptions) else None
    result = {flag(name): value for name, value in to_json_value(options.result).items()}
    # The file of the table may have another name elsewhere; its content counts.
    result["architecture"] = json_digest(inputs.architecture.table)
    facts: dict[str, Mapping[str, Any]] = {
        "version of": {"pp_export": VERSION},
        "option": result,
        "size of the model:": inputs.sizes.values,
        "file of the checkpoint": file_identities(Path(inputs.catalog.description.folder)),
        "file of the base": file_identities(base) if base is not None else {},
        "file of the result": {
            ranges[0].file: json_digest(ranges[0].range.header.decode("latin-1")) for ranges in plan.files
        },
    }
    return {subject: {name: str(value) for name, value in of.items()} for subject, of in facts.items()}


def write_work(staging: Path, work: Work) -> None:
    """Leave it in the staging folder, before the first shard."""
    files.write_file(staging / file_names.WORK, [json.dumps(work, ensure_ascii=False).encode()])


def read_work(staging: Path) -> Work | None:
    """What an earlier run has left; None where it had not come so far, or nobody can read it."""
    try:
        with (staging / file_names.WORK).open("rb") as file:
            value = strict_json.parse_object(file.read(_MAX_BYTES))
    except (OSError, strict_json.JsonError):
        return None
    return value if all(isinstance(of, dict) for of in value.values()) else None


def differences(before: Work, now: Work) -> Iterator[str]:
    """Where the work of an earlier run was another, a sentence each."""
    for subject in sorted({*before, *now}):
        then, here = before.get(subject, {}), now.get(subject, {})
        for name in sorted({*then, *here}):
            if then.get(name) != here.get(name):
                was, is_ = (of.get(name, "not there") for of in (then, here))
                yield f"{subject} {name}: {was} then, {is_} now"
