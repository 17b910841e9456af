"""Claims of `pp_export.steps.capacity`: a rank takes what it is told to, else its share of the node."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pp_export.core.errors import OptionError
from pp_export.options.kinds import TargetOptions
from pp_export.planning.capacity import Capacity
from pp_export.steps import capacity
from pp_export.steps.capacity import capacity_of
from pp_export.steps.inputs import plan_export
from tests.fixtures.planned import Planned


def options(**values: object) -> TargetOptions:
    return TargetOptions(reference=Path("r"), output=Path("o"), **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ranks", "threads", "memory_bytes"),
    [
        (None, 16, 64 << 30),
        ("1", 16, 64 << 30),
        ("8", 2, 8 << 30),
        ("48", 1, (64 << 30) // 48),
        ("?", 16, 64 << 30),
    ],
)
def test_the_ranks_of_a_node_share_it(
    monkeypatch: pytest.MonkeyPatch, ranks: str | None, threads: int, memory_bytes: int
) -> None:
    """Cores, and a quarter of the memory, are divided by as many ranks as the launcher says."""
    monkeypatch.setattr(capacity, "usable_cores", lambda: 16)
    monkeypatch.setattr(capacity, "usable_bytes", lambda: 256 << 30)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if ranks is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    assert capacity_of(options()) == Capacity(threads, memory_bytes)


def test_what_is_asked_for_counts() -> None:
    """`--threads` and `--memory-limit` are taken as they are."""
    assert capacity_of(options(threads=3, memory_limit="2GB")) == Capacity(3, 2 * 10**9)


def test_a_limit_that_not_even_one_shard_keeps_to_is_refused(planned: Planned) -> None:
    """What a rank needs at least is said before anything is read, and with that much it goes."""
    with pytest.raises(OptionError, match="less than a rank needs") as caught:
        plan_export(planned.inputs, replace(planned.options, memory_limit="1MB"), 2)
    needed = int("".join(filter(str.isdigit, caught.value.expected or "")))
    plan = plan_export(planned.inputs, replace(planned.options, memory_limit=str(needed)), 2)
    assert max(part.peak_bytes for part in plan.parts) == needed
