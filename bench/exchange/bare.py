"""Bytes over torch's Gloo and nothing else. It knows nothing of plans; only torch is imported here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class BareRound:
    """The bytes that this rank sends to others and receives from them, by their rank."""

    sends: dict[int, int]
    receives: dict[int, int]


class BareExchange:
    """Walks rounds over the default group. Its memory is as large as the largest round, and touched."""

    def __init__(self, rounds: Sequence[BareRound]) -> None:
        self._rounds = rounds
        self._from = torch.ones(max((sum(r.sends.values()) for r in rounds), default=0), dtype=torch.uint8)
        self._into = torch.ones(max((sum(r.receives.values()) for r in rounds), default=0), dtype=torch.uint8)

    def run(self) -> None:
        """Every round is posted at once and waited for before the next."""
        for each in self._rounds:
            works, begin = [], 0
            for peer, count in each.receives.items():
                works.append(dist.irecv(self._into[begin : begin + count], peer))
                begin += count
            begin = 0
            for peer, count in each.sends.items():
                works.append(dist.isend(self._from[begin : begin + count], peer))
                begin += count
            for work in works:
                assert work is not None
                work.wait()
