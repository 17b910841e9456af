"""Worlds: the ranks of an export, started for it by a launcher or within a training job, and their store."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed import PrefixStore, Store, rendezvous  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import _get_default_store

from pp_export.core.errors import PeerError
from pp_export.distributed import backends
from pp_export.distributed.alone import alone, is_alone
from pp_export.distributed.block_servers import tcp_blocks
from pp_export.distributed.broken import first_line
from pp_export.distributed.gloo import GlooWire
from pp_export.distributed.membership import Membership
from pp_export.distributed.nccl import NcclWire
from pp_export.distributed.shared_keys import SharedKeys
from pp_export.distributed.wire import Group, Wire
from pp_export.distributed.world import World

_STORE_TIMEOUT = timedelta(seconds=60)
_numbers = itertools.count()


def join(*, stall_seconds: float) -> World:
    """Join the ranks that the launcher's environment (RANK, WORLD_SIZE, MASTER_ADDR, ...) names; called by
    all.
    """
    if is_alone():
        return alone(stall_seconds=stall_seconds)
    store, rank, size = _rendezvous()
    return _world(rank, size, PrefixStore("pp_export", store), stall_seconds)


def join_for_many() -> Callable[[float], World]:
    """Join them once for many exports; called by all. What it returns gives the next world of the same ranks,
    with that patience, and is called as often by all, whatever has happened to the world before.
    """
    store, rank, size = _rendezvous()
    numbers = itertools.count()

    def next_world(stall_seconds: float) -> World:
        # A connection of its own: one of a world that failed may still be waiting for an answer.
        keys = PrefixStore(f"pp_export/{next(numbers)}", store.clone())
        return _world(rank, size, keys, stall_seconds)

    return next_world


def _rendezvous() -> tuple[Any, int, int]:
    try:
        store, rank, size = next(iter(rendezvous("env://")))
    except (RuntimeError, ValueError) as error:
        raise PeerError(
            f"the ranks could not find each other: {first_line(error)}",
            where={"rank": os.environ.get("RANK")},
            advice="check MASTER_ADDR, MASTER_PORT and that every node started with the same world size",
        ) from error
    return store, rank, size


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

    keys = SharedKeys(store, patience_seconds=stall_seconds)
    blocks = tcp_blocks(size, patience_seconds=stall_seconds)
    return World(rank, size, keys, connect, blocks=blocks, stall_seconds=stall_seconds)
