"""Stores of blocks over TCP: each lives in the process of its block's first rank."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from pp_export.core.errors import PeerError
from pp_export.distributed.address import listener_towards
from pp_export.distributed.blocks import Blocks
from pp_export.distributed.broken import first_line
from pp_export.distributed.caller import Caller
from pp_export.distributed.shared_keys import SharedKeys
from pp_export.distributed.store import Store
from pp_export.distributed.tree import block_size

_TIMEOUT = timedelta(seconds=60)
_ADVICE = "the first rank of every 128 listens on a port of its own: can all nodes reach each other?"


def tcp_blocks(num_ranks: int, *, patience_seconds: float) -> Blocks | None:
    """Blocks for a world of so many ranks; None where they are one block. Servers listen on the address from
    which the launcher's MASTER_ADDR is reached, or else on that of the host's name, and on no other.
    """
    size = block_size(num_ranks)
    if num_ranks <= size:
        return None

    def serve() -> tuple[Store, str]:
        towards = os.environ.get("MASTER_ADDR") or platform.node()
        try:
            listener, host = listener_towards(towards, int(os.environ.get("MASTER_PORT") or 1))
            port = listener.getsockname()[1]
            store = TCPStore(
                host,
                port,
                is_master=True,
                wait_for_workers=False,
                timeout=_TIMEOUT,
                master_listen_fd=listener.detach(),
            )
        except (OSError, RuntimeError) as error:
            raise PeerError(
                f"no store for a block of ranks could be made: {first_line(error)}", advice=_ADVICE
            ) from error
        address = f"{host}:{port}"
        keys = SharedKeys(store, whose=f"the own store at {address}", patience_seconds=patience_seconds)
        return keys, address

    def connect(address: str, *, whose: str, meanwhile: Callable[[], None]) -> Store:
        host, _, port = address.rpartition(":")
        caller = Caller(whose, patience_seconds, meanwhile)
        try:
            store = caller.call(
                lambda: TCPStore(host, int(port), is_master=False, wait_for_workers=False, timeout=_TIMEOUT)
            )
        except RuntimeError as error:
            raise PeerError(f"{whose} can't be reached: {first_line(error)}", advice=_ADVICE) from error
        finally:
            caller.end()
        return SharedKeys(store, whose=whose, patience_seconds=patience_seconds, meanwhile=meanwhile)

    return Blocks(size, serve, connect)
