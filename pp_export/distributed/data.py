"""Tensors on their way from rank to rank."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from pp_export.distributed.wire import Group, Wire

Check = Callable[[], None]
MakeWire = Callable[[Group, str], Wire]
"""Makes the wire of a group over a backend."""


class Data:
    """What carries this rank's values. A worker thread connects and exchanges; the main thread does the
    rest.
    """

    def __init__(self, make_wire: MakeWire | None) -> None:
        self._make_wire = make_wire
        self._wire: Wire | None = None
        self._num_transfers = 0
        self._held: list[Callable[[], None]] = []
        self._has_failed = False
        self.workers: list[threading.Thread] = []
        """The threads that may be blocked in an exchange."""
        self.left_keys: list[str] = []
        """After a failure: what wires have left in the store, for a member that still connects."""

    def begin(self) -> str:
        """A name for the groups of the next transfer; called by all ranks, in or out of a group."""
        self._num_transfers += 1
        return f"transfer/{self._num_transfers}"

    def connect(self, group: Group, backend: str, check: Check) -> Wire:
        """The wire of a group, connected; called by all of its ranks and by no other. What waits in it calls
        the check.
        """
        assert self._make_wire is not None
        self._wire = wire = self._make_wire(group, backend)
        wire.connect(check)
        check()  # whoever ends transfers may have looked for a wire just before
        return wire

    def hold(self, release: Callable[[], None]) -> None:
        """After a failure: `release` memory when no worker can be using it any more."""
        self._held.append(release)

    def end_transfers(self, seconds: float = 5.0) -> None:
        """After a failure: end the exchange of this rank's workers, and wait for those for a while."""
        self._has_failed = True
        if self._wire is not None:
            self.left_keys += self._wire.keys()
            self._wire.interrupt()
        deadline = time.monotonic() + seconds
        for worker in self.workers:
            worker.join(max(0.0, deadline - time.monotonic()))
        self.close()

    def close_at_last(self) -> None:
        """Close, be it when a worker that could not be ended has ended by itself."""
        alive = [worker for worker in self.workers if worker.is_alive()]

        def wait() -> None:
            for worker in alive:
                worker.join()
            self.close()

        if alive:
            threading.Thread(target=wait, daemon=True, name="closer").start()
        else:
            self.close()

    def close(self) -> None:
        """Give everything back, unless a worker could not be ended and still uses it."""
        if any(worker.is_alive() for worker in self.workers):
            return
        if self._wire is not None:
            self._wire.close()
            if not self._has_failed:
                self._wire.leave()
        for release in self._held:
            release()
        self._wire, self._held, self.workers = None, [], []
