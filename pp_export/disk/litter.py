"""What runs that were killed have left beside a target: whose it is, putting right what must be, removing
what is provably dead.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pp_export.core.errors import TargetError
from pp_export.disk import beside, calls, owner
from pp_export.disk.calls import attempt, look
from pp_export.disk.files import remove_file
from pp_export.disk.folders import JOURNAL, holds_older_files, record_beside, remove_folder, sync_folder
from pp_export.disk.owner import Life, Owner

_NAME = re.compile(
    r"\.(?P<target>.+)\.pp_export-(?P<run>[0-9a-f]{1,32})(?P<kind>-old|-bin|-kept|-own|-try)?", re.DOTALL
)
_PUBLISHING_SECONDS, _UNFINISHED_SECONDS = 60.0, 3600.0


@dataclass(frozen=True)
class Leftover:
    """A folder at `path`, or a record alone, that run `run_id` left of its export to `target`, since `age`
    seconds. The owner is None where no record says it.
    """

    path: Path
    target: Path
    run_id: str
    kind: str
    owner: Owner | None
    age: float

    def __str__(self) -> str:
        whose = "an unknown owner" if self.owner is None else str(self.owner)
        return f"{self.path}: left by a run that began {_ago(self.age)} ago, of {whose}"

    @property
    def is_record(self) -> bool:
        """Whether it is no folder, but the record beside one."""
        return self.kind == "-own"

    def life(self, *, ask_slurm: bool = False) -> tuple[Life, str]:
        """Whether its run lives, and how that is known."""
        if self.owner is None and self.kind in ("-own", "-try") and self.age > _UNFINISHED_SECONDS:
            return Life.DEAD, "it was never finished"
        if self.owner is None:
            return Life.UNKNOWN, "no record says whose it is"
        return owner.life_of(self.owner, ask_slurm=ask_slurm)


@dataclass(frozen=True)
class Removal:
    """What was done with a leftover, and why; `command` is what a user may call where it was kept."""

    leftover: Leftover
    is_removed: bool
    why: str

    @property
    def command(self) -> str:
        """The line that removes it by hand."""
        return f"rm -r -- {shlex.quote(str(self.leftover.path))}"


def leftovers_of(target: Path, own_run: str | None = None) -> list[Leftover]:
    """What other runs than `own_run` have left beside `target`. Raises TargetError where the folder can't be
    listed.
    """
    return [left for left in leftovers_in(target.parent, own_run) if left.target == target]


def leftovers_in(folder: Path, own_run: str | None = None) -> list[Leftover]:
    """What other runs have left in a folder, of exports to whatever target."""
    return list(_found(folder, own_run))


def put_right(target: Path, own_run: str | None = None) -> list[str]:
    """Undo what a killed run had begun to publish, and give an older export its name back that had lost it;
    called before anything is exported to `target`. A sentence for each thing done.

    Raises TargetError where another run is publishing at this moment, as far as can be known.
    """
    done = []
    for left in leftovers_of(target, own_run):
        if left.is_record:
            continue
        is_aside = left.kind == "-old" and look(target, follow=False) is None
        if not is_aside and not holds_older_files(left.path):
            continue
        is_dead = _is_over(left)
        if is_aside:
            attempt("rename", target, os.rename, left.path, target)
            sync_folder(target.parent)
            done.append(
                f"{target}: the older export has its name again: run {left.run_id} was killed in between"
            )
        else:
            nameless = beside.recover(left.path, target)
            if is_dead:
                remove_folder(nameless)
            done.append(f"{target}: what run {left.run_id} had begun to publish is undone: it was killed")
    return done


def remove(folder: Path, *, dry_run: bool = False) -> list[Removal]:
    """Remove what killed runs have left in `folder`, and beside it of exports to it, if it is proved that
    they are dead and what they left is theirs. Nothing is removed that pp_export didn't make.
    """
    found = {left.path: left for left in leftovers_in(folder)} if calls.is_folder(folder) else {}
    found |= {left.path: left for left in leftovers_of(folder)}
    done = []
    for left in sorted(found.values(), key=lambda left: (left.is_record, left.path)):
        life, why = left.life(ask_slurm=True)
        is_dead = life is Life.DEAD
        if is_dead and not dry_run:
            why = _remove(left, why)
        done.append(Removal(left, is_dead, why))
    return done


def _remove(left: Leftover, why: str) -> str:
    for sentence in put_right(left.target):
        why += f"; {sentence}"
    if not left.is_record:
        remove_folder(left.path)
    remove_file(record_beside(left.path.with_name(left.path.name.removesuffix(left.kind))))
    return why


def _is_over(left: Leftover) -> bool:
    """Whether a run that was publishing is dead for certain. Raises TargetError unless it is dead or has been
    at it for long.
    """
    life, why = left.life()
    if life is Life.ALIVE or (life is Life.UNKNOWN and _seconds_since(left) < _PUBLISHING_SECONDS):
        raise TargetError(
            "another export is being published there at this moment",
            where={"output": left.target},
            got=f"{left}; {why}",
            advice="try again in a minute, when it has ended",
        )
    return life is Life.DEAD


def _seconds_since(left: Leftover) -> float:
    """How long ago a run began to publish."""
    found = look(left.path / JOURNAL) or look(left.path)
    return float("inf") if found is None else time.time() - found.st_mtime


def _found(folder: Path, own_run: str | None) -> Iterator[Leftover]:
    names = sorted(calls.names_in(folder))
    for name in names:
        match = _NAME.fullmatch(name)
        if match is None or match["run"] == own_run:
            continue
        path, kind = folder / name, match["kind"] or ""
        found = look(path, follow=False)
        if found is None or not (stat.S_ISREG if kind == "-own" else stat.S_ISDIR)(found.st_mode):
            continue
        staging = path.with_name(name.removesuffix(kind))
        if kind == "-own" and _is_another(staging, names):
            continue
        whose = owner.read(staging)
        if whose is not None and whose.run_id != match["run"]:
            whose = None
        age = time.time() - (found.st_mtime if whose is None else whose.began)
        yield Leftover(path, folder / match["target"], match["run"], kind, whose, max(0.0, age))


def _is_another(staging: Path, names: Sequence[str]) -> bool:
    """Whether a folder of the run lies there too, which its record is named with."""
    return any(staging.name + kind in names for kind in ("", "-old", "-bin", "-kept", "-try"))


def _ago(seconds: float) -> str:
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:.0f} seconds"
