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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pp_export.core import options
from pp_export.core.errors import ExportError, OptionError
from pp_export.core.options import ExportOptions
from pp_export.process import log, signals


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
    plan.add_argument("--world-size", type=int, default=1, help="number of ranks to plan for")
    plan.set_defaults(run=_plan)

    inspect = commands.add_parser("inspect", help="show what a checkpoint is")
    inspect.add_argument("checkpoint", type=Path)
    inspect.add_argument("--iteration", type=int)
    inspect.set_defaults(run=_inspect)

    verify = commands.add_parser("verify", help="prove a Hugging Face folder; offline, no Megatron, no GPU")
    verify.add_argument("folder", type=Path)
    depth = verify.add_mutually_exclusive_group()
    depth.add_argument("--quick", action="store_true", help="structure only, no tensor bytes")
    depth.add_argument("--subset", metavar="I/N", help="read the I-th of N shares of the files")
    verify.add_argument("--load", action="store_true", help="also load the model with transformers")
    verify.set_defaults(run=_verify)

    diff = commands.add_parser("diff", help="compare two Hugging Face folders tensor by tensor")
    diff.add_argument("first", type=Path)
    diff.add_argument("second", type=Path)
    diff.set_defaults(run=_diff)

    for command in (export, plan, inspect, verify, diff):
        command.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _add_export_options(parser: argparse.ArgumentParser) -> None:
    """A flag per field of ExportOptions, plus the job file; flags go before the job file's values."""
    parser.add_argument(
        "job", nargs="?", type=Path, metavar="JOB.yaml", help="job file with the same keys as the flags"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the job file"
    )
    for option in dataclasses.fields(ExportOptions):
        is_switch = isinstance(option.default, bool)
        known: dict[str, Any] = (
            {"action": argparse.BooleanOptionalAction} if is_switch else {"metavar": "VALUE"}
        )
        if option.metadata["choices"]:
            known["metavar"] = "{" + ",".join(option.metadata["choices"]) + "}"
        text = option.metadata["help"]
        if option.default not in (dataclasses.MISSING, None) and not is_switch:
            text += f" (default: {option.default})"
        parser.add_argument(f"--{options.flag(option.name)}", default=None, help=text, **known)


def _options(arguments: argparse.Namespace) -> ExportOptions:
    """Options from the job file, --set, and flags, the later over the earlier."""
    names = [option.name for option in dataclasses.fields(ExportOptions)]
    values = options.read_job(arguments.job) if arguments.job else {}
    options.check_keys(values, names, str(arguments.job))
    values.update(options.parse_setting(text) for text in arguments.set)
    values.update({name: value for name in names if (value := getattr(arguments, name)) is not None})
    return options.options_from(values, "job file, --set and flags", ExportOptions)


def _export(arguments: argparse.Namespace) -> int:
    options = _options(arguments)
    is_first = os.environ.get("RANK", "0") == "0"
    from pp_export.steps import inputs, report

    if is_first:
        report.check_path(options)
    asked = inputs.ask(options) if is_first else None  # its seconds and those of `import torch` overlap

    gc.disable()  # an import makes much and leaves no garbage
    import torch

    from pp_export.checkpoint.source import CheckpointSource
    from pp_export.distributed import process_groups
    from pp_export.export import export
    from pp_export.view.console import ExportView

    gc.freeze()
    gc.enable()
    torch.set_num_threads(1)  # copies come from threads of ours; torch's own would spin beside them
    world = process_groups.join(options.backend, stall_seconds=options.stall_seconds)
    try:
        with ExportView(world) as view:
            done = export(
                CheckpointSource(options), options, world, asked=asked, on_plan=view.plan, on_poll=view.poll
            )
    except ExportError as error:
        if world.is_reporter:
            log.logger.error("error: %s", error)
            report.write_failure(error, options)
        world.leave_after_failure()
        sys.stderr.flush()
        os._exit(1)  # workers may be blocked in a transfer with a rank that is gone
    if world.rank == 0:
        if options.report is not None:
            report.write_report(options.report, done.to_json())
        _print(done.to_json(), arguments.json, lambda: view.summary(done))
    world.close()
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    options = _options(arguments)
    if arguments.world_size < 1:
        raise OptionError("--world-size must be at least 1", got=arguments.world_size)
    from pp_export.checkpoint.source import CheckpointSource
    from pp_export.steps.inputs import ask, plan_export, read_inputs
    from pp_export.view import console

    sources, _ = read_inputs(CheckpointSource(options), options, ask(options).result())
    plan = plan_export(sources, options, arguments.world_size)
    _print(console.plan_json(sources, plan), arguments.json, lambda: console.print_plan(sources, plan))
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    from pp_export.checkpoint import read_catalog
    from pp_export.view import console

    catalog = read_catalog(arguments.checkpoint, arguments.iteration)
    _print(console.catalog_json(catalog), arguments.json, lambda: console.print_catalog(catalog))
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from pp_export.verification import verify_folder
    from pp_export.view import console

    subset = _subset(arguments.subset) if arguments.subset else None
    with console.bytes_bar("verifying") as on_bytes:
        result = verify_folder(
            arguments.folder, quick=arguments.quick, subset=subset, load=arguments.load, on_bytes=on_bytes
        )
    _print(result.to_json(), arguments.json, lambda: console.print_verification(result))
    return 0 if result.ok else 1


def _diff(arguments: argparse.Namespace) -> int:
    from pp_export.verification.diff import diff_folders
    from pp_export.view import console

    result = diff_folders(arguments.first, arguments.second)
    _print(result.to_json(), arguments.json, lambda: console.print_difference(result))
    return 0 if result.identical else 1


def _subset(text: str) -> tuple[int, int]:
    part, slash, total = text.partition("/")
    if not (slash and part.isdigit() and total.isdigit()):
        raise OptionError("--subset takes I/N", expected="for example 1/8", got=text)
    return int(part), int(total)


def _print(value: dict[str, Any], as_json: bool, show: Any) -> None:
    if as_json:
        sys.stdout.write(json.dumps(value, indent=1) + "\n")
    else:
        show()
