"""Worlds: the ranks of an export, started for it by a launcher or within a training job, and their store."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import TypeVar

import torch.distributed as dist
from torch.distributed import PrefixStore, Store, rendezvous  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import _get_default_store

from pp_export.core.errors import PeerError
from pp_export.distributed import backends
from pp_export.distributed.alone import alone, is_alone
from pp_export.distributed.broken import first_line
from pp_export.distributed.gloo import GlooWire
from pp_export.distributed.membership import Membership
from pp_export.distributed.nccl import NcclWire
from pp_export.distributed.wire import Group, Wire
from pp_export.distributed.world import World

T = TypeVar("T")

_STORE_TIMEOUT = timedelta(seconds=60)
_PIECE_BYTES = 4 << 20
_WHOLE, _PIECES = b"=", b"#"
_numbers = itertools.count()


def join(*, stall_seconds: float) -> World:
    """Join the ranks that the launcher's environment (RANK, WORLD_SIZE, MASTER_ADDR, ...) names; called by
    all.
    """
    if is_alone():
        return alone(stall_seconds=stall_seconds)
    try:
        store, rank, size = next(iter(rendezvous("env://")))
    except (RuntimeError, ValueError) as error:
        raise PeerError(
            f"the ranks could not find each other: {first_line(error)}",
            where={"rank": os.environ.get("RANK")},
            advice="check MASTER_ADDR, MASTER_PORT and that every node started with the same world size",
        ) from error
    return _world(rank, size, PrefixStore("pp_export", store), stall_seconds)


def beside(*, stall_seconds: float) -> World:
    """The ranks of the running job's default process group, which stays as it is; called by all.

    Everything goes over a connection of its own to the job's store, under a prefix. Without a process group
    it is a world of one.
    """
    number = next(_numbers)  # first of all, so that ranks agree on it whatever happens
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return alone(stall_seconds=stall_seconds)
    store = _get_default_store().clone()  # type: ignore[attr-defined]  # so that its timeout is ours to set
    keys = PrefixStore(f"pp_export/{number}", store)
    return _world(dist.get_rank(), dist.get_world_size(), keys, stall_seconds)


def _world(rank: int, size: int, store: Store, stall_seconds: float) -> World:
    store.set_timeout(_STORE_TIMEOUT)

    def connect(group: Group, backend: str, check: Callable[[], None]) -> Wire:
        own = store.clone()  # type: ignore[attr-defined]  # one connection serves one thread at a time
        own.set_timeout(_STORE_TIMEOUT)
        member = Membership(own, rank, group)
        try:
            wire: Wire = NcclWire(member, check) if backend == backends.NCCL else GlooWire(member)
            member.meet(check)
            wire.connect()
            return wire
        except BaseException:
            member.leave()
            raise

    return World(rank, size, SharedKeys(store), connect, stall_seconds=stall_seconds)


class SharedKeys:
    """A rendezvous store. It lives with another process, so whatever goes wrong with it is a PeerError.

    torch's TCPStore takes 8 MB per value and breaks the connection above, so larger values go in pieces.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def set(self, key: str, value: bytes) -> None:
        pieces = [value[begin : begin + _PIECE_BYTES] for begin in range(0, len(value), _PIECE_BYTES)]
        if len(pieces) < 2:
            self._set(key, _WHOLE + value)
            return
        for number, piece in enumerate(pieces):
            self._set(f"{key}.{number}", piece)
        self._set(key, _PIECES + b"%d" % len(pieces))

    def set_first(self, key: str, value: str) -> bytes:
        return self._guard(lambda: self._store.compare_set(key, "", _WHOLE.decode() + value))[1:]

    def get(self, key: str) -> bytes:
        value = bytes(self._guard(lambda: self._store.get(key)))
        if value[:1] == _WHOLE:
            return value[1:]
        pieces = (self._guard(partial(self._store.get, f"{key}.{n}")) for n in range(int(value[1:])))
        return b"".join(pieces)

    def add(self, key: str, amount: int) -> int:
        return self._guard(lambda: self._store.add(key, amount))

    def check(self, key: str) -> bool:
        return self._guard(lambda: self._store.check([key]))

    def delete(self, key: str) -> None:
        if self.check(key):
            value = bytes(self._guard(lambda: self._store.get(key)))
            for number in range(int(value[1:]) if value[:1] == _PIECES else 0):
                self._guard(partial(self._store.delete_key, f"{key}.{number}"))
            self._guard(lambda: self._store.delete_key(key))

    def _set(self, key: str, value: bytes) -> None:
        self._guard(lambda: self._store.set(key, value))  # type: ignore[arg-type]

    def _guard(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except RuntimeError as error:
            raise PeerError(
                "the launcher's store does not answer: its process or node is gone", got=first_line(error)
            ) from error
