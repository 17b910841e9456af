"""Where other nodes find a process of this one, and whether this one finds theirs."""

from __future__ import annotations

import socket
import time

_PAUSE_SECONDS, _PATIENCE_SECONDS = 0.1, 5.0


def listener_towards(host: str, port: int) -> tuple[socket.socket, str]:
    """A socket that listens on a free port, on that address of this node only from which `host` is
    reached, and the address as text. Nothing is sent. Raises OSError where there is no way to `host`.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)
        own = probe.getsockname()[0]
    return socket.create_server((own, 0), family=family, backlog=4096), own


def wait_for_listener(host: str, port: int, seconds: float) -> None:
    """Return as soon as somebody listens there. Raises the OSError of the last try after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        patience = min(_PATIENCE_SECONDS, max(_PAUSE_SECONDS, deadline - time.monotonic()))
        try:
            with socket.create_connection((host, port), timeout=patience):
                return
        except (OSError, UnicodeError) as error:  # the latter for names that are no names
            if time.monotonic() + _PAUSE_SECONDS > deadline:
                raise OSError(str(error)) from error
        time.sleep(_PAUSE_SECONDS)
