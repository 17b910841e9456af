"""Progress inside a training job, which must not notice it: rich draws random numbers for its styles."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pp_export.distributed.world import World
    from pp_export.planning.export_plan import ExportPlan
    from pp_export.steps.inputs import ExportInputs
    from pp_export.view.progress import ExportView


class JobProgress:
    """An `ExportView` that leaves the job's random numbers as they were; on rank 0, closed by its maker."""

    def __init__(self, world: World, *, verifies: bool) -> None:
        self._world, self._verifies = world, verifies
        self._view: ExportView | None = None

    def plan(self, inputs: ExportInputs, plan: ExportPlan) -> None:
        """The plan is known."""
        with _same_random_numbers():
            from pp_export.view.progress import ExportView

            self._view = ExportView(self._world, verifies=self._verifies)
            self._view.__enter__()
            self._view.plan(inputs, plan)

    def poll(self) -> None:
        """Called often while bytes move."""
        if self._view is not None:
            with _same_random_numbers():
                self._view.poll()

    def close(self) -> None:
        """Take the bars away."""
        if self._view is not None:
            with _same_random_numbers():
                self._view.__exit__(None, None, None)


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)
