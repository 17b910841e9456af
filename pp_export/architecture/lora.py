"""What is to become of adapters (LoRA), and what the run that trained them says of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pp_export.core.tensors import Shape

MERGE, ADAPTER = "merge", "adapter"
"""W + alpha / rank * out @ in, or a folder of PEFT."""


@dataclass(frozen=True)
class LoraSettings:
    """What a run `said_by` some file says of its adapters; None where it doesn't.

    `is_stabilized`: alpha counts by the square root of the rank (rsLoRA). `divides_experts_by`: experts have
    the rank divided by so many (Megatron-Bridge's `normalize_moe_lora`).
    """

    alpha: float | None = None
    rank: int | None = None
    is_stabilized: bool = False
    dropout: float = 0.0
    divides_experts_by: int = 1
    said_by: str = ""


@dataclass(frozen=True)
class Lora:
    """What is asked for: `form` is MERGE or ADAPTER, `alpha` what the run or the user says. With
    `takes_rest`, what the checkpoint lacks are the tensors of a base folder.
    """

    form: str
    alpha: float
    settings: LoraSettings = LoraSettings()
    takes_rest: bool = False

    def scale(self, rank: int) -> float:
        """What the product of the two matrices is multiplied by."""
        return self.alpha / (math.sqrt(rank) if self.settings.is_stabilized else rank)

    def misfit(self, rank: int, *, of_expert: bool) -> str | None:
        """What the run says of the rank, where that is another."""
        said = self.settings.rank
        known = {said, said // self.settings.divides_experts_by if said and of_expert else said}
        return None if said is None or rank in known else f"{self.settings.said_by} says {said}"


@dataclass(frozen=True)
class Adapted:
    """The Hugging Face tensors that adapters change: their `ranks`, and the `shapes` that they must have."""

    lora: Lora
    ranks: Mapping[str, int]
    shapes: Mapping[str, Shape]
