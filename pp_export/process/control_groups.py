"""What the control groups (version 2) of this process say; docker, Kubernetes and Slurm limit by them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_OWN_GROUP, _MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def settings(name: str) -> Iterator[str]:
    """The content of the file `name` of each group from the process's own up to the root, where there is one.

    A container may see its own group as the root, under a name that leads nowhere there.
    """
    for line in _read(_OWN_GROUP).splitlines():
        number, _, path = line.split(":", 2)
        if number != "0":  # version 1 of control groups
            continue
        group = _MOUNT / path.lstrip("/")
        for each in (group, *group.parents):
            if text := _read(each / name):
                yield text
            if each == _MOUNT:
                break


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
