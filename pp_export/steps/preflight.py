"""What is found out before anything is read: whether every rank sees the checkpoint and the output, may write
there, and is of the same versions and options. All that is wrong, on whatever ranks, is one error.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pp_export.core import errors
from pp_export.core.errors import ExportError, TargetError
from pp_export.core.version import VERSION
from pp_export.disk import folders, probe
from pp_export.distributed import backends
from pp_export.options.kinds import TargetOptions, flag
from pp_export.steps.target import Target, check_path
from pp_export.steps.versions import versions

if TYPE_CHECKING:
    from pp_export.checkpoint.source import Source
    from pp_export.distributed.world import World
    from pp_export.planning.export_plan import ExportPlan
    from pp_export.steps.pending import PendingInputs

_SPARE_BYTES, _SPARE_FILES = 64 << 20, 64
_VERSION = "the version of pp_export"


def preflight(
    source: Source, target: Target, options: TargetOptions, world: World, pending: PendingInputs | None
) -> None:
    """Raise one ExportError on all ranks that tells what is wrong on any of them; called by all ranks, in
    three steps of control. `pending` is rank 0's.

    Rank 0 checks target and reference. The first rank of each node looks at the checkpoint, and tries to read
    and write in a folder that rank 0 makes beside the target, and removes. Of a live model each rank has its
    own part to check.
    """
    folder = folders.probe_of(target.staging)
    mine: list[ExportError] = []
    try:
        begun = world.control.share(lambda: _begin(folder, source, target, options, pending, mine, acts=True))
        token = _understood(json.loads(begun), world.rank)
        if options.backend == backends.NCCL:
            _collect(mine, lambda: backends.check(options.backend))
        if not source.is_shared or (world.rank != 0 and _is_first_of_node()):
            _collect(mine, source.check)
        if token and world.rank != 0 and _is_first_of_node():
            _collect(mine, lambda: probe.check_probe(folder, token.encode(), f"rank-{world.rank}"))
        said = {
            "torch": versions()["torch"],
            "options": options.to_json(),
            "problems": [error.to_json() for error in mine],
        }
        images = world.control.gather(json.dumps(said).encode())
    except BaseException:
        if world.rank == 0:
            with suppress(TargetError):
                folders.remove_folder(folder)
        raise
    unremoved: list[ExportError] = []

    def judge() -> bytes:
        _collect(unremoved, lambda: folders.remove_folder(folder))
        problems = _problems(list(map(json.loads, images))) + [(0, error) for error in unremoved]
        if world.size == 1:
            problems = [(None, error) for _, error in problems]
        if problems:
            raise one_error(problems)
        return b""

    world.control.share(judge)


def check_here(source: Source, options: TargetOptions, pending: PendingInputs) -> None:
    """What rank 0 checks in `preflight`, for one process that only plans; nothing stays."""
    target = target_of_plan(options)
    folder = folders.probe_of(target.staging)
    found: list[ExportError] = []
    try:
        _begin(folder, source, target, options, pending, found, acts=False)
    finally:
        with suppress(TargetError):
            folders.discard_folder(target.staging)
    if options.backend == backends.NCCL:
        _collect(found, lambda: backends.check(options.backend))
    if found:
        raise one_error([(None, error) for error in found])


def target_of_plan(options: TargetOptions) -> Target:
    """Where a plan looks at what an export may do: at the target, or at the first of the folders above it
    that the export would make.
    """
    folder = Path(os.path.abspath(options.output))
    if options.parents:
        above = next(each for each in folder.parents if os.path.lexists(each))
        folder = above / folder.relative_to(above).parts[0]
    return Target.of(replace(options, output=folder), f"{time.time_ns():x}")


def check_space(target: Target, plan: ExportPlan, num_bytes_there: int) -> None:
    """Raise TargetError unless the filesystem has room for what is planned and not there yet; called on
    rank 0.
    """
    num_bytes = sum(shard.num_bytes for shard in plan.shards)
    folders.check_space(target.folder, num_bytes - num_bytes_there + _SPARE_BYTES)
    # A shard and its JSON each; their temporary names are the same inodes.
    probe.check_inodes(target.folder.parent, 2 * len(plan.shards) + _SPARE_FILES)


def one_error(problems: Sequence[tuple[int | None, ExportError]]) -> ExportError:
    """The first of some problems, with the others as its findings; what several ranks say is said once, with
    all of them. Problems that are of no rank have None.
    """
    groups: dict[str, tuple[ExportError, list[int]]] = {}
    for rank, error in problems:
        ranks = groups.setdefault(json.dumps(error.to_json()), (error, []))[1]
        ranks += [] if rank is None else [rank]
    (first, of_first), *others = groups.values()
    if of_first:
        first.at(rank=ranks_named(of_first))
    first.findings = (*first.findings, *(_as_finding(error, ranks) for error, ranks in others))
    return first


def _begin(
    folder: Path,
    source: Source,
    target: Target,
    options: TargetOptions,
    pending: PendingInputs | None,
    found: list[ExportError],
    *,
    acts: bool,
) -> bytes:
    """Rank 0's own checks; what is wrong is `found`. Its version, and the token that others find in `folder`,
    as JSON, which every version understands. Who only plans and does not act changes nothing that stays.
    """
    assert pending is not None
    token = os.urandom(16).hex()
    _collect(found, lambda: check_path(options))
    _collect(found, pending.check)
    _collect(found, lambda: target.check(options, source.folders, acts=acts))
    if source.is_shared:
        _collect(found, source.check)

    def make() -> None:
        probe.make_probe(folder, token.encode())
        target.claim()

    is_made = target.folder.parent.is_dir() and _collect(found, make)
    return json.dumps({_VERSION: VERSION, "token": token if is_made else ""}).encode()


def _understood(begun: Mapping[str, str], rank: int) -> str:
    """Rank 0's token, unless that is of another version, which may go on in another way: then nobody does."""
    if begun.get(_VERSION) != VERSION:
        raise _disagreement(_VERSION, begun.get(_VERSION), VERSION).at(rank=rank)
    return begun["token"]


