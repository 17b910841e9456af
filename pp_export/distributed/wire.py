"""How values get from rank to rank: a wire among the ranks of a group, over which they walk in rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch


class Message(NamedTuple):
    """Values for rank `peer`: contiguous or not, in host memory or, where the wire says so, on its device."""

    peer: int
    values: torch.Tensor


class Place(NamedTuple):
    """Where a message of rank `peer` belongs: bytes [begin, end) of the memory of a round."""

    peer: int
    begin: int
    end: int


@dataclass(frozen=True)
class Group:
    """The ranks that a wire is for, what their store keys begin with, and the bounds that the plan sets.

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


class Wire(Protocol):
    """A communicator of the ranks of a group. One thread of each rank makes it, connects and exchanges.

    Every rank posts all messages of a round at once, and messages between two ranks come in their order: no
    round can wait for another. Whatever goes wrong raises PeerError.
    """

    def connect(self) -> None:
        """Connect the members, who all do so at once; nothing but an end of a member can hold it up."""

    def exchange(
        self, sent: Sequence[Message], places: Sequence[Place], into: torch.Tensor
    ) -> Callable[[], None]:
        """One round. `into` (uint8, host memory) is filled when the function that this returns has returned;
        what was `sent` from host memory may be reused at once.
        """

    def finish(self) -> None:
        """Return when everything that was sent has left."""

    def interrupt(self) -> None:
        """End what another thread of this rank is blocked in: it raises there. Of no use afterwards."""

    def close(self) -> None:
        """Give back what was taken to make it."""
