"""What this rank may take of its node: what the user says, or its share."""

from __future__ import annotations

import os

from pp_export.options.kinds import RunOptions
from pp_export.options.texts import parse_bytes
from pp_export.planning.capacity import Capacity
from pp_export.process.cores import usable_cores
from pp_export.process.node_memory import usable_bytes

_SHARE_OF_MEMORY = 4
"""Most of a node's memory is for others: a training job, the page cache of what is read next."""


def capacity_of(options: RunOptions) -> Capacity:
    """The capacity of this rank. The ranks of a node share its cores, and a quarter of its memory."""
    ranks = ranks_on_node()
    threads = options.threads or max(1, usable_cores() // ranks)
    if options.memory_limit is not None:
        return Capacity(threads, parse_bytes(options.memory_limit))
    return Capacity(threads, usable_bytes() // _SHARE_OF_MEMORY // ranks)


def ranks_on_node() -> int:
    """As many as the launcher says that it has started here."""
    told = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, int(told)) if told.isdecimal() else 1
