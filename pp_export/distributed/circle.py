"""Ranks that share a store: values go up to the first of them, and down from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Sequence

from pp_export.distributed.store import Member, missing

Wait = Callable[[Callable[[], bool], Callable[[], list[int]]], None]
"""Wait until the first is true; the second names the ranks that are awaited."""

_WHOLE, _ELSEWHERE = b"=", b"#"
_LARGE_BYTES = 16 << 10


class Circle:
    """The members of one store; `name` begins their keys, and `behind` gives the ranks for which the
    member of a number stands. Each step has a name of its own; the main thread of each member takes it.
    """

    def __init__(self, name: str, member: Member, behind: Callable[[int], Sequence[int]], wait: Wait) -> None:
        self.name, self.member = name, member
        self._behind, self._wait = behind, wait
        self._others = range(1, member.size)

    def gather(self, step: str, value: bytes) -> list[bytes]:
        """The values of all members, in their order, on the first; elsewhere nothing, and no wait.

        A large value that is the same for several members is sent once.
        """
        if self.member.rank != 0:
            self.member.store.set(self._key(step, "up", self.member.rank), self._sent(step, value))
            return []
        keys = [self._key(step, "up", number) for number in self._others]
        if not keys:
            return [value]
        self._wait(lambda: self.member.store.check(*keys), lambda: self._late(keys))
        images = self.member.store.get_many(keys)
        elsewhere = sorted({image[1:].decode() for image in images if image[:1] == _ELSEWHERE})
        large = dict(zip(elsewhere, self.member.store.get_many(elsewhere) if elsewhere else []))
        return [
            value,
            *(image[1:] if image[:1] == _WHOLE else large[image[1:].decode()] for image in images),
        ]

    def share(self, step: str, value: bytes | None) -> bytes:
        """The value of the first member, on all."""
        key = self._key(step, "down", 0)
        if self.member.rank == 0:
            assert value is not None
            if self._others:
                self.member.store.set(key, value)
            return value
        return self._received(key)

    def scatter(self, step: str, values: Sequence[bytes] | None) -> bytes:
        """This member's own of the values of the first one."""
        if self.member.rank == 0:
            assert values is not None
            assert len(values) == self.member.size
            self.member.store.set_many(
                {self._key(step, "down", number): values[number] for number in self._others}
            )
            return values[0]
        return self._received(self._key(step, "down", self.member.rank))

    def leave(
        self, keys: Sequence[str] | None, seconds: float, absent: Collection[int] = ()
    ) -> list[str] | None:
        """Say that this member takes no more steps, and that it leaves `keys` behind. On the first member
        what all leave behind; None where one has not said so within `seconds`: it may still need them.
        Members that were `absent` all along are not asked.
        """
        store = self.member.store
        if self.member.rank != 0:
            store.set(self._left_key(self.member.rank), json.dumps(keys).encode())
            return None
        left = [self._left_key(number) for number in self._others if number not in absent]
        if left and not self.member.poll(lambda: store.check(*left), seconds):
            return None
        all_keys = [keys, *map(json.loads, store.get_many(left) if left else [])]
        if any(some is None for some in all_keys):
            return None
        return [key for some in all_keys for key in some]

    def left_keys(self) -> list[str]:
        """What `leave` itself leaves behind."""
        return [self._left_key(number) for number in self._others]

    def _left_key(self, number: int) -> str:
        return self._key("left", "up", number)

    def _received(self, key: str) -> bytes:
        store = self.member.store
        self._wait(lambda: store.check(key), lambda: list(self._behind(0)))
        return store.get(key)

    def _sent(self, step: str, value: bytes) -> bytes:
        if len(value) < _LARGE_BYTES:
            return _WHOLE + value
        key = f"{self.name}/{step}/{hashlib.sha256(value).hexdigest()}"
        if not self.member.store.check(key):
            self.member.store.set(key, value)
        return _ELSEWHERE + key.encode()

    def _late(self, keys: Sequence[str]) -> list[int]:
        numbers = [int(key.rpartition("/")[2]) for key in missing(self.member.store, keys)]
        return [rank for number in numbers for rank in self._behind(number)]

    def _key(self, step: str, way: str, number: int) -> str:
        return f"{self.name}/{step}/{way}/{number}"