def _collect(found: list[ExportError], check: Callable[[], object]) -> bool:
    """Whether `check` passes; what it raises is kept, since nothing may be raised between collectives."""
    try:
        check()
    except Exception as error:  # noqa: BLE001  raised on all ranks at once
        found.append(errors.as_export_error(error))
        return False
    return True


def _problems(said: Sequence[Mapping[str, Any]]) -> list[tuple[int | None, ExportError]]:
    """What each rank has said, and where its options or its torch are other ones than rank 0's."""
    found: list[tuple[int | None, ExportError]] = []
    options, torch = said[0]["options"], said[0]["torch"]
    for rank, of_rank in enumerate(said):
        if of_rank["torch"] != torch:
            found.append((rank, _disagreement("the version of torch", torch, of_rank["torch"])))
        found += [
            (
                rank,
                _disagreement(
                    "the options", f"--{flag(name)} {value}", f"--{flag(name)} {of_rank['options'].get(name)}"
                ),
            )
            for name, value in options.items()
            if of_rank["options"].get(name) != value
        ]
        found += [(rank, errors.from_json(each)) for each in of_rank["problems"]]
    return found


def _disagreement(what: str, expected: object, got: object) -> ExportError:
    return ExportError(
        f"the ranks disagree on {what}",
        expected=f"{expected} (rank 0)",
        got=got,
        advice="start all ranks with the same options and the same versions",
    )


def _as_finding(error: ExportError, ranks: Sequence[int]) -> str:
    who = f"rank {ranks_named(ranks)}: " if ranks else ""
    places = ", ".join(f"{name} {place}" for name, place in error.where.items())
    facts = [
        f"{label} {text}"
        for label, text in (("expected", error.expected), ("got", error.got), ("do:", error.advice))
        if text is not None
    ]
    return who + "; ".join([error.what, *([places] if places else []), *facts, *error.findings])


def _is_first_of_node() -> bool:
    """What holds for one rank of a node holds for all. Where no launcher numbers them, each looks."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def ranks_named(ranks: Sequence[int]) -> str:
    """Ranks in ascending order as text: `0-2, 5`."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and runs[-1][-1] == rank - 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
