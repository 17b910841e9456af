"""Small commands around exports: what was left behind, what a shell completes, a table to begin with, the
families that are served.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import suppress
from pathlib import Path

from pp_export.core.errors import TargetError
from pp_export.view.printing import print_result


def clean(arguments: argparse.Namespace) -> int:
    """What killed exports have left."""
    from pp_export.disk import litter

    folder = Path(os.path.abspath(arguments.folder))
    if not folder.parent.is_dir():
        raise TargetError("the folder does not exist", where={"folder": folder}, advice="check the path")
    done = litter.remove(folder, dry_run=arguments.dry_run)
    for each in done:
        verb = ("would be removed" if arguments.dry_run else "removed") if each.is_removed else "kept"
        sys.stdout.write(f"{verb}: {each.leftover}; {each.why}\n")
        if not each.is_removed:
            sys.stdout.write(f"  if you know that its run has ended, remove it: {each.command}\n")
    if not done:
        there = f"in {folder}, or beside it" if folder.exists() else f"of {folder}, which does not exist"
        sys.stdout.write(f"killed exports have left nothing {there}\n")
    return 0


def completion(arguments: argparse.Namespace) -> int:
    """What a shell reads."""
    from argcomplete.shell_integration import shellcode

    sys.stdout.write(shellcode(["pp_export"], True, arguments.shell))
    return 0


def draft_table(arguments: argparse.Namespace) -> int:
    """A table to begin with."""
    from pp_export.steps import drafting

    text = drafting.draft_table(
        arguments.checkpoint,
        arguments.reference,
        iteration=arguments.iteration,
        extends=arguments.extends,
    )
    sys.stdout.write(text)
    return 0


def families(arguments: argparse.Namespace) -> int:
    """The classes that are served."""
    from pp_export.architecture import families as known
    from pp_export.steps import limits
    from pp_export.view.tables import print_families

    print_result(
        limits.to_json(), arguments.json, lambda: print_families(known.families() + known.multimodal())
    )
    return 0


def weight_bytes(folder: Path) -> int:
    """What the files with weights of a folder hold, as far as it can be known."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with suppress(OSError):  # of which verify says more
            total += file.stat().st_size
    return total
