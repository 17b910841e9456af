"""What many exports have to say about themselves: a line for each iteration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pp_export.core.errors import ExportError
from pp_export.steps.report import ExportReport

SCHEMA_VERSION = 1
EXPORTED, SKIPPED, FAILED = "exported", "skipped", "failed"


@dataclass(frozen=True)
class Outcome:
    """What became of an iteration: `exported`, `skipped` for the reason in `notes`, or `failed` with `error`.
    `seconds` and `total_size` (bytes of tensors) are of an export that was made.
    """

    iteration: int
    output: str
    status: str
    seconds: float | None = None
    total_size: int | None = None
    notes: tuple[str, ...] = ()
    error: ExportError | None = None

    @classmethod
    def of(cls, iteration: int, done: ExportReport) -> Outcome:
        seconds = round(sum(done.seconds.values()), 3)
        return cls(iteration, done.output, EXPORTED, seconds, done.total_size, done.notes)

    def to_json(self) -> dict[str, Any]:
        error = None if self.error is None else self.error.to_json()
        return {**vars(self), "notes": list(self.notes), "error": error}


@dataclass
class ManyReport:
    """The outcomes by iteration, as far as they are known; on rank 0. `stopped`: a signal has ended it.
    `error` is what ended it before all was done.
    """

    outcomes: dict[int, Outcome] = field(default_factory=dict)
    stopped: bool = False
    error: ExportError | None = None

    @property
    def ok(self) -> bool:
        return self.error is None and all(each.status != FAILED for each in self.in_order)

    @property
    def in_order(self) -> Sequence[Outcome]:
        return [self.outcomes[iteration] for iteration in sorted(self.outcomes)]

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values, as `--report` and `--json` give it; see `schemas/many.json`."""
        return {
            "schema_version": SCHEMA_VERSION,
            "status": "ok" if self.ok else "failed",
            "stopped": self.stopped,
            "error": None if self.error is None else self.error.to_json(),
            "iterations": [each.to_json() for each in self.in_order],
        }
