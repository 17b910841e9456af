"""Which backend carries the values: a choice of rank 0, made from what every rank says of itself.

torch is imported where a rank looks at itself: a plan needs none.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from pp_export.core.errors import OptionError

if TYPE_CHECKING:
    import torch

AUTO, GLOO, NCCL = "auto", "gloo", "nccl"
_MIN_NCCL = (2, 10)
"""Point-to-point operations in groups are of 2.7; torch relies on a later one."""


@dataclass(frozen=True)
class RankFacts:
    """What a rank says of itself: its host and GPU (None: it has none), the version of its NCCL, and whether
    the values that it gives lie in that GPU's memory.
    """

    host: str
    gpu: str | None = None
    nccl: tuple[int, ...] | None = None
    on_gpu: bool = False

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, image: bytes) -> RankFacts:
        """The facts of another rank."""
        value = json.loads(image)
        return cls(**value | {"nccl": value["nccl"] and tuple(value["nccl"])})


@dataclass(frozen=True)
class Backend:
    """What carries the values, None where no rank sends to another, and the reason in words."""

    name: str | None
    why: str

    def to_bytes(self) -> bytes:
        return json.dumps([self.name, self.why]).encode()

    @classmethod
    def from_bytes(cls, image: bytes) -> Backend:
        """The choice, on another rank."""
        return cls(*json.loads(image))


def check(asked: str) -> None:
    """Raise OptionError where `asked` can't work on this rank, whatever is exported."""
    import torch

    if asked == NCCL and not torch.cuda.is_available():
        raise OptionError("--backend nccl needs a GPU on every rank", advice="use --backend auto or gloo")


def own_device(of_values: torch.device | None) -> torch.device | None:
    """The GPU of this rank, if it has one: where its values lie, or else that of its local rank."""
    import torch

    if of_values is not None or not torch.cuda.is_available():
        return of_values
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def facts(of_values: torch.device | None) -> RankFacts:
    """What this rank says of itself; its values lie on GPU `of_values`, if on any. Ranks that NCCL_HOSTID
    tells apart are on hosts of their own.
    """
    import torch
    from torch.distributed import is_nccl_available

    host = os.environ.get("NCCL_HOSTID") or platform.node()
    device = own_device(of_values)
    if device is None:
        return RankFacts(host)
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    has_nccl = is_nccl_available()
    version: tuple[int, ...] = torch.cuda.nccl.version() if has_nccl else ()  # type: ignore[no-untyped-call]
    return RankFacts(host, uuid, version or None, of_values is not None)


def choose(asked: str, groups: Sequence[Sequence[int]], ranks: Sequence[RankFacts]) -> Backend:
    """The backend for the `groups` of ranks that exchange, given the facts of all ranks.

    NCCL where the values lie on GPUs, or where a group spans hosts and GPUs are there; a GPU must belong to
    one rank. Where NCCL can't be had, Gloo does the same work from host memory.
    """
    if not groups:
        return expected(asked, groups)
    if asked == GLOO:
        return Backend(GLOO, "asked for")
    members = [rank for group in groups for rank in group]
    obstacle = _obstacle(members, ranks)
    if asked == NCCL:
        if obstacle is not None:
            return Backend(GLOO, f"nccl was asked for, but {obstacle}")
        return Backend(NCCL, "asked for")
    if all(ranks[rank].on_gpu for rank in members):
        wish = "the values lie on GPUs"
    elif any(len({ranks[rank].host for rank in group}) > 1 for group in groups):
        wish = "ranks of several hosts exchange"
    else:
        return Backend(GLOO, "the values lie in host memory, and only ranks of one host exchange")
    return Backend(GLOO, f"{wish}, but {obstacle}") if obstacle else Backend(NCCL, wish)


def expected(asked: str, groups: Sequence[Sequence[int]]) -> Backend:
    """What can be said before any rank has said anything of itself."""
    if not groups:
        return Backend(None, "every rank reads what it writes")
    if asked == AUTO:
        return Backend(GLOO, "or nccl, where ranks have a GPU each and values lie there or hosts exchange")
    why = "asked for, where each rank has a GPU of its own" if asked == NCCL else "asked for"
    return Backend(asked, why)


def _obstacle(members: Sequence[int], ranks: Sequence[RankFacts]) -> str | None:
    """Why NCCL can't connect these ranks."""
    owner: dict[tuple[str, str], int] = {}
    for rank in members:
        host, gpu, nccl = ranks[rank].host, ranks[rank].gpu, ranks[rank].nccl
        if gpu is None:
            return f"rank {rank} has no GPU"
        if nccl is None or nccl < _MIN_NCCL:
            version = ".".join(map(str, nccl)) if nccl else "missing"
            return f"NCCL on rank {rank} is {version}"
        if owner.setdefault((host, gpu), rank) != rank:
            return f"ranks {owner[host, gpu]} and {rank} share a GPU"
    return None
