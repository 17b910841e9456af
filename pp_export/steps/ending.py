"""How a process of the command line ends after a failure: which rank says it, and where.

torchrun starts ranks that may fail alike before they know of each other, and prints a summary of its own
with what each left in a file for it: the text there is what stands last on the screen.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

from pp_export.core.errors import ExportError, StoppedError, StopRequest
from pp_export.disk import files
from pp_export.distributed.world import World
from pp_export.options.kinds import TargetOptions
from pp_export.process import signals
from pp_export.process.log import logger
from pp_export.steps import report_files
from pp_export.steps.failure import abort

_FIRST_SPEAKS_SECONDS = 2.0
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"


def wait_for_first(error: ExportError) -> None:
    """Called with what ends this process before it has met the others. Rank 0 goes on at once and says it
    for all that fail alike: its end makes the launcher stop the others here, which raises StopRequest. Who
    is still there then may speak.
    """
    if os.environ.get("RANK", "0") == "0":
        return
    if isinstance(error, StoppedError):
        raise StopRequest(error.what)
    time.sleep(_FIRST_SPEAKS_SECONDS)
    signals.settle()


def end_together(
    world: World, error: BaseException, options: TargetOptions, *, since: float, as_json: bool
) -> None:
    """What every rank does before its process ends, with the error that all have raised; `as_json` prints it
    to stdout, too.
    """
    failure = error if isinstance(error, ExportError) else abort(world, None, error)
    tell_launcher(failure, in_full=world.abort.is_witness)
    if world.abort.is_reporter:
        logger.error("error: %s", failure)
        tell_machines(failure, options, since=since, as_json=as_json)
    world.abort.leave_after_failure()


def tell_machines(
    error: ExportError, options: TargetOptions | None, *, since: float = 0.0, as_json: bool
) -> None:
    """Write the report of a failure, if the `options` of an export ask for one, and print it to stdout if
    `as_json`; called by the one rank that says it.
    """
    if options is not None:
        report_files.write_failure(error, options, since=since)
    if as_json:
        sys.stdout.write(json.dumps(report_files.failure_json(error, options), indent=1) + "\n")


def tell_launcher(error: ExportError, *, in_full: bool = True) -> None:
    """Leave for torchrun's summary what happened; never raises. It takes the earliest for the cause, so
    the rank that tells it `in_full` is earlier than those which only name it.
    """
    file = os.environ.get(_ERROR_FILE)
    if not file:
        return
    text = str(error) if in_full else f"ended with another rank: {error.what}"
    told = {"py_callstack": text, "timestamp": str(int(time.time()) + (not in_full))}
    image = json.dumps({"message": {"message": error.what, "extraInfo": told}})
    with suppress(Exception):
        files.write_file(Path(file), [image.encode()])
