"""How much memory the processes of this node may take."""

from __future__ import annotations

import os

from pp_export.process.control_groups import settings


def usable_bytes() -> int:
    """All of the node's memory, or what a control group of this process allows of it."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = map(str.strip, settings("memory.max"))  # "max" where there is none
    return min([total, *(int(limit) for limit in limits if limit.isdecimal())])
