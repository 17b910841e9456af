"""What a rank may take of the node that it runs on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Capacity:
    """The `threads` that a rank keeps busy, and the memory that it may take, as far as it can choose (None:
    as much as they need).
    """

    threads: int = 1
    memory_bytes: int | None = None


ONE_THREAD = Capacity()
