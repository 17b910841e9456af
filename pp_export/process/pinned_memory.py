"""Host memory that a GPU copies to and from directly."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pp_export.process.log import logger

if TYPE_CHECKING:
    import torch

_PORTABLE = 1  # cudaHostRegisterPortable: for every device of the process


def pin(memory: memoryview, device: torch.device) -> Callable[[], None]:
    """Pin memory where it lies, without taking more of it, by way of `device`. The function that this returns
    unpins it: to be called when no copy can be on its way any more, and before the memory goes.

    Where the driver refuses, copies are slower and no less right.
    """
    import torch

    address = torch.frombuffer(memory, dtype=torch.uint8).data_ptr()
    driver: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    with torch.cuda.device(device):
        status = driver.cudaHostRegister(address, len(memory), _PORTABLE)
    if int(status) != 0:
        logger.warning("%d bytes of host memory could not be pinned: %s", len(memory), status)
        return lambda: None
    return lambda: driver.cudaHostUnregister(address)
