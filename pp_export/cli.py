"""The command line. Results go to stdout, progress and errors to stderr; exit status 0 means that everything
held.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import gc
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pp_export.core.errors import ExportError, LaunchError, OptionError
from pp_export.options.kinds import (
    ClusterOptions,
    ExportOptions,
    Options,
    ResultOptions,
    RunOptions,
    SourceOptions,
    flag,
)
from pp_export.options.values import check_keys, options_from, parse_setting, read_job
from pp_export.process import launch, log, signals

if TYPE_CHECKING:
    from pp_export.distributed.world import World


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    log.configure(rank, world_size, verbose=options.verbose)
    signals.install()
    try:
        status: int = options.run(options)
    except ExportError as error:
        log.logger.error("error: %s", error)
        status = 1
    return status


class _Parser(argparse.ArgumentParser):
    """Takes flags in full only, and refuses unknown ones with the nearest known one."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        options, unknown = super().parse_known_args(args, namespace)
        for text in (text for text in unknown if text.startswith("-")):
            flag, known = text.partition("=")[0], self._option_string_actions
            near = [name for name in known if name.startswith(flag)] or difflib.get_close_matches(flag, known)
            self.error(f"unknown flag {text}" + (f"; did you mean {near[0]}?" if near else ""))
        return options, unknown


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="pp_export", description="Megatron-Core checkpoints to Hugging Face folders.")
    parser.add_argument("--verbose", action="store_true", help="log more")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    export = commands.add_parser("export", help="export a checkpoint (under torchrun, or alone)")
    _add_export_options(export)
    export.set_defaults(run=_export)

    plan = commands.add_parser("plan", help="show what an export would do; reads metadata only")
    _add_export_options(plan)
    _add_flags({ClusterOptions: plan.add_argument_group("what is planned for")}, ClusterOptions)
    plan.set_defaults(run=_plan)

    inspect = commands.add_parser("inspect", help="show what a checkpoint is")
    inspect.add_argument("checkpoint", type=Path)
    inspect.add_argument("--iteration", type=int)
    inspect.set_defaults(run=_inspect)

    verify = commands.add_parser("verify", help="prove a Hugging Face folder; offline, no Megatron, no GPU")
    verify.add_argument("folder", type=Path)
    depth = verify.add_mutually_exclusive_group()
    depth.add_argument(
        "--quick", action="store_true", help="structure only: no tensor bytes, no definition, no tokenizer"
    )
    depth.add_argument("--subset", metavar="I/N", help="read the I-th of N shares of the files")
    verify.add_argument("--load", action="store_true", help="also load the model with transformers")
    verify.add_argument(
        "--no-cache", dest="cache", action="store_false", help="ask transformers anew for the definition"
    )
    verify.add_argument("--threads", type=int, help="threads that digest (default: one per usable core)")
    verify.set_defaults(run=_verify)

    diff = commands.add_parser("diff", help="compare two Hugging Face folders tensor by tensor")
    diff.add_argument("first", type=Path)
    diff.add_argument("second", type=Path)
    diff.add_argument("--quick", action="store_true", help="don't read what both manifests say is equal")
    diff.add_argument("--threads", type=int, help="threads that compare (default: one per usable core)")
    diff.set_defaults(run=_diff)

    logits = commands.add_parser("compare-logits", help="compare a folder's logits with recorded ones")
    logits.add_argument("folder", type=Path)
    logits.add_argument("recording", type=Path, help="what pp_export.record_logits wrote in training")
    logits.add_argument("--tolerance", type=float, help="difference that a position may have")
    logits.add_argument("--max-memory", metavar="SIZE", help="weights beyond this size stay on disk")
    logits.set_defaults(run=_compare_logits)

    clean = commands.add_parser("clean", help="remove what killed exports have left beside their outputs")
    clean.add_argument("folder", type=Path, help="the folder that outputs lie in, or one output")
    clean.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    clean.set_defaults(run=_clean)

    for command in (export, plan, inspect, verify, diff, logits):
        command.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _add_export_options(parser: argparse.ArgumentParser) -> None:
    """A flag per field of ExportOptions, by purpose, plus the job file; flags go before the job file's
    values.
    """
    parser.add_argument(
        "job", nargs="?", type=Path, metavar="JOB.yaml", help="job file with the same keys as the flags"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the job file"
    )
    groups: dict[type[Options], Any] = {
        purpose: parser.add_argument_group(title)
        for purpose, title in (
            (SourceOptions, "where from"),
            (ResultOptions, "what the result is"),
            (RunOptions, "how it is made"),
            (ExportOptions, "reference and grid"),
        )
    }
    _add_flags(groups, ExportOptions)


