"""Claims about `process.node_memory`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pp_export.process import control_groups
from pp_export.process.node_memory import usable_bytes


def test_it_is_the_node_s_memory_or_what_a_group_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tightest of all groups above counts; one that says `max` limits nothing."""
    (tmp_path / "pods" / "one").mkdir(parents=True)
    (tmp_path / "cgroup").write_text("0::/pods/one\n")
    monkeypatch.setattr(control_groups, "_OWN_GROUP", tmp_path / "cgroup")
    monkeypatch.setattr(control_groups, "_MOUNT", tmp_path)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert usable_bytes() == total
    (tmp_path / "pods" / "one" / "memory.max").write_text("max\n")
    assert usable_bytes() == total
    (tmp_path / "pods" / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.max").write_text("4000000\n")
    assert usable_bytes() == 3_000_000
