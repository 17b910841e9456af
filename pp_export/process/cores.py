"""How many cores this process may keep busy."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_OWN_GROUP, _MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """At least one: what the affinity mask admits (taskset, Slurm, cpusets), or fewer where a control group's
    `cpu.max` (docker, Kubernetes, systemd) gives less time than that. A part of a core counts as one.

    All ranks of a node that share a mask or a group get the same number: dividing it is for those who call.
    """
    quota = min(_quotas(_OWN_GROUP, _MOUNT), default=math.inf)
    return max(1, math.ceil(min(_affinity(), quota)))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on a Mac, where folders are verified too
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas(own_group: Path, mount: Path) -> Iterator[float]:
    """Cores that each control group from the process's own up to the root of `mount` allows, where it limits
    them. A container may see its own group as the root, under a name that leads nowhere there.
    """
    for line in _read(own_group).splitlines():
        number, _, path = line.split(":", 2)
        if number != "0":  # version 1 of control groups
            continue
        group = mount / path.lstrip("/")
        for each in (group, *group.parents):
            quota, _, period = _read(each / "cpu.max").partition(" ")
            if quota.isdecimal():
                yield int(quota) / int(period)
            if each == mount:
                break


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
