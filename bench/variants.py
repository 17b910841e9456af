"""What is measured against what: each variant is a command that makes one folder (or none)."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.checkpoint import Source

WORLD_SIZES = (1, 2)
COPY = "cp-sync-reread"
"""What any verified export does at least: read, write durably, read back."""


@dataclass(frozen=True)
class Variant:
    """One thing to measure. `report` is where pp_export writes what it says about itself."""

    name: str
    text: str
    command: tuple[str, ...]
    output: Path | None = None
    report: Path | None = None


def all_variants(source: Source, folder: Path) -> list[Variant]:
    """The variants in the order of a round; all write below `folder`, on the checkpoint's own filesystem."""
    python = sys.executable

    def naive(output: Path) -> tuple[str, ...]:
        return (python, "-m", "bench.naive", *map(str, (source.checkpoint, source.reference, output)))

    naive_on_disk = f"{shlex.join(naive(folder / 'naive-sync'))} && sync -f {folder / 'naive-sync'}"
    variants = [
        Variant("naive", "naive converter of today", naive(folder / "naive"), folder / "naive"),
        Variant(
            "naive-sync",
            "the same, then sync -f: on disk",
            ("sh", "-c", naive_on_disk),
            folder / "naive-sync",
        ),
        *copies("cp -r of the checkpoint", source.checkpoint, folder / "cp"),
    ]
    for world_size in WORLD_SIZES:
        launcher = (python, "-m") if world_size == 1 else _torchrun(world_size)
        for is_verified in (True, False):
            variants.append(_export(source, folder, launcher, world_size, is_verified=is_verified))
    variants.append(Variant("floor-import", "python that imports torch", (python, "-c", "import torch")))
    for world_size in WORLD_SIZES:
        command = (*_torchrun(world_size), "bench.floor")
        text = f"torchrun, {_ranks(world_size)}: import torch, join"
        variants.append(Variant(f"floor-{world_size}", text, command))
    return variants


def copies(text: str, source: Path, copied: Path) -> tuple[Variant, Variant]:
    """A durable copy of a folder, and the same with every byte read back: the least that any proof takes."""
    copy = f"cp -r {source} {copied} && sync -f {copied}"
    reread = f"find {copied} -type f -exec dd if={{}} of=/dev/null bs=8M iflag=direct status=none ';'"
    return (
        Variant("cp-sync", f"{text}, then sync -f", ("sh", "-c", copy), copied),
        Variant(COPY, "the same, then read back past the cache", ("sh", "-c", f"{copy} && {reread}"), copied),
    )


def choose(variants: list[Variant], names: list[str] | None) -> list[Variant]:
    """Those that are named, all of them by default."""
    known = [variant.name for variant in variants]
    if unknown := sorted(set(names or ()) - set(known)):
        raise SystemExit(f"no such variant: {', '.join(unknown)}; there are {', '.join(known)}")
    return [variant for variant in variants if names is None or variant.name in names]


def _export(
    source: Source, folder: Path, launcher: tuple[str, ...], world_size: int, *, is_verified: bool
) -> Variant:
    name = f"export-{world_size}" + ("" if is_verified else "-no-verify")
    report = folder / f"{name}.json"
    options = {
        "--checkpoint": source.checkpoint,
        "--reference": source.reference,
        "--output": folder / name,
        "--report": report,
    }
    words = [word for flag, value in options.items() for word in (flag, str(value))]
    command = (*launcher, "pp_export", "export", *words, *(() if is_verified else ("--no-verify",)))
    text = f"pp_export, {_ranks(world_size)}, {'verified' if is_verified else 'not verified'}"
    return Variant(name, text, command, folder / name, report)


def _torchrun(world_size: int) -> tuple[str, ...]:
    size = ("--nproc-per-node", str(world_size))
    return (sys.executable, "-m", "torch.distributed.run", "--standalone", *size, "-m")


def _ranks(world_size: int) -> str:
    return "1 rank" if world_size == 1 else f"{world_size} ranks"
