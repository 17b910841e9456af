"""What all ranks see: keys and values, and how one rank waits for them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class Store(Protocol):
    """Keys and values that all ranks see; everything that goes wrong with it is a PeerError."""

    def set(self, key: str, value: bytes) -> None: ...

    def set_first(self, key: str, value: str) -> bytes:
        """Set `key` unless it is set; its value then."""

    def get(self, key: str) -> bytes: ...

    def add(self, key: str, amount: int) -> int: ...

    def check(self, key: str) -> bool: ...

    def delete(self, key: str) -> None: ...


@dataclass(frozen=True)
class Member:
    """One rank of those that share a store."""

    rank: int
    size: int
    store: Store

    @property
    def poll_seconds(self) -> float:
        """The pause between two looks at the store, which all ranks look at."""
        return max(0.02, self.size / 16384)

    def poll(self, done: Callable[[], bool], seconds: float) -> bool:
        """Ask `done` again and again; whether it was true within `seconds`."""
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() > deadline:
                return False
            time.sleep(self.poll_seconds)
        return True
