"""Where other nodes find a process of this one."""

from __future__ import annotations

import socket


def listener_towards(host: str, port: int) -> tuple[socket.socket, str]:
    """A socket that listens on a free port, on that address of this node only from which `host` is reached,
    and the address as text. Nothing is sent. Raises OSError where there is no way to `host`.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)
        own = probe.getsockname()[0]
    return socket.create_server((own, 0), family=family, backlog=4096), own
