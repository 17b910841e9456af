"""Claims of `pp_export.steps.ending`: torchrun's summary gets our words, for the rank where it happened."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from pp_export.core.errors import StoppedError, StopRequest, TargetError
from pp_export.steps import ending

ERROR = TargetError("disk full", where={"rank": 1}, advice="free space")


def test_the_summary_of_torchrun_says_it_for_the_right_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's own reader takes the rank that knows most for the root cause, though it wrote last, and
    shows the whole error there; of others it shows a line.
    """
    failures = {}
    for rank in (0, 1):
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / f"{rank}.json"))
        ending.tell_launcher(ERROR, in_full=rank == 1)
        failures[rank] = ProcessFailure(rank, 1, 1, str(tmp_path / f"{rank}.json"))
    others, _, cause = str(ChildFailedError("pp_export", failures)).partition("Root Cause")
    assert "rank      : 1 (local_rank: 1)" in cause
    for line in str(ERROR).splitlines():
        assert line in cause
    assert "ended with another rank: disk full" in others
    assert "free space" not in others


@pytest.mark.asks_elsewhere
@pytest.mark.parametrize("file", [None, "", "/nowhere/error.json"])
def test_it_never_fails_itself(monkeypatch: pytest.MonkeyPatch, file: str | None) -> None:
    """Without a launcher, or where its file can't be written, nothing happens."""
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    if file is not None:
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", file)
    ending.tell_launcher(ERROR)


def test_rank_0_speaks_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ranks that fail alike, rank 0 doesn't wait, the others do; one that is stopped then is silent."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setenv("RANK", "0")
    ending.wait_for_first(ERROR)
    assert slept == []
    monkeypatch.setenv("RANK", "1")
    ending.wait_for_first(ERROR)
    assert slept == [ending._FIRST_SPEAKS_SECONDS]
    with pytest.raises(StopRequest):
        ending.wait_for_first(StoppedError("stopped by SIGTERM"))
