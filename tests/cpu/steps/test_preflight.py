"""Claims of `steps/preflight.py`: what is wrong on any rank is known to all before anything is read, as one
error, and what was tried leaves nothing behind.
"""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed import HashStore  # type: ignore[attr-defined]

from pp_export.core.errors import CheckpointError, ExportError, TargetError
from pp_export.disk import files, folders, probe
from pp_export.distributed.world import World
from pp_export.options.kinds import TargetOptions
from pp_export.steps import preflight, versions
from pp_export.steps.preflight import one_error, ranks_named
from pp_export.steps.target import Target
from tests.fixtures.worlds import NUM_RANKS, error_of, on_all

NOTHING: Any = SimpleNamespace(check=lambda: None)


class Seen:
    """A source that some ranks, which are threads here, don't see."""

    is_shared, folders, device = True, (), None

    def __init__(self, *blind: int) -> None:
        self._blind = {f"rank {rank}" for rank in blind}

    def check(self) -> None:
        if threading.current_thread().name in self._blind:
            raise CheckpointError("this rank can't read the checkpoint", where={"file": "/c/.metadata"})


def options_for(folder: Path) -> TargetOptions:
    return TargetOptions(reference=folder, output=folder / "parent" / "export")


def looked(world: World, options: TargetOptions, source: Any) -> None:
    threading.current_thread().name = f"rank {world.rank}"
    target = Target.of(options, world.run_id)
    preflight.preflight(source, target, options, world, NOTHING if world.rank == 0 else None)


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    folder = tmp_path / "parent"
    folder.mkdir()
    return folder


def test_ranks_that_are_fit_leave_nothing(parent: Path) -> None:
    """All ranks pass, and nothing stays beside the target of what they tried there."""
    on_all(lambda world: looked(world, options_for(parent.parent), Seen()), HashStore())
    assert [name for name in os.listdir(parent) if not name.endswith("-own")] == []


def test_who_only_plans_puts_nothing_right(parent: Path) -> None:
    """An older export that a killed run had set aside is named and left by a plan; an export gives it its
    name again, and refuses to replace it.
    """
    options = options_for(parent.parent)
    aside = folders.set_aside(folders.staging_path(options.output, "a1"))
    aside.mkdir()
    os.utime(aside, (1, 1))
    source: Any = Seen()
    preflight.check_here(source, options, NOTHING)
    assert os.listdir(parent) == [aside.name]
    with pytest.raises(TargetError, match="the output exists"):
        Target.of(options, "b2").check(options, ())
    assert os.listdir(parent) == [options.output.name]


def test_problems_of_all_ranks_are_one_error(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What two ranks say alike is said once, with both; what another rank says is a finding; all raise it."""
    write_file = files.write_file

    def write(path: Path, parts: Any) -> None:
        if path.name == "rank-1":
            raise TargetError("write failed: Read-only file system", where={"file": path.name})
        write_file(path, parts)

    monkeypatch.setattr(files, "write_file", write)

    def act(world: World) -> ExportError:
        return error_of(world, lambda world: looked(world, options_for(parent.parent), Seen(1, 2)))

    for error in on_all(act, HashStore()):
        assert isinstance(error, CheckpointError)
        assert error.what == "this rank can't read the checkpoint"
        assert error.where["rank"] == "1-2"
        (finding,) = error.findings
        assert finding == "rank 1: write failed: Read-only file system; file rank-1"
    assert [name for name in os.listdir(parent) if not name.endswith("-own")] == []


def test_a_rank_that_sees_another_folder(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of that name with another content is not the one that rank 0 has made."""
    check = probe.check_probe
    monkeypatch.setattr(probe, "check_probe", lambda folder, _, name: check(folder, b"other", name))

    def act(world: World) -> ExportError:
        return error_of(world, lambda world: looked(world, options_for(parent.parent), Seen()))

    for error in on_all(act, HashStore()):
        assert "do not share a filesystem" in error.what
        assert error.where["rank"] == f"1-{NUM_RANKS - 1}"


def test_only_one_rank_of_a_node_looks(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the launcher numbers the ranks of a node, the others of it don't all ask the filesystem."""
    monkeypatch.setenv("LOCAL_RANK", "3")
    on_all(lambda world: looked(world, options_for(parent.parent), Seen(1, 2)), HashStore())


def test_a_rank_of_another_torch(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks with another release of torch, or another option, are named with both values."""
    found = versions.versions()

    def of_rank() -> dict[str, str]:
        is_last = threading.current_thread().name == f"rank {NUM_RANKS - 1}"
        return {**found, "torch": "1.0"} if is_last else found

    monkeypatch.setattr(preflight, "versions", of_rank)

    def act(world: World) -> ExportError:
        options = options_for(parent.parent)
        other = replace(options, dtype="float16") if world.rank == 1 else options
        return error_of(world, lambda world: looked(world, other, Seen()))

    for error in on_all(act, HashStore()):
        assert error.what == "the ranks disagree on the options"
        assert (error.expected, error.got) == ("--dtype checkpoint (rank 0)", "--dtype float16")
        assert f"rank {NUM_RANKS - 1}: the ranks disagree on the version of torch" in error.findings[0]


def test_what_nobody_planned_for_is_a_problem_too(parent: Path) -> None:
    """Whatever a check raises reaches all ranks; none waits for one that has raised."""
    broken: Any = SimpleNamespace(is_shared=False, folders=(), check=lambda: 1 // 0)

    def act(world: World) -> ExportError:
        return error_of(world, lambda world: looked(world, options_for(parent.parent), broken))

    for error in on_all(act, HashStore()):
        assert "division" in error.what
        assert error.where["rank"] == f"0-{NUM_RANKS - 1}"


def test_ranks_are_named_in_runs() -> None:
    """Thousands of ranks take a few words."""
    assert ranks_named([0]) == "0"
    assert ranks_named([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert ranks_named(range(16384)) == "0-16383"


def test_problems_without_ranks_name_none() -> None:
    """A plan has no ranks, so its findings name none."""
    error = one_error([(None, TargetError("a")), (None, TargetError("b", where={"file": "f"}, got="g"))])
    assert (error.where, error.findings) == ({}, ("b; file f; got g",))
