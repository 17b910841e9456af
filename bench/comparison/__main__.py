"""`python -m bench.comparison`, from the repository's root: every tool meets every fault, and what is left is
read as transformers reads it. Takes minutes, and 2 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import IO

from bench.comparison import inputs
from bench.comparison.damage import KILL, OLDER, WORDS, copy_of, damage, older_export
from bench.comparison.inputs import KINDS, Input
from bench.comparison.judge import NOTHING, RIGHT, WEIGHTS, Seen, judge
from bench.comparison.tools import Tool, known
from tests.fixtures.launch import ROOT

_TIMEOUT_S = 600
_POLL_S = 0.0005
_MAX_KILLS = 8


@dataclass(frozen=True)
class Outcome:
    """What a tool made of a fault: its exit status (None: killed), and what is there then."""

    tool: str
    kind: str
    fault: str
    status: int | None
    seen: str
    is_wrong: bool
    seconds: float
    said: str

    @property
    def cell(self) -> str:
        """For a table."""
        if self.status is None:
            return self.seen
        return f"exit {self.status}: {self.seen}" if self.status or self.seen != RIGHT else RIGHT


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m bench.comparison", description=(__doc__ or "").strip())
    parser.add_argument("--work", type=Path, default=Path("build/comparison"), help="where inputs are kept")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--faults", nargs="+", default=list(WORDS), choices=list(WORDS))
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument(
        "--tool",
        nargs=3,
        action="append",
        default=[],
        metavar=("KIND", "NAME", "COMMAND"),
        help="another one: COMMAND has {source}, {reference} and {output}",
    )
    options = parser.parse_args(arguments)
    tools, missing = known()
    tools += [Tool(name, kind, tuple(shlex.split(command))) for kind, name, command in options.tool]
    for text in missing:
        sys.stderr.write(f"left out, since Python can't import it: {text}\n")
    outcomes = []
    work = options.work.absolute()
    for given in inputs.make(work, options.kinds):
        for tool in (each for each in tools if each.kind == given.kind):
            for fault in options.faults:
                outcomes.append(
                    _kills(tool, given, work) if fault == KILL else _meet(tool, given, fault, work)
                )
                sys.stderr.write(f"{tool.name}: {fault}: {outcomes[-1].cell}  {outcomes[-1].said}\n")
    sys.stdout.write(table(outcomes))
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(each) for each in outcomes], indent=1) + "\n")
    return 0


def _meet(tool: Tool, given: Input, fault: str, work: Path) -> Outcome:
    """One run with one fault."""
    folder, output = _fresh(work)
    source, old = copy_of(given, folder / "source"), None
    damage(fault, given, source)
    command = tool.filled(source, given.reference, output)
    if fault == OLDER:
        older_export(given, output)
        old = {name: value + 1 for name, value in given.truth.items()}
        command += tool.replaces
    begin = time.perf_counter()
    with (folder / "log").open("wb") as log:
        status = _start(command, log).wait(_TIMEOUT_S)
    seconds = time.perf_counter() - begin
    seen = judge(output, given.truth, old)
    said = _last_line(folder / "log") if status else ""
    return Outcome(tool.name, tool.kind, fault, status, seen.text, seen.is_wrong, seconds, said)


def _kills(tool: Tool, given: Input, work: Path) -> Outcome:
    """Killed when the first new file appears, in another run the second, and so on; all that was left."""
    left: list[Seen] = []
    for number in range(1, _MAX_KILLS + 1):
        folder, output = _fresh(work)
        command = tool.filled(given.source, given.reference, output)
        with (folder / "log").open("wb") as log:
            process = _start(command, log)
            while process.poll() is None and len(_new_files(output.parent)) < number:
                time.sleep(_POLL_S)
            was_running = process.poll() is None
            if was_running:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if not was_running:
            break
        left.append(judge(output, given.truth))
    is_whole = (RIGHT, WEIGHTS) if tool.weights_only else (RIGHT,)
    broken = [each.text for each in left if each.text not in (NOTHING, *is_whole)]
    whole = sum(each.text in is_whole for each in left)
    text = f"of {len(left)} times {len(left) - len(broken) - whole} nothing there, {whole} right"
    if broken:
        text += f", {len(broken)} a broken folder ({', '.join(dict.fromkeys(broken))})"
    return Outcome(tool.name, tool.kind, KILL, None, text, bool(broken), 0.0, "")


def _new_files(folder: Path) -> list[Path]:
    """Files below a folder in which a tool is at work."""
    return [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]


def _fresh(work: Path) -> tuple[Path, Path]:
    """An empty folder for a run, and the output in a folder of its own."""
    folder = work / "run"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "out").mkdir(parents=True)
    return folder, folder / "out" / "model"


def _start(command: list[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    """In a group of its own, so that all of it can be killed at once."""
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    quiet = {"PYTHONPATH": paths, "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | quiet,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "rror" in line.partition(" ")[0]]
    return (errors or lines or [""])[-1][:160]


def table(outcomes: list[Outcome]) -> str:
    """The outcomes as Markdown: a table for each kind of input."""
    lines = [f"Measured on {date.today().isoformat()}.", ""]
    for kind in dict.fromkeys(each.kind for each in outcomes):
        tools = list(dict.fromkeys(each.tool for each in outcomes if each.kind == kind))
        lines += [f"### {KINDS[kind]}", "", f"| | {' | '.join(tools)} |", "| --- |" + " --- |" * len(tools)]
        for fault, words in WORDS.items():
            cells = {each.tool: each.cell for each in outcomes if (each.kind, each.fault) == (kind, fault)}
            if cells:
                lines.append(f"| {words} | " + " | ".join(cells.get(tool, "") for tool in tools) + " |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
