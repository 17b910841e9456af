"""Claims about `process.cores`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pp_export.process import control_groups
from pp_export.process.cores import usable_cores


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree of control groups in which this process is in /pods/one, on a machine of eight cores."""
    own, mount = tmp_path / "cgroup", tmp_path / "mount"
    own.write_text("12:cpu:/elsewhere\n0::/pods/one\n")
    (mount / "pods" / "one").mkdir(parents=True)
    monkeypatch.setattr(control_groups, "_OWN_GROUP", own)
    monkeypatch.setattr(control_groups, "_MOUNT", mount)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    return mount


def limit(group: Path, text: str) -> None:
    (group / "cpu.max").write_text(text + "\n")


def test_it_is_the_affinity_mask_where_nothing_limits_more(groups: Path) -> None:
    """Without control groups, with one that says `max`, and with one that allows more, the mask counts."""
    assert usable_cores() == 8
    limit(groups / "pods" / "one", "max 100000")
    assert usable_cores() == 8
    limit(groups / "pods", "1600000 100000")
    assert usable_cores() == 8


def test_the_tightest_group_counts(groups: Path) -> None:
    """The process's own group and each one above may limit it, the root of the mount too."""
    limit(groups / "pods" / "one", "600000 100000")
    assert usable_cores() == 6
    limit(groups / "pods", "250000 50000")
    assert usable_cores() == 5
    limit(groups, "300000 100000")
    assert usable_cores() == 3


def test_a_part_of_a_core_is_one(groups: Path) -> None:
    """A limit of 2.5 cores keeps three threads busy, one of a tenth still one."""
    limit(groups, "250000 100000")
    assert usable_cores() == 3
    limit(groups, "10000 100000")
    assert usable_cores() == 1


def test_a_group_outside_of_what_is_mounted_is_no_error(groups: Path, tmp_path: Path) -> None:
    """A container may see the path of its group on the host, and as the root its own limits."""
    (tmp_path / "cgroup").write_text("0::/kubepods/burstable/pod7/abc\n")
    limit(groups, "400000 100000")
    assert usable_cores() == 4


def test_a_mask_that_is_smaller_counts(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is bound to two cores has two, whatever its group allows."""
    limit(groups, "400000 100000")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    assert usable_cores() == 2
