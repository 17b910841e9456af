"""Tensors on their way from rank to rank."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import torch

from pp_export.distributed.control import Control


class Carrier(Protocol):
    """Moves host memory between ranks."""

    def send(self, message: torch.Tensor, to: int, tag: int) -> None: ...

    def receive(self, into: Mapping[int, torch.Tensor], tag: int) -> None: ...

    def interrupt(self) -> None:
        """End what other threads of this rank are blocked in: it raises there. Of no use afterwards."""

    def close(self) -> None:
        """Give back what was taken to make it."""


class Data:
    """The carrier of this rank. Worker threads send and receive; the main thread does the rest."""

    def __init__(self, control: Control, make_carrier: Callable[[], Carrier] | None) -> None:
        self._control, self._make_carrier = control, make_carrier
        self._carrier: Carrier | None = None
        self.workers: list[threading.Thread] = []
        """The threads that may be blocked in `send` and `receive`."""

    def connect(self) -> None:
        """Make what carries tensors, unless it is there; called by all, who are all there when it begins."""
        if self._carrier is None and self._make_carrier is not None:
            make = self._make_carrier
            self._control.together(lambda: None)
            self._carrier = make()

    def send(self, message: torch.Tensor, to: int, tag: int) -> None:
        """Send a uint8 tensor in host memory to rank `to`; blocks until it may be reused."""
        assert self._carrier is not None
        self._carrier.send(message, to, tag)

    def receive(self, into: Mapping[int, torch.Tensor], tag: int) -> None:
        """Fill each uint8 tensor (host memory) with the message of its rank; blocks until all are in."""
        if into:
            assert self._carrier is not None
            self._carrier.receive(into, tag)

    def end_transfers(self, seconds: float = 5.0) -> None:
        """After a failure: end the transfers of this rank's workers, and wait for those for a while."""
        if self._carrier is not None:
            self._carrier.interrupt()
        deadline = time.monotonic() + seconds
        for worker in self.workers:
            worker.join(max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """Give the carrier back, unless a worker could not be ended and still uses it."""
        if self._carrier is not None and not any(worker.is_alive() for worker in self.workers):
            self._carrier.close()
        self._carrier = self._make_carrier = None  # sockets end with the last reference
        self.workers = []
