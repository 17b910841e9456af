"""`--resume`: goes on with the shards that an earlier run of the same work has committed.

Nothing is trusted: what an earlier run says to be there is read, past the page cache, and what is not as it
was frozen then is made again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from pp_export.core import file_names
from pp_export.core.errors import TargetError
from pp_export.disk import adoption, calls, folders, owner
from pp_export.disk.owner import Life
from pp_export.distributed.world import World
from pp_export.options.consolidation import ConsolidateOptions
from pp_export.options.kinds import ExportOptions, TargetOptions
from pp_export.planning.kept import Kept
from pp_export.planning.least_loaded import LeastLoaded
from pp_export.process.log import logger
from pp_export.shards import committed
from pp_export.shards.committed import Committed
from pp_export.steps.capacity import capacity_of
from pp_export.steps.inputs import Whole
from pp_export.steps.target import Target
from pp_export.steps.work import Work, differences, read_work, work_of, write_work
from pp_export.steps.workers import Crew, Progress

Checked = tuple[Committed, str | None]
"""Something that was said to be there, and what is wrong with it."""


def is_asked(options: TargetOptions) -> bool:
    """Whether a run goes on with what others left, and leaves what others may go on with."""
    return isinstance(options, (ExportOptions, ConsolidateOptions)) and options.resume


def make_folder(target: Target, whole: Whole, options: TargetOptions) -> int:
    """Make the staging folder out of what an earlier run has left, if there is any; else an empty one, with
    which a later run may go on. Called on rank 0; the bytes that are said to be there.
    """
    work = work_of(whole, options)
    earlier = _earlier(target, work)
    if earlier is None:
        folders.make_folder(target.staging)
        folders.make_folder(target.staging / file_names.SHARD_JSONS)
        write_work(target.staging, work)
        return 0
    logger.info("going on with what an earlier run has left in %s", earlier)
    adoption.adopt(earlier, target.staging)
    there = committed.find_committed(target.staging, whole.plan.files)
    keep = {file_names.WORK, *(name for each in there for name in (each.record, each.data))}
    adoption.remove_others(target.staging, keep)
    return sum(each.num_bytes for each in there)


def num_bytes_there(target: Target, whole: Whole, options: TargetOptions) -> int:
    """The bytes that `make_folder` would go on with, for who only plans; raises what it would."""
    earlier = _earlier(target, work_of(whole, options))
    if earlier is None:
        return 0
    return sum(each.num_bytes for each in committed.find_committed(earlier, whole.plan.files))


def take_up(
    world: World,
    target: Target,
    whole: Whole | None,
    options: TargetOptions,
    progress: Progress,
    on_poll: Callable[[], None],
) -> Whole | None:
    """Read what an earlier run has committed, each rank a share of it; called by all ranks. On rank 0, the
    whole with what is intact as `kept` in its plan; what is not is dropped, and noted.
    """

    def deal() -> Sequence[bytes]:
        assert whole is not None
        there = committed.find_committed(target.staging, whole.plan.files)
        return [_told((each, None) for each in dealt) for dealt in _dealt(there, world.size)]

    checked: list[Checked] = []

    def check(each: Committed) -> None:
        progress.doing(f"re-reading {each.file}")
        fault = committed.fault_of(target.staging, each, partial(progress.add, "checked"))
        checked.append((each, fault))

    mine = [each for each, _ in _heard(world.control.scatter(deal))]
    crew = Crew(world)
    crew.exhaust("finisher", crew.in_parallel("verifier", mine, check, capacity_of(options).threads))
    crew.run(on_poll)
    told = world.control.gather(_told(checked))
    return world.control.on_first(
        lambda: _kept(target.staging, whole, [c for image in told for c in _heard(image)])
    )


def left_for_later(staging: Path) -> str | None:
    """Keep the staging folder of a run that failed for one that resumes, if anything is committed in it; what
    to tell the user then. Called by one rank.
    """
    records = staging / file_names.SHARD_JSONS
    names = calls.names_in(records) if calls.is_folder(records) else []
    count = sum(name != Path(file_names.WORK).name for name in names)
    if not count:
        return None
    aside = adoption.set_aside(staging)
    return f"--resume goes on with the {count} shards that are committed: {aside}"


def _earlier(target: Target, work: Work) -> Path | None:
    """The newest staging folder of the same work. Raises TargetError where there are only those of other
    work, since who resumes would not want to begin anew.
    """
    others: list[tuple[Path, Work]] = []
    for folder in adoption.earlier_staging(target.folder):
        before = read_work(folder)
        if before == work:
            _check_left(folder)
            return folder
        if before is not None:
            others.append((folder, before))
    if others:
        folder, before = others[0]
        raise TargetError(
            "what an earlier run has left belongs to another export",
            where={"folder": folder},
            expected="the same checkpoint, options and version of pp_export",
            advice="give the same options again, or leave --resume out to begin anew",
            findings=list(differences(before, work)),
        )
    return None


def _check_left(staging: Path) -> None:
    """Raise TargetError where the run that this staging folder is of is still at work. An earlier start of
    this very Slurm job is not, whatever processes of it are left.
    """
    whose = owner.read(staging)
    if whose is None or owner.is_earlier_start(whose):
        return
    life, why = owner.life_of(whose, ask_slurm=False)
    if life is Life.ALIVE:
        raise TargetError(
            "another run is at work on the same export",
            where={"folder": staging},
            got=why,
            advice="wait for it, or stop it and start again",
        )


def _dealt(there: Iterable[Committed], num_ranks: int) -> list[list[Committed]]:
    """What each rank reads, so that all have about as much."""
    loads = Counter(dict.fromkeys(range(num_ranks), 0))
    ranks = LeastLoaded(range(num_ranks), loads)
    dealt: list[list[Committed]] = [[] for _ in range(num_ranks)]
    for each in sorted(there, key=lambda each: -each.num_bytes):
        rank = ranks.first()
        loads[rank] += each.num_bytes
        dealt[rank].append(each)
    return dealt


def _kept(staging: Path, whole: Whole | None, checked: Iterable[Checked]) -> Whole:
    assert whole is not None
    intact = [each for each, fault in checked if fault is None]
    damaged = [(each, fault) for each, fault in checked if fault is not None]
    for each, _ in damaged:
        committed.drop(staging, each)
    kept = Kept(
        frozenset(each.file for each in intact if each.number is None),
        frozenset((each.file, each.number) for each in intact if each.number is not None),
    )
    notes = [f"made again, since the earlier run's is damaged: {fault}" for _, fault in damaged]
    if intact:
        num_bytes = sum(each.num_bytes for each in intact)
        notes.insert(0, f"{len(intact)} shards ({num_bytes:,} bytes) are those of an earlier run, read again")
    return replace(whole, plan=replace(whole.plan, kept=kept), notes=tuple(notes))


def _told(checked: Iterable[Checked]) -> bytes:
    return json.dumps([[*vars(each).values(), fault] for each, fault in checked]).encode()


def _heard(image: bytes) -> list[Checked]:
    return [(Committed(*fields), fault) for *fields, fault in json.loads(image)]
