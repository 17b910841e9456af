"""Worlds: the ranks of an export, started for it by a launcher or within a training job, and their store."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from weakref import WeakKeyDictionary

import torch.distributed as dist
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import _get_default_store

from pp_export.distributed import backends
from pp_export.distributed.alone import alone, is_alone
from pp_export.distributed.block_servers import tcp_blocks
from pp_export.distributed.caller import Caller
from pp_export.distributed.gloo import GlooWire
from pp_export.distributed.job import Job, run_prefix
from pp_export.distributed.launcher_store import Place, launcher_store
from pp_export.distributed.membership import Membership
from pp_export.distributed.nccl import NcclWire
from pp_export.distributed.shared_keys import SharedKeys
from pp_export.distributed.wire import Group, Wire
from pp_export.distributed.world import Missed, World

_STORE_TIMEOUT = timedelta(seconds=60)
_STARTED = "was it started, and does it still run? its own log says more (see --stall-seconds)"
_CALLED = "has it called export_model too, and about as early? does it still run? (see stall_seconds)"
_jobs: WeakKeyDictionary[object, Job] = WeakKeyDictionary()


def join(*, stall_seconds: float, meanwhile: Callable[[], None] = lambda: None) -> World:
    """Join the ranks that the launcher's environment (RANK, WORLD_SIZE, MASTER_ADDR, ...) names; called by
    all. `meanwhile` is called now and then while this rank waits, and may raise.

    Where a rank doesn't come, or one is told to stop, those that are here get a world that only ends them
    together. Raises PeerError where the ranks have no store in common.
    """
    if is_alone():
        return alone(stall_seconds=stall_seconds)
    place = Place.of(os.environ)
    store = launcher_store(place, stall_seconds, meanwhile)
    return _begin(Job(place.rank, place.size), store, "", stall_seconds, meanwhile, _STARTED)


def join_for_many(*, stall_seconds: float) -> Callable[[float], World]:
    """Join them once for many exports; called by all. What it returns gives the next world of the same ranks,
    with that patience, and is called as often by all, whatever has happened to the world before.
    """
    place = Place.of(os.environ)
    store = launcher_store(place, stall_seconds, lambda: None)
    job = Job(place.rank, place.size)

    def next_world(seconds: float) -> World:
        # A connection of its own: one of a world that failed may still be waiting for an answer.
        return _begin(
            job, _clone(store, "the launcher's store", seconds), "", seconds, lambda: None, _STARTED
        )

    return next_world


def beside(*, stall_seconds: float, about: str = "") -> World:
    """The ranks of the running job's default process group, which stays as it is; called by all, for one
    export `about` something.

    Everything goes over a connection of its own to the job's store, under a prefix. Without a process
    group it is a world of one. Where a rank doesn't come, the others get a world that only ends them
    together; raises PeerError where this one comes when they have gone.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return alone(stall_seconds=stall_seconds)
    job = _jobs.setdefault(dist.group.WORLD, Job(dist.get_rank(), dist.get_world_size()))
    # A store of its own, so that its timeout is ours to set.
    store = _clone(_get_default_store(), "the job's store", stall_seconds)
    return _begin(job, PrefixStore("pp_export", store), about, stall_seconds, lambda: None, _CALLED)


def _clone(store: Store, whose: str, seconds: float) -> Store:
    caller = Caller(whose, seconds)
    try:
        own: Store = caller.call(store.clone)  # type: ignore[attr-defined]
    finally:
        caller.end()
    return own


def _begin(
    job: Job, store: Store, about: str, stall_seconds: float, meanwhile: Callable[[], None], hint: str
) -> World:
    store.set_timeout(_STORE_TIMEOUT)

    def keys(prefix: str) -> SharedKeys:
        return SharedKeys(PrefixStore(prefix, store), patience_seconds=stall_seconds, meanwhile=meanwhile)

    verdict = job.meet(keys, about=about, seconds=stall_seconds, hint=hint, meanwhile=meanwhile)
    of_run = PrefixStore(run_prefix(verdict.number), store)

    def make_wire(group: Group, backend: str) -> Wire:
        own = of_run.clone()  # type: ignore[attr-defined]  # one connection serves one thread at a time
        own.set_timeout(_STORE_TIMEOUT)
        member = Membership(own, job.rank, group)
        return NcclWire(member) if backend == backends.NCCL else GlooWire(member)

    failure = verdict.failure
    return World(
        job.rank,
        job.size,
        keys(run_prefix(verdict.number)),
        make_wire,
        blocks=tcp_blocks(job.size, patience_seconds=stall_seconds),
        stall_seconds=stall_seconds,
        missed=None if failure is None else Missed(failure, verdict.absent),
        on_close=partial(job.closed, verdict, keys),
    )
