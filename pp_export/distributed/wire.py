"""How values get from rank to rank: a wire among the ranks of a group, over which they walk in rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch


class Message(NamedTuple):
    """Values for rank `peer`: bytes in host memory, or a tensor, contiguous or not, on the wire's device."""

    peer: int
    values: memoryview | torch.Tensor


class Place(NamedTuple):
    """Where a message of rank `peer` belongs: bytes [begin, end) of the memory of a round."""

    peer: int
    begin: int
    end: int


@dataclass(frozen=True)
class Group:
    """The ranks that a wire is for, what their store keys begin with, and the bounds that the plan sets.

    `peers` are those that this rank sends to or receives from (None: all others).
    `incoming_bytes` is the memory of the largest round of this rank, `packed_bytes` the most that it sends in
    one round from where it can't be sent directly, each message at a multiple of `alignment`; `look_ahead` is
    how many rounds may be under way. `device` is this rank's GPU, for a wire that needs one.
    """

    ranks: tuple[int, ...]
    name: str
    incoming_bytes: int = 0
    packed_bytes: int = 0
    alignment: int = 64
    look_ahead: int = 2
    device: torch.device | None = None
    peers: tuple[int, ...] | None = None

    def peers_of(self, rank: int) -> tuple[int, ...]:
        """The ranks that `rank`, whose group this is, has a link with."""
        return self.peers if self.peers is not None else tuple(r for r in self.ranks if r != rank)


class Wire(Protocol):
    """A communicator of the ranks of a group. One thread of each rank makes it, connects and exchanges.

    Every rank posts all messages of a round at once, and messages between two ranks come in their order: no
    round can wait for another. Whatever goes wrong raises PeerError.
    """

    def connect(self, check: Callable[[], None]) -> None:
        """Wait for all members; then connect, which all do at once, so that nothing but an end of a member
        can hold it up. Here and in rounds `check` is called while it waits, where that can be, and may raise.
        """

    def exchange(
        self, sent: Sequence[Message], places: Sequence[Place], into: memoryview
    ) -> Callable[[], None]:
        """One round. `into` (bytes in host memory) is filled when what this returns has been called and has
        returned; what was `sent` from host memory may be reused at once.
        """

    def finish(self) -> None:
        """Return when everything that was sent has left."""

    def interrupt(self) -> None:
        """End what another thread of this rank is blocked in: it raises there. Of no use afterwards."""

    def close(self) -> None:
        """Give back what was taken to make it, but for its keys."""

    def keys(self) -> list[str]:
        """What this member has put into the run's store. As long as another one connects, it needs them."""

    def leave(self) -> None:
        """Remove these keys: all members have connected."""


def as_tensor(values: memoryview | torch.Tensor) -> torch.Tensor:
    """The same memory as torch sees it: bytes as a tensor of uint8."""
    import torch  # a rank that exchanges nothing need not wait for it

    if isinstance(values, torch.Tensor):
        return values
    return torch.frombuffer(values, dtype=torch.uint8) if values else torch.empty(0, dtype=torch.uint8)
