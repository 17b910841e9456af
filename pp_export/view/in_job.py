"""Progress inside a training job, which must not notice it: rich draws random numbers for its styles."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pp_export.steps.telling import ExportProgress


class JobView:
    """An `ExportView` that leaves the job's random numbers as they were."""

    def __init__(self) -> None:
        with _same_random_numbers():
            from pp_export.view.progress import ExportView

            self._view = ExportView(in_job=True)
            self._view.__enter__()

    def __call__(self, now: ExportProgress) -> None:
        """The export is that far."""
        with _same_random_numbers():
            self._view(now)

    def close(self) -> None:
        """Show nothing any more."""
        with _same_random_numbers():
            self._view.__exit__(None, None, None)


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)
