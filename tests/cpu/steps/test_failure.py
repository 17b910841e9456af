"""Claims of `pp_export.steps.failure`: a failure is one error on all ranks, and nothing is left behind."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from torch.distributed import HashStore, Store  # type: ignore[attr-defined]

from pp_export.core.errors import ExportError, PeerError, StoppedError, TargetError
from pp_export.distributed import heartbeat
from pp_export.distributed.abort import Failure
from pp_export.distributed.alone import alone
from pp_export.distributed.world import World
from pp_export.steps import failure
from pp_export.steps.failure import abort, find_cause
from tests.fixtures.worlds import NUM_RANKS, error_of, on_all

STOPPED = StoppedError("stopped by SIGTERM", where={"rank": 0})
FULL = TargetError("disk full", where={"rank": 2})
BROKE = PeerError("the connection to rank 1 broke", where={"rank": 1})
ELSEWHERE = PeerError("the connection to rank 3 broke", where={"rank": 3})


@pytest.fixture
def store() -> Store:
    return HashStore()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 gives a sign of life more often than every second, and nobody is waited for long."""
    monkeypatch.setattr(heartbeat, "_BEAT_SECONDS", 0.02)
    monkeypatch.setattr(failure, "GRACE_SECONDS", 0.6)


def test_several_failures_are_one_error(store: Store) -> None:
    """The first origin in rank order is the error, and those of other ranks are findings of it."""
    barrier = threading.Barrier(NUM_RANKS)

    def act(world: World) -> ExportError:
        def fail(world: World) -> None:
            barrier.wait(10)
            raise TargetError(f"full at {world.rank}")

        return error_of(world, fail)

    errors = [error.to_json() for error in on_all(act, store)]
    assert errors == [errors[0]] * NUM_RANKS
    assert errors[0]["what"] == "full at 0"
    assert errors[0]["findings"] == [f"rank {rank} also failed: full at {rank}" for rank in (1, 2)]


def test_a_silent_rank_is_a_finding_and_the_staging_folder_goes(store: Store, tmp_path: Path) -> None:
    """Ranks 0 and 1 end with the error of rank 1 although rank 2 never says a word, and the folder that
    they wrote into is gone.
    """
    staging = tmp_path / "staging"
    staging.mkdir()
    (staging / "half").write_bytes(b"x")

    def act(world: World) -> ExportError | None:
        if world.rank == 2:
            return None
        try:
            if world.rank == 1:
                raise ValueError("a bug")
            world.control.wait(lambda: False)
        except (ValueError, ExportError) as error:
            return abort(world, staging, error)
        return None

    first, second, third = on_all(act, store)
    assert third is None
    assert first is not None
    assert second is not None
    assert first.to_json() == second.to_json()
    assert "a bug" in str(first)
    assert first.where["rank"] == "1"
    assert first.findings[-1].startswith("rank 2 ended without a word")
    assert not staging.exists()


# --- which of all errors is the cause


def said(rank: int, error: ExportError, *, is_hearsay: bool = False) -> Failure:
    return Failure(rank, error.to_json(), is_hearsay)


@pytest.mark.parametrize(
    ("failures", "silent", "what", "witness"),
    [
        ([said(0, STOPPED), said(2, FULL)], [], "disk full", 2),
        ([said(0, STOPPED), said(2, FULL)], [1], "disk full", 2),
        ([said(0, STOPPED), said(2, STOPPED)], [1], "rank 1 ended without a word", 0),
        ([said(0, STOPPED), said(2, BROKE)], [1], "the connection to rank 1 broke", 0),
        ([said(0, STOPPED), said(2, ELSEWHERE)], [1], "rank 1 ended without a word", 0),
        ([said(0, STOPPED), said(2, BROKE)], [], "the connection to rank 1 broke", 0),
        ([said(0, STOPPED), said(2, BROKE, is_hearsay=True)], [], "stopped by SIGTERM", 0),
        ([], [], "stopped by SIGTERM", 0),
    ],
    ids=[
        *("a rank's own failure", "also where another is silent", "a killed rank", "what one saw of it"),
        *("not what followed", "a broken connection", "a job that is stopped", "nobody can be heard"),
    ],
)
def test_the_cause_is_what_came_first(
    failures: list[Failure], silent: list[int], what: str, witness: int
) -> None:
    """What a rank did itself goes before what one saw of another, that before a rank that ended without a
    word, and last comes that the launcher then stopped the others.
    """
    world = alone(stall_seconds=1)
    cause, knows = find_cause(failures, silent, StoppedError("stopped by SIGTERM", where={"rank": 0}), world)
    assert (cause.what, knows) == (what, witness)
    for rank in silent:
        assert any(f"rank {rank} ended without a word" in finding for finding in cause.findings)
    world.close()


def test_a_stopped_start_says_who_was_missing() -> None:
    """SIGTERM while ranks wait for others: those that had not come are listed."""
    world = alone(stall_seconds=1)
    world.abort.absent = [3]
    cause, _ = find_cause([said(0, STOPPED)], [], StoppedError("stopped by SIGTERM"), world)
    assert cause.findings == ("rank 3 had not come by then",)
    world.close()
