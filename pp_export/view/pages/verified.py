"""The page of a verification: the verdict, what was looked at, every fault."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from pp_export.core.words import counted
from pp_export.verification.findings import KINDS, shown
from pp_export.view.pages.document import page
from pp_export.view.pages.sections import Column, Section, facts, notes, table, verdict
from pp_export.view.text import human_bytes

if TYPE_CHECKING:
    from pp_export.verification import Verification


def verification_page(result: Verification, seconds: float) -> bytes:
    """What was found in a folder, in so many `seconds`."""
    rate = f" in {seconds:.1f} s, {human_bytes(result.num_bytes_read / max(seconds, 1e-3))}/s"
    rows = {
        "folder": result.folder,
        "checked": result.depth.replace("full", "full: every byte against the recorded digests", 1),
        "definition": f"held against {result.definition} of transformers"
        if result.definition
        else "none was held against it",
        "made by": "pp_export, as its manifest says" if result.made_by_us else "another program",
        "files": f"{result.num_files:,}, {counted(result.num_tensors, 'tensor')}",
        "read": human_bytes(result.num_bytes_read) + rate * bool(result.num_bytes_read),
    }
    found = f"{counted(len(result.faults), 'fault')} in {counted(len(_by_file(result)), 'file')}"
    sections = [
        verdict("no fault" if result.ok else found, good=result.ok),
        facts("What was checked", rows),
        *_faults(result),
        notes(result.notes),
    ]
    return page(f"Verification of {Path(result.folder).name}", sections)


def _faults(result: Verification) -> list[Section]:
    """The files at fault, the kinds of faults with their meaning, and each fault as verify told it."""
    kinds = Counter(fault.kind for fault in result.faults)
    columns = [
        Column("file", "code", choices=True),
        Column("tensor", "code"),
        Column("kind", choices=True),
        Column("what was expected and found"),
    ]
    return [
        table(
            "Faults",
            columns,
            (
                [shown(f.file), None if f.tensor is None else shown(f.tensor), f.kind, f.message]
                for f in result.faults
            ),
        ),
        table(
            "Files at fault",
            [Column("file", "code"), Column("faults", "count"), Column("kinds")],
            (
                [shown(file), sum(found.values()), ", ".join(found)]
                for file, found in _by_file(result).items()
            ),
        ),
        table(
            "What these faults are",
            [Column("kind"), Column("faults", "count"), Column("meaning")],
            ([kind, count, KINDS[kind]] for kind, count in kinds.most_common()),
        ),
    ]


def _by_file(result: Verification) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = {}
    for fault in result.faults:
        found.setdefault(fault.file, Counter())[fault.kind] += 1
    return found
