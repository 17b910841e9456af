"""The story of many exports by one launch: iterations of one run, one after another.

Rank 0 says which is next, and every rank exports it (`export.py`), each time in a world of its own among the
ranks that joined once. So an export that fails ends on all ranks, and the next one begins anew.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from pp_export.core.errors import ExportError, PeerError, StoppedError, StopRequest, as_export_error
from pp_export.distributed.alone import alone, is_alone
from pp_export.export import export
from pp_export.options.iterations import Wanted, options_of
from pp_export.options.kinds import ExportOptions
from pp_export.process import signals
from pp_export.steps.failure import ending_together
from pp_export.steps.inputs import checkpoint_source
from pp_export.steps.many_report import FAILED, ManyReport, Outcome
from pp_export.steps.queue import Queue
from pp_export.view.many import ManyView

if TYPE_CHECKING:
    from pp_export.distributed.world import World

_LAST_SECONDS = 6.0
"""How long a rank that was told to stop waits for the others: torchrun kills after 30, and a failure takes
some of them.
"""


def run_many(wanted: Wanted, options: ExportOptions, *, shown: str, as_json: bool) -> int:
    """What the command line does, on each rank that a launcher started, or alone; the exit status."""
    view = ManyView(options, shown=shown, as_json=as_json)
    next_world: Callable[[float], World] = lambda seconds: alone(stall_seconds=seconds)  # noqa: E731
    if not is_alone():
        from pp_export.distributed import process_groups

        next_world = process_groups.join_for_many(stall_seconds=options.stall_seconds)
    if export_many(wanted, options, next_world, view):
        return 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)  # workers of an export that failed may be blocked in a transfer


def export_many(
    wanted: Wanted,
    options: ExportOptions,
    next_world: Callable[[float], World],
    view: ManyView,
) -> bool:
    """Export the iterations that are `wanted`, each to its own output; called by all ranks. Whether nothing
    failed, the same on all; to stop a watch is no failure.

    An iteration that fails doesn't stop the others; one that is exported and proved is skipped. `next_world`
    gives the next world of the ranks, with a patience in seconds. A signal ends it: the export in hand is
    undone, and all ranks leave when rank 0 has reported.
    """
    queue = Queue(wanted, options, view.news)
    failed: Outcome | None = None
    first: ExportError | None = None
    while True:
        signals.resume()
        is_stopped = signals.has_come()
        patience = min(_LAST_SECONDS, options.stall_seconds) if is_stopped else options.stall_seconds
        try:
            world = next_world(patience)
            try:
                iteration = _agree(world, wanted, queue, failed, is_stopped)
                if iteration is None:
                    return _end(world, queue.report, view)
                first = None
                failed = _export(world, iteration, options, queue, view)
            finally:
                signals.settle()
                world.close(1.0 if signals.has_come() else 10.0)
                gc.collect()  # what an export leaves refers to itself, and holds connections
        except (ExportError, StopRequest) as raised:
            error = as_export_error(raised)
            # A signal comes to the ranks one after another: what failed is asked again once, in a new world.
            if first is not None or is_stopped or not isinstance(error, (StoppedError, PeerError)):
                signals.settle()
                if failed is not None:
                    queue.done(failed)
                queue.report.error = first or error
                if os.environ.get("RANK", "0") == "0":
                    view.end(queue.report)
                return False
            first = error


def _agree(
    world: World, wanted: Wanted, queue: Queue, failed: Outcome | None, is_stopped: bool
) -> int | None:
    """The next iteration, on all ranks; None when there is none, or when one of them was told to stop. What
    has `failed` before counts only if nobody was: else it was undone for that.
    """

    def choose(told: list[bytes]) -> bytes:
        queue.report.stopped = any(map(json.loads, told))
        if queue.report.stopped:
            if not wanted.watch:
                queue.report.error = StoppedError("stopped by a signal before all was done")
            return json.dumps(None).encode()
        if failed is not None:
            queue.done(failed)
        return json.dumps(queue.next(world.control.check)).encode()

    with ending_together(world, None):
        told = world.control.gather(json.dumps(is_stopped).encode())
        iteration: int | None = json.loads(world.control.share(lambda: choose(told)))
    return iteration


def _export(
    world: World, iteration: int, options: ExportOptions, queue: Queue, view: ManyView
) -> Outcome | None:
    """One export; called by all ranks. The outcome of a failure; that of a success is known to the queue."""
    chosen = options_of(options, iteration)
    source = checkpoint_source(chosen)
    try:
        with view.of(world) as on_progress:
            done = export(source, chosen, world, on_progress=on_progress)
    except ExportError as error:
        return Outcome(iteration, str(chosen.output.absolute()), FAILED, error=error)
    if world.rank == 0:
        signals.settle()
        queue.done(Outcome.of(iteration, done))
    return None


def _end(world: World, report: ManyReport, view: ManyView) -> bool:
    """Called by all ranks: rank 0 reports, and all hear how it went."""

    def tell() -> bytes:
        signals.settle()
        view.end(report)
        return json.dumps(report.ok).encode()

    is_ok: bool = json.loads(world.control.share(tell))
    return is_ok
