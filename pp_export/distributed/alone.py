"""A world of one rank. It needs no launcher, no store of anybody else's, and so no torch, whose import
takes seconds.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from pp_export.distributed.world import World


def is_alone() -> bool:
    """Whether no launcher's environment names other ranks."""
    return os.environ.get("WORLD_SIZE", "").strip() in ("", "1")


def alone(*, stall_seconds: float) -> World:
    """A world of this process, without launcher and process group."""
    return World(0, 1, OwnKeys(), stall_seconds=stall_seconds)


class OwnKeys:
    """The store of a process that shares its keys with nobody."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}

    def set(self, key: str, value: bytes) -> None:
        self._values[key] = value

    def set_many(self, values: Mapping[str, bytes]) -> None:
        self._values.update(values)

    def set_first(self, key: str, value: str) -> bytes:
        return self._values.setdefault(key, value.encode())

    def get(self, key: str) -> bytes:
        return self._values[key]

    def get_many(self, keys: Sequence[str]) -> list[bytes]:
        return [self._values[key] for key in keys]

    def check(self, *keys: str) -> bool:
        return all(key in self._values for key in keys)

    def own_keys(self) -> list[str]:
        return list(self._values)

    def delete(self, key: str) -> None:
        self._values.pop(key, None)

    def close(self) -> None:
        """Nobody else is served."""
