"""The memory that this process has taken."""

from __future__ import annotations

from pathlib import Path


def peak_anonymous_bytes() -> int:
    """This process's peak of resident memory less the file pages that it maps now.

    The kernel keeps a peak for all resident memory only; nothing of the export's data is file-mapped, so
    the difference is the peak of anonymous memory to within the libraries' own pages.
    """
    fields = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("VmHWM", "RssFile"):
            fields[name] = int(value.split()[0]) * 1024
    return max(0, fields.get("VmHWM", 0) - fields.get("RssFile", 0))
