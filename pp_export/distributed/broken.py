"""What goes wrong between two ranks, as PeerErrors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pp_export.core.errors import PeerError


@contextmanager
def at_peer(peer: int) -> Iterator[None]:
    """Whatever fails inside is the connection to rank `peer`."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise PeerError(
            f"the connection to rank {peer} broke", where={"rank": peer}, got=first_line(error)
        ) from error


def first_line(error: BaseException) -> str:
    """What the error says, in a line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
