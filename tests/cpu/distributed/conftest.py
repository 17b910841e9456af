"""Fixtures of the tests of `pp_export.distributed`."""

from __future__ import annotations

from datetime import timedelta

import pytest
from torch.distributed import HashStore, Store  # type: ignore[attr-defined]

from pp_export.distributed import heartbeat
from pp_export.steps import failure


@pytest.fixture
def store() -> Store:
    """A store in which a key that nobody sets is not waited for long."""
    store = HashStore()
    store.set_timeout(timedelta(seconds=2))
    return store


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 gives a sign of life more often than every second, and nobody is waited for long."""
    monkeypatch.setattr(heartbeat, "_BEAT_SECONDS", 0.02)
    monkeypatch.setattr(failure, "GRACE_SECONDS", 0.6)
