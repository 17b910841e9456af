"""What every rank does after a failure, its own or another's: all stop, one cleans up, all raise the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pp_export.core import errors
from pp_export.core.errors import ExportError, PeerError, StoppedError, StopRequest
from pp_export.disk import folders
from pp_export.distributed.abort import Failure
from pp_export.distributed.world import World
from pp_export.process import signals
from pp_export.steps import resumption

GRACE_SECONDS = 6.0
_GONE = "ended without a word (killed, stopped, out of memory, or its node is gone)"


@contextmanager
def ending_together(world: World, staging: Path | None, *, resumable: bool = False) -> Iterator[None]:
    """What all ranks do inside ends on all of them as soon as it fails on one; every rank raises the same
    ExportError, and nothing is left of the `staging` folder, unless it is `resumable` and holds anything that
    is committed.
    """
    world.control.also_check(signals.check)
    try:
        world.check_start()
        yield
    except BaseException as error:
        failure = abort(world, staging, error, resumable=resumable)
        # KeyboardInterrupt and SystemExit mean more than this export
        if not isinstance(error, (Exception, StopRequest)):
            raise
        raise failure from error


def abort(
    world: World, staging: Path | None, error: BaseException, *, resumable: bool = False
) -> ExportError:
    """Stop all ranks, wait until they have, and leave nothing behind. The error that all ranks raise.

    Called by every rank, with the `error` that it has caught. Ranks write into the staging folder, so one
    rank removes it, when each has reported or stayed silent too long.
    """
    signals.settle()
    own = errors.as_export_error(error)
    own.at(rank=world.rank)
    world.abort.fail(own)
    is_reporter = world.abort.elect_reporter(GRACE_SECONDS)
    world.data.end_transfers()
    if not is_reporter:
        return world.abort.conclusion() or own
    failures, silent = world.abort.failures(GRACE_SECONDS if world.rank == 0 else 1.0)
    cause, witness = find_cause(failures, silent, own, world)
    if left := _leave(staging, resumable=resumable):
        cause.findings = (*cause.findings, left)
    world.abort.conclude(cause, witness)
    return cause


def find_cause(
    failures: Sequence[Failure], silent: Sequence[int], own: ExportError, world: World
) -> tuple[ExportError, int]:
    """Of all that ranks have said, the error that tells most, and the rank that knows most of it. A
    launcher stops all ranks when one ends, and ranks break off what they are blocked in: so what a rank
    did itself comes first, then what one saw of a rank that has ended or hangs, then that one has ended,
    and last that they were told to stop.
    """
    first_hand = [failure for failure in failures if not failure.is_hearsay]
    origins = [failure for failure in first_hand if failure.is_origin]
    seen = [failure for failure in first_hand if any(map(failure.names, silent))]
    others = sorted(first_hand, key=lambda failure: failure.is_stop)
    gone = [f"rank {rank} {_GONE}" for rank in silent]
    chosen = next(iter(origins or seen or ([] if gone else others)), None)
    cause, witness = own, world.rank
    if chosen is None and gone and first_hand:
        cause = PeerError(
            f"rank {silent[0]} ended without a word",
            where={"rank": ", ".join(map(str, silent))},
            advice="its own log, the launcher's and the kernel's (dmesg: out of memory) may say more",
        )
        gone += [f"rank {f.rank} then said: {f.error['what']}" for f in others]
    elif chosen is not None and chosen.rank != world.rank:
        cause = errors.from_json(chosen.error).at(rank=chosen.rank)
        witness = chosen.rank if chosen.is_origin else world.rank
    also = [f"rank {f.rank} also failed: {f.error['what']}" for f in origins if f is not chosen]
    if isinstance(cause, StoppedError):
        also += [f"rank {rank} had not come by then" for rank in world.abort.absent]
    cause.findings = (*cause.findings, *also, *gone)
    return cause, witness


def _leave(staging: Path | None, *, resumable: bool) -> str | None:
    """Remove the staging folder, or keep it where it is `resumable`; what is to be said if it stays."""
    try:
        left = resumption.left_for_later(staging) if resumable and staging is not None else None
        if left is not None:
            return left
        if staging is not None:
            folders.discard_folder(staging)
    except ExportError as error:
        return f"the staging folder could not be removed: {error.what}: {staging}"
    return None