def _add_flags(groups: Mapping[type[Options], Any], kind: type[Options]) -> None:
    """A flag per field, in the group of its purpose."""
    for option in dataclasses.fields(kind):
        is_switch = isinstance(option.default, bool)
        known: dict[str, Any] = (
            {"action": argparse.BooleanOptionalAction} if is_switch else {"metavar": "VALUE"}
        )
        if option.metadata["choices"]:
            known["metavar"] = "{" + ",".join(option.metadata["choices"]) + "}"
        text = option.metadata["help"]
        if option.default not in (dataclasses.MISSING, None) and not is_switch:
            text += f" (default: {option.default})"
        purpose = next(each for each in groups if option.name in each.__dataclass_fields__)
        groups[purpose].add_argument(f"--{flag(option.name)}", default=None, help=text, **known)


def _options(arguments: argparse.Namespace) -> ExportOptions:
    """Options from the job file, --set, and flags, the later over the earlier."""
    names = [option.name for option in dataclasses.fields(ExportOptions)]
    values = read_job(arguments.job) if arguments.job else {}
    check_keys(values, names, str(arguments.job))
    values.update(parse_setting(text) for text in arguments.set)
    values.update(_given(arguments, ExportOptions))
    return options_from(values, "job file, --set and flags", ExportOptions)


def _given(arguments: argparse.Namespace, kind: type[Options]) -> dict[str, Any]:
    """The flags of a kind of options that were given."""
    names = (option.name for option in dataclasses.fields(kind))
    return {name: value for name in names if (value := getattr(arguments, name)) is not None}


def _export(arguments: argparse.Namespace) -> int:
    options = _options(arguments)
    try:
        launch.check_launch(os.environ)
    except LaunchError as error:
        if not launch.is_first(os.environ):
            return 1  # the first of them says it for all
        from pp_export.steps import report

        report.write_failure(error, options)
        raise
    is_first = os.environ.get("RANK", "0") == "0"
    os.environ["OMP_NUM_THREADS"] = "1"  # copies come from threads of ours; torch's would spin beside them
    if is_first:
        log.logger.info("exporting %s to %s", options.checkpoint, options.output)
    with _importing():
        from pp_export.steps import report
        from pp_export.steps.pending import PendingInputs

        if is_first:
            report.check_path(options)
        # What transformers says of the model may take seconds, and so may the import of torch.
        pending = PendingInputs.start(options) if is_first else None
        try:
            from pp_export.checkpoint.folder_source import CheckpointSource
            from pp_export.export import export
            from pp_export.view.html import write_files
            from pp_export.view.progress import ExportView
            from pp_export.view.tables import print_export

            world = _join(options.stall_seconds)
        except BaseException:
            if pending is not None:
                pending.cancel()
            raise
    source = CheckpointSource(options.checkpoint, options.iteration, options.check_source)
    try:
        with ExportView(world, verifies=options.verify) as view:
            done = export(source, options, world, pending=pending, on_plan=view.plan, on_poll=view.poll)
    except ExportError as error:
        if world.abort.is_reporter:
            log.logger.error("error: %s", error)
            report.write_failure(error, options)
        world.abort.leave_after_failure()
        sys.stderr.flush()
        os._exit(1)  # workers may be blocked in a transfer with a rank that is gone
    if world.rank == 0:
        done = write_files(options, done)
        _print(done.to_json(), arguments.json, lambda: print_export(done))
    world.close()
    return 0


