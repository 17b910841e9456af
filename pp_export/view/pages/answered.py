"""The page of a comparison of logits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pp_export.view.pages.document import page
from pp_export.view.pages.sections import facts, verdict
from pp_export.view.text import logit_facts

if TYPE_CHECKING:
    from pp_export.verification.comparison import LogitComparison


def logits_page(result: LogitComparison, seconds: float) -> bytes:
    """How far a folder's logits are from the recorded ones; it took so many `seconds`."""
    text = "the folder answers as the recorded model" if result.ok else "DIFFERENT"
    rows = {"folder": result.folder, **logit_facts(result), "took": f"{seconds:.1f} s"}
    sections = [verdict(text, good=result.ok), facts("The comparison", rows)]
    return page(f"Logits of {Path(result.folder).name}", sections)
