"""What ranks see in common: keys and values, and how one rank waits for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

_SHORTEST_PAUSE = 0.0005


class Store(Protocol):
    """Keys and values that several ranks see. Any thread may call; what goes wrong is a PeerError."""

    def set(self, key: str, value: bytes) -> None: ...

    def set_many(self, values: Mapping[str, bytes]) -> None: ...

    def set_first(self, key: str, value: str) -> bytes:
        """Set `key` unless it is set; its value then."""

    def get(self, key: str) -> bytes: ...

    def get_many(self, keys: Sequence[str]) -> list[bytes]: ...

    def check(self, *keys: str) -> bool:
        """Whether all `keys` are set."""

    def own_keys(self) -> list[str]:
        """What this rank has set, as `delete` takes it."""

    def delete(self, key: str) -> None: ...

    def close(self) -> None:
        """Give the connection back, and end what is served to others."""


@dataclass(frozen=True)
class Member:
    """One of `size` members that share a store; `rank` is its number among them."""

    rank: int
    size: int
    store: Store

    @property
    def poll_seconds(self) -> float:
        """The longest pause between two looks at the store, which all members look at."""
        return max(0.02, self.size / 16384)

    def poll(self, done: Callable[[], bool], seconds: float) -> bool:
        """Ask `done` again and again; whether it was true within `seconds`."""
        deadline = time.monotonic() + seconds
        for pause in pauses(self.poll_seconds):
            if done():
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(pause)
        raise AssertionError("pauses have no end")


def pauses(longest: float) -> Iterator[float]:
    """Seconds to sleep between looks: short ones first, since what is awaited mostly comes at once."""
    pause = _SHORTEST_PAUSE
    while True:
        yield pause
        pause = min(2 * pause, longest)


def missing(store: Store, keys: Sequence[str]) -> list[str]:
    """Those of `keys` that are not set; with one request where all are, a few for each that is not."""
    if not keys or store.check(*keys):
        return []
    if len(keys) == 1:
        return list(keys)
    middle = len(keys) // 2
    return missing(store, keys[:middle]) + missing(store, keys[middle:])
