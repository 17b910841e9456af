"""What every rank does after a failure, its own or another's: all stop, one cleans up, all raise the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pp_export.core import errors
from pp_export.core.errors import ExportError
from pp_export.disk import folders
from pp_export.distributed.world import World
from pp_export.process import signals
from pp_export.steps import resumption

GRACE_SECONDS = 6.0


@contextmanager
def ending_together(world: World, staging: Path | None, *, resumable: bool = False) -> Iterator[None]:
    """What all ranks do inside ends on all of them as soon as it fails on one; every rank raises the same
    ExportError, and nothing is left of the `staging` folder, unless it is `resumable` and holds anything that
    is committed.
    """
    try:
        yield
    except BaseException as error:
        failure = abort(world, staging, error, resumable=resumable)
        if not isinstance(error, Exception):  # KeyboardInterrupt and SystemExit mean more than this export
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
    own = error if isinstance(error, ExportError) else errors.unforeseen(error)
    own.at(rank=world.rank)
    world.abort.fail(own)
    is_reporter = world.abort.elect_reporter(GRACE_SECONDS)
    world.data.end_transfers()
    return world.abort.agree(_clean_up(world, staging, own, resumable) if is_reporter else None) or own


def _clean_up(world: World, staging: Path | None, own: ExportError, resumable: bool) -> ExportError:
    """What the reporter does: find the cause, and remove or keep the staging folder."""
    failures, silent = world.abort.failures(GRACE_SECONDS if world.rank == 0 else 1.0)
    origin = next((failure for failure in failures if failure.is_origin), None)
    is_own = origin is None or origin.rank == world.rank
    cause = own if origin is None or is_own else errors.from_json(origin.error).at(rank=origin.rank)
    findings = [
        f"rank {f.rank} also failed: {f.error['what']}" for f in failures if f.is_origin and f is not origin
    ]
    findings += [
        f"rank {rank} ended without a word (killed, stopped, out of memory, or its node is gone)"
        for rank in silent
    ]
    try:
        left = resumption.left_for_later(staging) if resumable and staging is not None else None
        if left is not None:
            findings.append(left)
        elif staging is not None:
            folders.discard_folder(staging)
    except ExportError as error:
        findings.append(f"the staging folder could not be removed: {error.what}: {staging}")
    cause.findings = (*cause.findings, *findings)
    return cause
