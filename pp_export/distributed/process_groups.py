"""The one door to other ranks: `torch.distributed` is imported here and nowhere else.

A world is made in two ways: `join` for ranks that a launcher started for the export, `beside` within a
training job, with groups of its own.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed import HashStore, PrefixStore, Store, rendezvous  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import _get_default_store, _set_pg_timeout

from pp_export.core.errors import OptionError, PeerError
from pp_export.distributed.data import Carrier
from pp_export.distributed.world import World

T = TypeVar("T")

# Waiting is bounded by lack of progress (see Watchdog), so the group's own clock only has to be far away.
_GROUP_TIMEOUT = timedelta(days=7)
_MEETING_TIMEOUT = timedelta(minutes=5)
_STORE_TIMEOUT = timedelta(seconds=60)
_PIECE_BYTES = 4 << 20
_WHOLE, _PIECES = b"=", b"#"
_NO_TAG = 2**31 - 1  # of no bucket
_AT_ONCE = timedelta(milliseconds=1)
_numbers = itertools.count()


def alone(*, stall_seconds: float) -> World:
    """A world of this process, without launcher and process group."""
    return World(0, 1, SharedKeys(HashStore()), stall_seconds=stall_seconds)


def join(backend: str, *, stall_seconds: float) -> World:
    """Join the ranks that the launcher's environment (RANK, WORLD_SIZE, MASTER_ADDR, ...) names; called by
    all.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return alone(stall_seconds=stall_seconds)
    check_backend(backend)
    try:
        store, rank, size = next(iter(rendezvous("env://")))
        store.set_timeout(_STORE_TIMEOUT)
        data = PrefixStore("data", store)
        if backend == "nccl":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        dist.init_process_group(backend, store=data, rank=rank, world_size=size, timeout=_GROUP_TIMEOUT)
        carrier = _nccl() if backend == "nccl" else _GlooCarrier(_everyone())
    except (RuntimeError, ValueError) as error:
        raise PeerError(
            f"the ranks could not find each other: {_first_line(error)}",
            where={"rank": os.environ.get("RANK")},
            advice="check MASTER_ADDR, MASTER_PORT and that every node started with the same world size",
        ) from error
    control = SharedKeys(PrefixStore("pp_export", store))
    return World(rank, size, control, lambda: carrier, stall_seconds=stall_seconds)


def beside(backend: str, *, stall_seconds: float) -> World:
    """The ranks of the running job's default process group, which stays as it is; called by all.

    Control goes over a connection of its own to the job's store, under a prefix. `Data.connect` makes groups
    of its own for the data, when all ranks are known to be there; `World.close` removes both. Without a
    process group it is a world of one.
    """
    number = next(_numbers)  # first of all, so that ranks agree on it whatever happens
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return alone(stall_seconds=stall_seconds)
    store = _get_default_store().clone()  # type: ignore[attr-defined]  # so that its timeout is ours to set
    store.set_timeout(_STORE_TIMEOUT)

    def connect() -> Carrier:
        check_backend(backend)
        try:
            return _nccl() if backend == "nccl" else _GlooCarrier(_new_group("gloo"))
        except (RuntimeError, ValueError) as error:
            raise PeerError(
                f"no process group could be made beside the job's own: {_first_line(error)}",
                where={"rank": dist.get_rank()},
            ) from error

    control = SharedKeys(PrefixStore(f"pp_export/{number}", store))
    return World(dist.get_rank(), dist.get_world_size(), control, connect, stall_seconds=stall_seconds)


def check_backend(backend: str) -> None:
    """Raise OptionError where `backend` can't work here."""
    if backend == "nccl" and not torch.cuda.is_available():
        raise OptionError("--backend nccl needs a GPU on every rank", advice="use --backend gloo")


def _nccl() -> Carrier:
    return _NcclCarrier(dist.get_rank(), _new_group("nccl"), _new_group("nccl"))


def _new_group(backend: str) -> dist.ProcessGroup:
    """A group of all ranks. To find each other they have minutes, for a transfer as long as there is
    progress.
    """
    group: dist.ProcessGroup = dist.new_group(backend=backend, timeout=_MEETING_TIMEOUT)
    _set_pg_timeout(_GROUP_TIMEOUT, group)
    return group


def _everyone() -> dist.ProcessGroup:
    group = dist.group.WORLD
    assert group is not None
    return group


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
                "the launcher's store does not answer: its process or node is gone", got=_first_line(error)
            ) from error


class _GlooCarrier:
    """A Gloo group of all ranks."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group

    def send(self, message: torch.Tensor, to: int, tag: int) -> None:
        _broken(to, lambda: dist.send(message, to, group=self._group, tag=tag))

    def receive(self, into: Mapping[int, torch.Tensor], tag: int) -> None:
        posted = {}
        for rank, message in into.items():
            posted[rank] = _broken(rank, partial(dist.irecv, message, rank, group=self._group, tag=tag))
        for rank, work in posted.items():
            assert work is not None
            _broken(rank, work.wait)

    def interrupt(self) -> None:
        """Gloo closes all connections of a group when one operation runs out of time; nothing else ends
        them.
        """
        peer = (dist.get_rank() + 1) % dist.get_world_size()
        with suppress(RuntimeError):
            work = dist.irecv(torch.empty(1, dtype=torch.uint8), peer, group=self._group, tag=_NO_TAG)
            assert work is not None
            work.wait(_AT_ONCE)

    def close(self) -> None:
        dist.destroy_process_group(self._group)


class _NcclCarrier:
    """NCCL moves device memory: messages are staged through it, a bucket at a time.

    NCCL runs the operations of one communicator in order, so two ranks that send to each other on the same
    one would wait for each other. Messages to higher and to lower ranks therefore have a group each.
    """

    def __init__(self, rank: int, up: dist.ProcessGroup, down: dist.ProcessGroup) -> None:
        self._rank, self._up, self._down = rank, up, down
        self._device = torch.device("cuda", torch.cuda.current_device())
        self._streams = {
            role: torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            for role in ("send", "receive")
        }

    def send(self, message: torch.Tensor, to: int, tag: int) -> None:
        def act() -> None:
            with torch.cuda.device(self._device), torch.cuda.stream(self._streams["send"]):
                on_device = message.to(self._device, non_blocking=True)
                dist.send(on_device, to, group=self._group(self._rank, to))
                self._streams["send"].synchronize()

        _broken(to, act)

    def receive(self, into: Mapping[int, torch.Tensor], tag: int) -> None:
        with torch.cuda.device(self._device), torch.cuda.stream(self._streams["receive"]):
            for rank, message in into.items():
                on_device = torch.empty(len(message), dtype=torch.uint8, device=self._device)
                _broken(rank, partial(dist.recv, on_device, rank, group=self._group(rank, self._rank)))
                message.copy_(on_device)

    def interrupt(self) -> None:
        for group in (self._up, self._down):
            with suppress(RuntimeError):
                group.abort()

    def close(self) -> None:
        for group in (self._up, self._down):
            dist.destroy_process_group(group)

    def _group(self, sender: int, receiver: int) -> dist.ProcessGroup:
        return self._up if sender < receiver else self._down


def _broken(peer: int, call: Callable[[], T]) -> T:
    try:
        return call()
    except (RuntimeError, ValueError) as error:
        raise PeerError(
            f"the connection to rank {peer} broke", where={"rank": peer}, got=_first_line(error)
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
