"""`python -m bench`, from the repository's root: measures, prints tables, never fails on a number.

In every round each variant runs once, so that a slow minute of a shared machine hits all of them; ratios are
formed within a round. The first round warms up and isn't counted. Before every run the output of the one
before is removed and the disk comes to rest, and the checkpoint is read once (or with --cold dropped from the
page cache).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from rich.console import Console

from bench import checkpoint, measure
from bench.checkpoint import Source
from bench.measure import Run
from bench.results import Results
from bench.show import show
from bench.variants import Variant, all_variants, choose

COMPARED = ("naive", "export-1")


def main() -> int:
    """Measure what the command line asks for."""
    options = _parser().parse_args()
    if options.runs < 1:
        raise SystemExit("--runs must be at least 1")
    source = checkpoint.locate(options.model, options.cache.absolute())
    choose(all_variants(source, options.cache), options.only)  # before a minute goes into the checkpoint
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(f"checkpoint of {options.model}: kept in {options.cache}, written first if it is not there")
    checkpoint.ensure(source, options.model)
    with tempfile.TemporaryDirectory(prefix="runs-", dir=options.cache) as folder:
        variants = choose(all_variants(source, Path(folder).absolute()), options.only)
        runs = _measure(source, variants, Path(folder), options, console)
    results = Results([run for run in runs if run.round > 0])
    facts = _facts(source, options)
    show(Console(width=None if sys.stdout.isatty() else 160), results, variants, facts)
    if options.json is not None:
        options.json.write_text(json.dumps(_to_json(results, runs, variants, facts), indent=1) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.split("\n\n")[1])
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each variant (default: 5)")
    parser.add_argument(
        "--cache", type=Path, default=checkpoint.default_cache(),
        help="folder for checkpoint and outputs (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep everything measured in FILE")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measure these variants only")
    parser.add_argument("--model", default="qwen2_1_5b", help="a Qwen2 of tests.fixtures.models")
    parser.add_argument("--cold", action="store_true", help="drop the checkpoint's pages before every run")
    return parser


def _measure(
    source: Source, variants: list[Variant], folder: Path, options: argparse.Namespace, console: Console
) -> list[Run]:
    """All runs, round by round; round 0 is the warm-up, after which the outputs are compared."""
    runs = []
    for number in range(options.runs + 1):
        for variant in variants:
            measure.clean(variant)
            if options.cold:
                source.drop()
            else:
                source.warm()
            runs.append(measure.run(variant, number, folder / "log"))
            console.print(f"round {number}  {variant.name:20} {runs[-1].wall_seconds:7.2f} s")
            if variant.output is not None and (number > 0 or variant.name not in COMPARED):
                measure.clean(variant)
        if number == 0:
            _compare(variants, console)
    return runs


def _compare(variants: list[Variant], console: Console) -> None:
    """The naive converter's tensors must be pp_export's: a benchmark of a wrong converter says nothing."""
    folders = [str(variant.output) for variant in variants if variant.name in COMPARED]
    if len(folders) < len(COMPARED):
        console.print("not compared: naive and export-1 were not both measured")
        return
    done = subprocess.run(
        [sys.executable, "-m", "bench.same", *folders], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"naive and pp_export made different tensors:\n{done.stdout}{done.stderr}")
    console.print(f"naive and pp_export: {done.stdout.strip()}")


def _facts(source: Source, options: argparse.Namespace) -> dict[str, str]:
    """What the figures were measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = shutil.disk_usage(options.cache).free
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    names = ("torch", "safetensors", "transformers", "megatron-core")
    return {
        "machine": f"{os.cpu_count()} cores, {memory / 1e9:.1f} GB of memory, "
        f"{free / 1e9:.0f} GB of disk free, load at the end {load}",
        "software": f"{platform.system()} {platform.release()}, Python {platform.python_version()}, "
        + ", ".join(f"{name} {metadata.version(name)}" for name in names),
        "checkpoint": f"{options.model}, {checkpoint.LAYOUT}, {source.num_bytes / 1e9:.2f} GB in "
        f"{len(source.files)} files",
        "page cache": "cold: the checkpoint's pages are dropped before every run"
        if options.cold
        else "warm: the checkpoint is read once before every run",
        "runs": f"{options.runs} of each variant, interleaved, after one that isn't counted",
    }


def _to_json(
    results: Results, runs: list[Run], variants: list[Variant], facts: dict[str, str]
) -> dict[str, object]:
    return {
        "facts": facts,
        "commands": {variant.name: variant.command for variant in variants},
        "ratios": [dataclasses.asdict(ratio) for ratio in results.ratios()],
        "aims": [dataclasses.asdict(aim) for aim in results.aims()],
        "runs": [dataclasses.asdict(run) for run in runs],
    }


if __name__ == "__main__":
    sys.exit(main())
