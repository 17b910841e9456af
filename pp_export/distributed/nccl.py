"""A wire over NCCL, for device memory.

CUDA does not promise that two streams get on independently, so operations of two communicators, or of two
threads, can wait for each other for ever. Here is one communicator, made before values move, one thread that
calls it, and one group of operations per round. Copies between host and device have streams of their own and
pinned memory on the host's side; nothing waits for the whole device, and no memory is taken or freed in a
round.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from pp_export.core.errors import PeerError
from pp_export.distributed.broken import first_line
from pp_export.distributed.membership import Membership
from pp_export.distributed.wire import Message, Place, as_tensor

_EVER = timedelta(days=7)
_POLL_SECONDS = 50e-6
# Without these, torch ends the process when a transfer of the group fails: a job must survive that.
_OWN_HANDLING = {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0", "TORCH_NCCL_BLOCKING_WAIT": "0"}


class NcclWire:
    """A communicator on the group's device that torch's registry doesn't know. The check is called wherever
    it waits, and raises when all are to stop. All memory is taken before the members meet.
    """

    def __init__(self, member: Membership) -> None:
        group = member.group
        assert group.device is not None
        device = self._device = group.device
        self._member = member
        self._check: Callable[[], None] = lambda: None
        streams: list[Any] = [torch.cuda.Stream(device) for _ in range(2)]  # type: ignore[no-untyped-call]
        self._stream, self._copying = streams
        self._pack = torch.empty(group.packed_bytes, dtype=torch.uint8, device=device)
        self._buffers = [
            torch.empty(group.incoming_bytes, dtype=torch.uint8, device=device)
            for _ in range(group.look_ahead)
        ]
        self._copied: deque[Any] = deque(maxlen=group.look_ahead)
        self._posted: deque[tuple[Any, Sequence[Message]]] = deque()
        self._num_rounds = 0
        self._group: Any = None

    def connect(self, check: Callable[[], None]) -> None:
        self._check = check
        self._member.meet(check)
        try:
            self._group = self._connected()
        except (RuntimeError, ValueError) as error:
            raise PeerError(
                f"NCCL could not connect the ranks of a group: {first_line(error)}",
                where={"rank": self._member.rank},
                advice="NCCL_DEBUG=WARN tells more; --backend gloo does without NCCL",
            ) from error

    def exchange(
        self, sent: Sequence[Message], places: Sequence[Place], into: memoryview
    ) -> Callable[[], None]:
        try:
            with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
                return self._exchange(sent, places, into)
        except (RuntimeError, ValueError) as error:
            peers = sorted({*(message.peer for message in sent), *(place.peer for place in places)})
            raise PeerError(
                "an exchange over NCCL failed",
                where={"peers": ", ".join(map(str, peers))},
                got=first_line(error),
            ) from error

    def finish(self) -> None:
        while self._posted:
            self._wait_for_the_first()

    def interrupt(self) -> None:
        if self._group is not None:
            self._group.abort()

    def close(self) -> None:
        if self._group is not None:
            self._group.shutdown()
        self._posted.clear()
        self._buffers.clear()
        self._pack = self._pack[:0].clone()  # a failure's traceback may hold on to this wire for a while

    def keys(self) -> list[str]:
        return self._member.keys("0")

    def leave(self) -> None:
        self._member.leave(self.keys())

    def _connected(self) -> Any:
        options: Any = _nccl_group().Options()
        options._timeout = _EVER
        with _environment(_OWN_HANDLING), torch.cuda.device(self._device):
            member = self._member
            group = _nccl_group()(member.store, member.number, member.size, options)
            group.eager_connect_single_device(self._device)
        return group

    def _exchange(
        self, sent: Sequence[Message], places: Sequence[Place], into: memoryview
    ) -> Callable[[], None]:
        while len(self._posted) >= len(self._buffers):
            self._wait_for_the_first()
        number, self._num_rounds = self._num_rounds % len(self._buffers), self._num_rounds + 1
        buffer = self._buffers[number]
        if len(self._copied) == len(self._buffers):
            self._stream.wait_event(self._copied[0])  # the buffer's last values are on the host
        values = self._on_device(sent)
        self._group._start_coalescing()
        for place in places:
            self._group.recv([buffer[place.begin : place.end]], self._member.number_of[place.peer], 0)
        for message, data in zip(sent, values):
            self._group.send([data], self._member.number_of[message.peer], 0)
        self._group._end_coalescing().wait()  # orders the stream behind it, and returns at once
        posted = self._stream.record_event()
        self._posted.append((posted, sent))
        self._copying.wait_event(posted)
        with torch.cuda.stream(self._copying):
            if places:
                end = places[-1].end
                as_tensor(into)[:end].copy_(buffer[:end], non_blocking=True)
            copied = self._copying.record_event()
        self._copied.append(copied)
        return partial(self._wait, copied)

    def _on_device(self, sent: Sequence[Message]) -> list[torch.Tensor]:
        """The bytes of each message in device memory: where they are, or packed."""
        values, end, from_host, alignment = [], 0, False, self._member.group.alignment
        for tensor in (as_tensor(each.values) for each in sent):
            if tensor.device == self._device and tensor.is_contiguous():
                values.append(tensor.view(-1).view(torch.uint8))
                continue
            begin, end = end, end + -(-tensor.nbytes // alignment) * alignment
            packed = self._pack[begin : begin + tensor.nbytes]
            packed.view(tensor.dtype).view(tensor.shape).copy_(tensor, non_blocking=True)
            values.append(packed)
            from_host |= not tensor.is_cuda
        if from_host:
            self._wait(self._stream.record_event())  # the host's memory may be reused now
        return values

    def _wait_for_the_first(self) -> None:
        """Until the first of the posted rounds is over: what is sent in it lives as long."""
        self._wait(self._posted[0][0])
        self._posted.popleft()

    def _wait(self, event: Any) -> None:
        while not event.query():
            self._check()
            time.sleep(_POLL_SECONDS)
        self._check()  # a communicator that was aborted ends its rounds too, unfinished


def _nccl_group() -> Any:
    """torch's class, which builds for CPUs lack."""
    return dist.ProcessGroupNCCL


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """`values` in the process's environment, which torch reads while it makes a group."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
