"""The command line. Results go to stdout, progress and errors to stderr; exit status 0 means that
everything held.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pp_export import aids, flags, shipped
from pp_export.core.collector import paused_collector
from pp_export.core.errors import ExportError, LaunchError, OptionError, StopRequest, as_export_error
from pp_export.options.cluster import ClusterOptions
from pp_export.options.comparison import SideOptions
from pp_export.options.consolidation import ConsolidateOptions
from pp_export.options.iterations import options_of
from pp_export.options.iterations import wanted as wanted_from
from pp_export.options.kinds import NO_OUTPUT, ExportOptions, TargetOptions
from pp_export.options.values import options_from, parse_setting
from pp_export.process import launch, log, signals
from pp_export.view.printing import leave_stdout, print_result

if TYPE_CHECKING:
    from pp_export.checkpoint.source import Source
    from pp_export.distributed.world import World

Kind = TypeVar("Kind", bound=TargetOptions)

_GIVEN_IN = "job file, --set and flags"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = flags.parser()
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)  # leaves
    options = parser.parse_args(arguments)
    rank = os.environ.get("RANK", "0") if os.environ.get("WORLD_SIZE", "1") != "1" else None
    level = "debug" if options.verbose else "warning" if options.quiet else options.log_level or "info"
    if options.command not in ("export", "consolidate") and not launch.speaks(os.environ):
        level = "warning"
    log.configure(rank, level)
    signals.install()
    try:
        status = _COMMANDS[options.command](options)
        sys.stdout.flush()
    except BrokenPipeError:  # as of `| head`
        status = 1
    except (ExportError, StopRequest, OSError, MemoryError) as error:  # an OSError may be of stdout
        status = _fail(error, as_json=getattr(options, "json", False) and not isinstance(error, OSError))
    leave_stdout()
    return status


def _fail(
    error: BaseException, options: TargetOptions | None = None, *, since: float = 0.0, as_json: bool
) -> int:
    """Say what ended this process, in the report and on stdout too where that was asked for; by one rank only
    of those that fail alike. The exit status.
    """
    failure = as_export_error(error)
    try:
        from pp_export.steps import ending

        ending.wait_for_first(failure)
        ending.tell_launcher(failure)
    except StopRequest:
        return 1  # another rank says it
    except ImportError:
        """Which may be what the error is about."""
    log.logger.error("error: %s", failure)
    with suppress(ImportError):  # which may be what failed
        from pp_export.steps import ending

        ending.tell_machines(failure, options, since=since, as_json=as_json)
    return 1


def _export(arguments: argparse.Namespace) -> int:
    wanted, values = wanted_from(flags.values_of(arguments, ExportOptions), watch=arguments.watch)
    options = options_from(values, _GIVEN_IN, ExportOptions)
    if wanted is None:
        told = f"exporting {options.checkpoint} to {options.output}"
        return _run(options, _checkpoint_source, told, shown=_shown(arguments), as_json=arguments.json)
    since = time.time()
    os.environ["OMP_NUM_THREADS"] = "1"  # as for one
    try:
        launch.check_launch(os.environ)
        from pp_export.many import run_many

        return run_many(wanted, options, shown=_shown(arguments), as_json=arguments.json)
    except BaseException as error:  # noqa: BLE001  this process ends, whatever it was
        return _fail_alone(error, options, since, as_json=arguments.json)


def _consolidate(arguments: argparse.Namespace) -> int:
    values = flags.values_of(arguments, ConsolidateOptions)
    options = options_from(values, _GIVEN_IN, ConsolidateOptions)
    told = f"consolidating {options.input} to {options.output}"
    return _run(options, _ranks_source, told, shown=_shown(arguments), as_json=arguments.json)


def _shown(arguments: argparse.Namespace) -> str:
    """How progress is shown."""
    return "none" if arguments.quiet else str(arguments.progress)


def _checkpoint_source(options: ExportOptions) -> Source:
    from pp_export.steps.inputs import checkpoint_source

    return checkpoint_source(options)


def _ranks_source(options: ConsolidateOptions) -> Source:
    from pp_export.checkpoint.hf_shards.source import RankSavedSource

    return RankSavedSource(options.input, options.check_source, options.input_ranks)


def _run(options: Kind, source_of: Callable[[Kind], Source], told: str, *, shown: str, as_json: bool) -> int:
    """Export what `source_of` gives, as one of the ranks that a launcher started, or alone; `told` is logged
    first.
    """
    since, pending = time.time(), None
    os.environ["OMP_NUM_THREADS"] = "1"  # copies come from threads of ours; torch's would spin beside them
    is_first = os.environ.get("RANK", "0") == "0"
    try:
        launch.check_launch(os.environ)
        if is_first:
            log.logger.info("%s", told)
        with _importing():
            from pp_export.steps import ending
            from pp_export.steps.pending import PendingInputs

            if is_first:
                # What transformers says of the model may take seconds, and so may the import of torch.
                pending = PendingInputs.start(options)
            from pp_export.export import export
            from pp_export.view.html import write_files
            from pp_export.view.progress import shown_by
            from pp_export.view.tables import print_export

            source = source_of(options)
            world = _join(options.stall_seconds)
    except BaseException as error:  # noqa: BLE001  this process ends, whatever it was
        if pending is not None:
            pending.cancel()
        return _fail_alone(error, options, since, as_json=as_json)
    try:
        with shown_by(world.rank, shown) as on_progress:
            done = export(source, options, world, pending=pending, on_progress=on_progress)
    except BaseException as error:  # noqa: BLE001  this process ends, whatever it was
        ending.end_together(world, error, options, since=since, as_json=as_json)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # workers may be blocked in a transfer with a rank that is gone
    if world.rank == 0:
        done = write_files(options, done)
        print_result(done.to_json(), as_json, lambda: print_export(done))
    world.close()
    return 0


def _fail_alone(error: BaseException, options: TargetOptions, since: float, *, as_json: bool) -> int:
    """The exit status after what ended this process before it has met the others."""
    if isinstance(error, LaunchError) and not launch.is_first(os.environ):
        return 1  # the first of them says it for all
    return _fail(error, options, since=since, as_json=as_json)


@contextmanager
def _importing() -> Iterator[None]:
    """Imports make much and leave no garbage: a quarter of their time would go into looking for it. One
    that fails is no defect of pp_export.
    """
    try:
        with paused_collector():
            yield
    except (ImportError, OSError) as error:
        raise ExportError(
            f"Python could not import what an export needs: {error}",
            where={"rank": os.environ.get("RANK", "0"), "node": platform.node()},
            advice="compare this node's Python environment with that of the others",
        ) from error


def _join(stall_seconds: float) -> World:
    """The ranks that a launcher started, or this one alone, which needs no torch."""
    from pp_export.distributed.alone import alone, is_alone

    if is_alone():
        return alone(stall_seconds=stall_seconds)
    from pp_export.distributed import process_groups

    return process_groups.join(stall_seconds=stall_seconds, meanwhile=signals.check)


def _plan(arguments: argparse.Namespace) -> int:
    if flags.plans_consolidation(arguments):
        return _plan_consolidation(arguments)
    wanted, values = wanted_from(flags.values_of(arguments, ExportOptions), watch=False)
    has_output = values.get("output") is not None
    options = options_from(
        values if has_output else {**values, "output": NO_OUTPUT}, _GIVEN_IN, ExportOptions
    )
    if wanted is not None:
        if len(wanted.numbers) != 1 or wanted.all or wanted.latest:
            raise OptionError("a plan is of one export only", expected="one number for --iteration")
        options = options_of(options, wanted.numbers[0])
    log.logger.info("planning the export of %s", options.checkpoint)
    return _show_plan(_checkpoint_source, options, arguments, here=has_output)


def _plan_consolidation(arguments: argparse.Namespace) -> int:
    values = flags.values_of(arguments, ConsolidateOptions)
    has_output = values.get("output") is not None
    values = values if has_output else {**values, "output": NO_OUTPUT}
    options = options_from(values, _GIVEN_IN, ConsolidateOptions)
    log.logger.info("planning the consolidation of %s", options.input)
    return _show_plan(_ranks_source, options, arguments, here=has_output)


def _show_plan(
    source_of: Callable[[Kind], Source], options: Kind, arguments: argparse.Namespace, *, here: bool
) -> int:
    from pp_export.steps.plan_report import plan_source
    from pp_export.view.html import write_plan
    from pp_export.view.tables import print_plan

    cluster = options_from(flags.given(arguments, ClusterOptions), "flags", ClusterOptions)
    report = plan_source(source_of(options), options, cluster, here=here)
    if options.html is not None:
        report = write_plan(options.html, report)
    print_result(report.to_json(), arguments.json, lambda: print_plan(report))
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    log.logger.info("reading the metadata of %s", arguments.checkpoint)
    from pp_export import api
    from pp_export.view.progress import BytesView
    from pp_export.view.tables import print_checkpoint

    with BytesView("read", is_quiet=not arguments.deep or _is_quiet(arguments)) as shown:
        report = api.inspect(
            arguments.checkpoint,
            iteration=arguments.iteration,
            html=_page(arguments),
            deep=arguments.deep,
            threads=arguments.threads,
            on_bytes=shown.add,
            on_total=shown.total,
        )
    print_result(report.to_json(), arguments.json, lambda: print_checkpoint(report))
    return 0 if report.ok else 1


def _verify(arguments: argparse.Namespace) -> int:
    subset = _subset(arguments.subset) if arguments.subset else None
    log.logger.info("verifying %s", arguments.folder)
    from pp_export import api
    from pp_export.view.progress import BytesView
    from pp_export.view.tables import print_verification

    with BytesView("verified", then="checking the rest", is_quiet=_is_quiet(arguments)) as shown:
        if not arguments.quick and subset is None:
            shown.total(aids.weight_bytes(arguments.folder))
        result = api.verify(
            arguments.folder,
            quick=arguments.quick,
            subset=subset,
            load=arguments.load,
            cache=arguments.cache,
            threads=arguments.threads,
            on_bytes=shown.add,
            html=_page(arguments),
        )
    print_result(result.to_json(), arguments.json, lambda: print_verification(result))
    return 0 if result.ok else 1


def _diff(arguments: argparse.Namespace) -> int:
    os.environ["OMP_NUM_THREADS"] = "1"  # as for an export
    log.logger.info("comparing %s with %s", arguments.first, arguments.second)
    of_a, of_b = (
        dict(parse_setting(text, f"--{side}") for text in getattr(arguments, side)) for side in "ab"
    )
    from pp_export import comparing
    from pp_export.view.differences import print_difference
    from pp_export.view.progress import BytesView

    with BytesView("compared", is_quiet=_is_quiet(arguments)) as shown:
        result = comparing.diff(
            arguments.first,
            arguments.second,
            of_a=of_a,
            of_b=of_b,
            quick=arguments.quick,
            threads=arguments.threads,
            atol=arguments.atol,
            rtol=arguments.rtol,
            ulps=arguments.ulps,
            on_bytes=shown.add,
            on_total=shown.total,
            html=_page(arguments),
            **flags.given(arguments, SideOptions),
        )
    print_result(result.to_json(), arguments.json, lambda: print_difference(result))
    return 0 if result.ok else 1


def _is_quiet(arguments: argparse.Namespace) -> bool:
    return bool(arguments.quiet) or not launch.speaks(os.environ)


def _page(arguments: argparse.Namespace) -> Path | None:
    """Where the page goes of what is looked at: of several ranks that do the same, one draws it."""
    return arguments.html if launch.speaks(os.environ) else None


def _compare_logits(arguments: argparse.Namespace) -> int:
    log.logger.info("comparing the logits of %s with %s", arguments.folder, arguments.recording)
    from pp_export import api
    from pp_export.view.tables import print_logits

    result = api.compare_logits(
        arguments.folder,
        arguments.recording,
        tolerance=arguments.tolerance,
        max_memory=arguments.max_memory,
        html=_page(arguments),
    )
    print_result(result.to_json(), arguments.json, lambda: print_logits(result))
    return 0 if result.ok else 1


def _init(arguments: argparse.Namespace) -> int:
    from pp_export import api
    from pp_export.steps.first_job import first_job

    report = api.inspect(arguments.checkpoint, iteration=arguments.iteration)
    reference = None if arguments.reference is None else arguments.reference.absolute()
    sys.stdout.write(first_job(report, arguments.checkpoint.absolute(), reference))
    return 0


def _subset(text: str) -> tuple[int, int]:
    part, _, total = text.partition("/")
    if not re.fullmatch(r"[0-9]{1,9}/[0-9]{1,9}", text):
        raise OptionError("--subset can't be read", expected="I/N, for example 1/8", got=text[:40])
    return int(part), int(total)


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "export": _export,
    "consolidate": _consolidate,
    "plan": _plan,
    "inspect": _inspect,
    "verify": _verify,
    "diff": _diff,
    "compare-logits": _compare_logits,
    "clean": aids.clean,
    "init": _init,
    "completion": aids.completion,
    "draft-table": aids.draft_table,
    "families": aids.families,
    **dict.fromkeys(("docs", "launch-template"), shipped.show),
}
