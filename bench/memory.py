"""Memory of a tree of processes, sampled from /proc by the process that started it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass
class ProcessPeak:
    """The most that one process was seen with. `resident` is the kernel's own peak and so misses nothing."""

    command: str
    anonymous_bytes: int = 0
    resident_bytes: int = 0


class MemorySampler:
    """Follows a process and all that descend from it.

    Anonymous memory is what the kernel counts as RssAnon and RssShmem: an anonymous mapping that is shared
    counts as the latter, and is as much a process's own. File pages (the libraries, the page cache) are not.
    """

    def __init__(self, root: int) -> None:
        self._known = {root}
        self._members = {root}
        self.processes: dict[int, ProcessPeak] = {}
        self.peak_bytes = 0
        self.num_samples = 0

    def sample(self) -> None:
        """Look once. What begins and ends between two looks is missed."""
        self._find_members()
        total = 0
        for pid in tuple(self._members):
            try:
                status = _read_status(pid)
            except (FileNotFoundError, ProcessLookupError):
                self._members.discard(pid)
                continue
            anonymous = status.get("RssAnon", 0) + status.get("RssShmem", 0)
            total += anonymous
            peak = self.processes.setdefault(pid, ProcessPeak(""))
            peak.command = _command(pid) or peak.command
            peak.anonymous_bytes = max(peak.anonymous_bytes, anonymous)
            peak.resident_bytes = max(peak.resident_bytes, status.get("VmHWM", 0))
        self.peak_bytes = max(self.peak_bytes, total)
        self.num_samples += 1

    @property
    def resident_bytes(self) -> int:
        """Sum of the kernel's resident peaks of all processes; libraries count once in each of them."""
        return sum(peak.resident_bytes for peak in self.processes.values())

    def _find_members(self) -> None:
        """Add the new processes that a member started; an orphan stays one."""
        parents: dict[int, int] = {}
        for name in os.listdir(_PROC):
            if name.isdigit() and int(name) not in self._known:
                try:
                    fields = (_PROC / name / "stat").read_text().rpartition(")")[2].split()
                except (FileNotFoundError, ProcessLookupError):
                    continue
                parents[int(name)] = int(fields[1])
        self._known |= parents.keys()
        while found := {pid for pid, parent in parents.items() if parent in self._members} - self._members:
            self._members |= found


def _read_status(pid: int) -> dict[str, int]:
    """The sizes of /proc/PID/status in bytes."""
    sizes = {}
    for line in (_PROC / str(pid) / "status").read_text().splitlines():
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            sizes[name] = int(value.split()[0]) * 1024
    return sizes


def _command(pid: int) -> str:
    try:
        words = (_PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return " ".join(words)[:200].strip()