@contextmanager
def _importing() -> Iterator[None]:
    """Imports make much and leave no garbage: a quarter of their time would go into looking for it."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _join(stall_seconds: float) -> World:
    """The ranks that a launcher started, or this one alone, which needs no torch."""
    from pp_export.distributed.alone import alone, is_alone

    if is_alone():
        return alone(stall_seconds=stall_seconds)
    from pp_export.distributed import process_groups

    return process_groups.join(stall_seconds=stall_seconds)


def _plan(arguments: argparse.Namespace) -> int:
    options = _options(arguments)
    log.logger.info("planning the export of %s", options.checkpoint)
    from pp_export.steps.plan_report import plan_checkpoint
    from pp_export.steps.report import check_path
    from pp_export.view.html import write_plan
    from pp_export.view.tables import print_plan

    cluster = options_from(_given(arguments, ClusterOptions), "flags", ClusterOptions)
    check_path(options)
    report = plan_checkpoint(options, cluster)
    if options.html is not None:
        write_plan(options.html, report)
    _print(report.to_json(), arguments.json, lambda: print_plan(report))
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    log.logger.info("reading the metadata of %s", arguments.checkpoint)
    from pp_export import api
    from pp_export.view.tables import print_checkpoint

    report = api.inspect(arguments.checkpoint, iteration=arguments.iteration)
    _print(report.to_json(), arguments.json, lambda: print_checkpoint(report))
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    subset = _subset(arguments.subset) if arguments.subset else None
    log.logger.info("verifying %s", arguments.folder)
    from pp_export import api
    from pp_export.view.progress import bytes_bar
    from pp_export.view.tables import print_verification

    with bytes_bar("verifying") as on_bytes:
        result = api.verify(
            arguments.folder,
            quick=arguments.quick,
            subset=subset,
            load=arguments.load,
            cache=arguments.cache,
            threads=arguments.threads,
            on_bytes=on_bytes,
        )
    _print(result.to_json(), arguments.json, lambda: print_verification(result))
    return 0 if result.ok else 1


def _diff(arguments: argparse.Namespace) -> int:
    log.logger.info("comparing %s with %s", arguments.first, arguments.second)
    from pp_export import api
    from pp_export.view.progress import bytes_bar
    from pp_export.view.tables import print_difference

    with bytes_bar("comparing") as on_bytes:
        result = api.diff(
            arguments.first,
            arguments.second,
            quick=arguments.quick,
            threads=arguments.threads,
            on_bytes=on_bytes,
        )
    _print(result.to_json(), arguments.json, lambda: print_difference(result))
    return 0 if result.identical else 1


def _compare_logits(arguments: argparse.Namespace) -> int:
    log.logger.info("comparing the logits of %s with %s", arguments.folder, arguments.recording)
    from pp_export import api
    from pp_export.view.tables import print_logits

    result = api.compare_logits(
        arguments.folder,
        arguments.recording,
        tolerance=arguments.tolerance,
        max_memory=arguments.max_memory,
    )
    _print(result.to_json(), arguments.json, lambda: print_logits(result))
    return 0 if result.ok else 1


def _clean(arguments: argparse.Namespace) -> int:
    from pp_export.disk import litter

    done = litter.remove(Path(os.path.abspath(arguments.folder)), dry_run=arguments.dry_run)
    for each in done:
        verb = ("would be removed" if arguments.dry_run else "removed") if each.is_removed else "kept"
        sys.stdout.write(f"{verb}: {each.leftover}; {each.why}\n")
        if not each.is_removed:
            sys.stdout.write(f"  if you know that its run has ended: {each.command}\n")
    if not done:
        sys.stdout.write("nothing is left here\n")
    return 0


def _subset(text: str) -> tuple[int, int]:
    part, slash, total = text.partition("/")
    if not (slash and part.isdigit() and total.isdigit()):
        raise OptionError("--subset takes I/N", expected="for example 1/8", got=text)
    return int(part), int(total)


def _print(value: dict[str, Any], as_json: bool, show: Callable[[], None]) -> None:
    if as_json:
        sys.stdout.write(json.dumps(value, indent=1) + "\n")
    else:
        show()
