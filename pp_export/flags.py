"""The flags of the command line, most of them made of the options' dataclasses, and what was given with
them.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn

from pp_export.core.errors import OptionError
from pp_export.core.version import VERSION
from pp_export.options.cluster import ClusterOptions
from pp_export.options.comparison import SideOptions
from pp_export.options.consolidation import OF_MEGATRON, ConsolidateOptions
from pp_export.options.kinds import (
    ExportOptions,
    Options,
    ResultOptions,
    RunOptions,
    SourceOptions,
    flag,
)
from pp_export.options.values import check_keys, parse_setting, read_job
from pp_export.process import log


class _Parser(argparse.ArgumentParser):
    """Takes flags in full only, and refuses unknown ones with the nearest known one."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)
        self._is_json = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._is_json = "--json" in (sys.argv if args is None else args)
        options, unknown = super().parse_known_args(args, namespace)
        for text in (text for text in unknown if text.startswith("-")):
            flag, known = text.partition("=")[0], self._option_string_actions
            near = [name for name in known if name.startswith(flag)] or difflib.get_close_matches(
                flag, known, cutoff=0.7
            )
            self.error(f"unknown flag {text}" + (f"; did you mean {near[0]}?" if near else ""))
        return options, unknown

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the flags, by one rank for all, and leave."""
        from pp_export.steps import ending

        told = OptionError(message)
        ending.wait_for_first(told)
        ending.tell_launcher(told)
        ending.tell_machines(told, None, as_json=self._is_json)
        self.exit(2, f"{self.prog}: error: {message}\n  more: {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """That of all commands; what it parses has the name of the command as `command`."""
    whole = _Parser(prog="pp_export", description="Megatron-Core checkpoints to Hugging Face folders.")
    _add_general(whole)
    commands = whole.add_subparsers(required=True, metavar="COMMAND", dest="command")

    export = commands.add_parser("export", help="export a checkpoint (under torchrun, or alone)")
    _add_export_options(export)
    _add_progress(export)
    export.add_argument(
        "--watch",
        action="store_true",
        help="with {iteration} in --output: export each finished save that there is and that appears, until a"
        " signal comes",
    )

    consolidate = commands.add_parser(
        "consolidate",
        help="make one Hugging Face folder of files that ranks have saved under Hugging Face names",
    )
    _add_consolidate_options(consolidate)
    _add_progress(consolidate)

    plan = commands.add_parser(
        "plan", help="show what an export or a consolidation would do and take; reads metadata only"
    )
    _add_export_options(plan)
    of_exports = {option.name for option in dataclasses.fields(ExportOptions)}
    of_ranks = plan.add_argument_group("where from, instead of a checkpoint")
    _add_flags({ConsolidateOptions: of_ranks}, ConsolidateOptions, without=of_exports)
    _add_flags({ClusterOptions: plan.add_argument_group("what is planned for")}, ClusterOptions)

    inspect = commands.add_parser("inspect", help="show what a checkpoint holds, and how it was trained")
    inspect.add_argument("checkpoint", type=Path)
    inspect.add_argument("--iteration", type=int)
    inspect.add_argument(
        "--deep",
        action="store_true",
        help="read every byte of the weights: digests, what is damaged or missing, NaN, infinite, zeros",
    )
    inspect.add_argument("--threads", type=int, help="threads that read (default: one per usable core)")

    verify = commands.add_parser(
        "verify", help="check every file and byte of a Hugging Face folder; offline, without Megatron and GPU"
    )
    verify.add_argument("folder", type=Path)
    depth = verify.add_mutually_exclusive_group()
    depth.add_argument(
        "--quick",
        action="store_true",
        help="look at the structure only: no tensor bytes, no model definition, no tokenizer",
    )
    depth.add_argument("--subset", metavar="I/N", help="read the I-th of N shares of the files")
    verify.add_argument("--load", action="store_true", help="also load the model with transformers")
    verify.add_argument(
        "--no-cache",
        dest="cache",
        action="store_false",
        help="ask transformers for the model definition again, and don't use the cache",
    )
    verify.add_argument(
        "--threads", type=int, help="threads that compute digests (default: one per usable core)"
    )

    diff = commands.add_parser(
        "diff", help="compare two models tensor by tensor: Hugging Face folders, or Megatron checkpoints"
    )
    _add_diff_options(diff)

    logits = commands.add_parser("compare-logits", help="compare a folder's logits with recorded ones")
    logits.add_argument("folder", type=Path)
    logits.add_argument("recording", type=Path, help="file that pp_export.record_logits wrote in training")
    logits.add_argument(
        "--tolerance",
        type=float,
        help="largest difference that a position may have, in standard deviations of the logits",
    )
    logits.add_argument(
        "--max-memory",
        metavar="SIZE",
        help="keep weights in memory up to this size, for example 32GB; the rest stays on disk",
    )

    clean = commands.add_parser("clean", help="remove what killed exports have left beside their outputs")
    clean.add_argument("folder", type=Path, help="the folder in which outputs lie, or one output")
    clean.add_argument("--dry-run", action="store_true", help="only print what would be removed")

    _add_first_minute(commands)

    _add_draft(commands)

    families = commands.add_parser(
        "families", help="list the model classes that can be exported, and how each is proved"
    )

    _add_shipped(commands)
    for command in (inspect, verify, diff, logits):
        command.add_argument(
            "--html", type=Path, metavar="FILE", help="also write the result as a page there"
        )
    for command in (export, consolidate, plan, inspect, verify, diff, logits, families):
        command.add_argument("--json", action="store_true", help="print JSON")
    for command in commands.choices.values():
        _add_logging(command, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return whole


def _add_draft(commands: Any) -> None:
    draft = commands.add_parser(
        "draft-table", help="print a first architecture table for a class that no packaged table serves"
    )
    draft.add_argument("checkpoint", type=Path)
    draft.add_argument("--reference", type=Path, required=True, help="the Hugging Face folder of the class")
    draft.add_argument("--iteration", type=int)
    draft.add_argument(
        "--extends",
        metavar="TABLE",
        help="packaged table to extend; default: that of the class with the most similar name",
    )


def _add_general(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--version", action="version", version=f"pp_export {VERSION}")
    _add_logging(parser)


def _add_logging(parser: argparse.ArgumentParser, **settings: Any) -> None:
    """What is said on the way. Help tells of it before the command; it may stand behind it too, with
    `settings` that leave what was said before.
    """
    told = parser.add_mutually_exclusive_group()
    for name, action, what in (
        ("--verbose", {"action": "store_true"}, "log more"),
        ("--quiet", {"action": "store_true"}, "no progress, and log warnings and errors only"),
        (
            "--log-level",
            {"choices": list(log.LEVELS)},
            "log messages of this level and above (default: info)",
        ),
    ):
        told.add_argument(name, **{"help": what, **action, **settings})


def _add_first_minute(commands: Any) -> None:
    """What a user asks for first."""
    init = commands.add_parser(
        "init", help="print a first job file for a checkpoint, with every option explained"
    )
    init.add_argument("checkpoint", type=Path)
    init.add_argument("--reference", type=Path, help="the Hugging Face folder of the model")
    init.add_argument("--iteration", type=int)

    completion = commands.add_parser(
        "completion", help="print the script that makes a shell complete commands and flags"
    )
    completion.add_argument("shell", choices=["bash", "zsh", "fish"])


def _add_shipped(commands: Any) -> None:
    """The commands that show what comes with the code."""
    docs = commands.add_parser("docs", help="print a page of the documentation, or what it says of an error")
    docs.add_argument(
        "name", nargs="?", metavar="topic", help="name of a page, or of an error's class; default: list them"
    )

    template = commands.add_parser(
        "launch-template", help="print a script or a job file to start from, for example for Slurm"
    )
    template.add_argument("name", nargs="?", help="name of the template; default: list them")


def _add_export_options(parser: argparse.ArgumentParser) -> None:
    """A flag per field of ExportOptions, by purpose, plus the job file; flags go before the job file's
    values.
    """
    _add_job(parser)
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


def _add_consolidate_options(parser: argparse.ArgumentParser) -> None:
    """The same for a consolidation."""
    _add_job(parser)
    groups: dict[type[Options], Any] = {
        purpose: parser.add_argument_group(title)
        for purpose, title in (
            (ResultOptions, "what the result is"),
            (RunOptions, "how it is made"),
            (ConsolidateOptions, "where from"),
        )
    }
    _add_flags(groups, ConsolidateOptions, without=OF_MEGATRON)


def _add_progress(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--progress",
        choices=["auto", "json", "none"],
        default="auto",
        help="progress on stderr: auto (bars on a terminal, lines elsewhere), json (lines of JSON) or"
        " none (default: auto)",
    )


def _add_diff_options(diff: argparse.ArgumentParser) -> None:
    """The sides, what may differ, and as what checkpoints are compared."""
    diff.add_argument("first", type=Path, metavar="A", help="a Hugging Face folder, or a checkpoint")
    diff.add_argument("second", type=Path, metavar="B", help="the same")
    diff.add_argument("--quick", action="store_true", help="don't read what both manifests say is equal")
    diff.add_argument("--threads", type=int, help="threads that compare (default: one per usable core)")
    diff.add_argument(
        "--atol", type=float, default=0.0, help="absolute difference that an element may have (default: 0)"
    )
    diff.add_argument(
        "--rtol",
        type=float,
        default=0.0,
        help="plus difference relative to the larger of both values (default: 0)",
    )
    diff.add_argument(
        "--ulps",
        type=float,
        default=0.0,
        help="or difference in steps between neighbouring values of its type (default: 0)",
    )

    of_checkpoints = diff.add_argument_group("sides that are checkpoints")
    _add_flags({SideOptions: of_checkpoints}, SideOptions)
    for side in ("a", "b"):
        text = f"one of these options for {side.upper()} alone, such as iteration=1000"
        of_checkpoints.add_argument(f"--{side}", action="append", default=[], metavar="KEY=VALUE", help=text)


def _add_job(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "job", nargs="?", type=Path, metavar="JOB.yaml", help="job file with the same keys as the flags"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the job file"
    )


def _add_flags(
    groups: Mapping[type[Options], Any], kind: type[Options], without: Collection[str] = ()
) -> None:
    """A flag per field, in the group of its purpose."""
    for option in dataclasses.fields(kind):
        if option.name in without:
            continue
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


def values_of(arguments: argparse.Namespace, kind: type[Options]) -> dict[str, Any]:
    """What the job file, --set, and flags say, the later over the earlier."""
    without = OF_MEGATRON if kind is ConsolidateOptions else ()
    names = [option.name for option in dataclasses.fields(kind) if option.name not in without]
    values = read_job(arguments.job) if arguments.job else {}
    check_keys(values, names, str(arguments.job))
    values.update(parse_setting(text) for text in arguments.set)
    values.update(given(arguments, kind))
    check_keys(values, names, "flags and --set")
    return values


def plans_consolidation(arguments: argparse.Namespace) -> bool:
    """Whether what is planned is a consolidation. Raises OptionError for flags that are of exports alone."""
    asked = [arguments.input, arguments.input_ranks] != [None, None]
    if not asked and (arguments.job is None or "input" not in read_job(arguments.job)):
        return False
    names = [option.name for option in dataclasses.fields(ConsolidateOptions)]
    check_keys(given(arguments, ExportOptions), names, "flags of the plan of a consolidation")
    return True


def given(arguments: argparse.Namespace, kind: type[Options]) -> dict[str, Any]:
    """The flags of a kind of options that were given."""
    names = (option.name for option in dataclasses.fields(kind))
    return {name: value for name in names if (value := getattr(arguments, name, None)) is not None}
