"""How many cores this process may keep busy."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator

from pp_export.process.control_groups import settings


def usable_cores() -> int:
    """At least one: what the affinity mask admits (taskset, Slurm, cpusets), or fewer where a control group's
    `cpu.max` (docker, Kubernetes, systemd) gives less time than that. A part of a core counts as one.

    All ranks of a node that share a mask or a group get the same number: dividing it is for those who call.
    """
    quota = min(_quotas(settings("cpu.max")), default=math.inf)
    return max(1, math.ceil(min(_affinity(), quota)))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on a Mac, where folders are verified too
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas(limits: Iterable[str]) -> Iterator[float]:
    """Cores that each control group allows, where it limits them."""
    for limit in limits:
        quota, _, period = limit.partition(" ")
        if quota.isdecimal():
            yield int(quota) / int(period)
