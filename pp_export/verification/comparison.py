"""How far logits are from recorded ones.

Differences are taken per position, over the columns that were recorded, and relative to how far the exported
logits of the position lie apart (their standard deviation over the vocabulary): scale and number of columns
don't matter then.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pp_export.core.errors import VerificationError
from pp_export.verification.recording import Recording

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class LogitDifference:
    """The logit that differs most: where, of which token of the vocabulary, and both values."""

    batch: int
    position: int
    token: int
    recorded: float
    exported: float


@dataclass(frozen=True)
class LogitComparison:
    """How far a folder's logits are from the recorded ones, over [batch, sequence] positions.

    `recorded_dtype` is the type of the recorded values, `precision` the narrowest type that holds all of
    them, in which the model in training computed. `difference` is the smallest tolerance that would have
    held; `..._kl_divergence` is that of the recorded columns' distributions, in nats.
    """

    folder: str
    recording: str
    recorded_dtype: str
    precision: str
    batch: int
    sequence: int
    num_columns: int
    num_padding_columns: int
    partly_on_disk: bool
    tolerance: float
    required_share: float
    share_within: float
    difference: float
    max_difference: float
    max_abs_difference: float
    mean_abs_difference: float
    max_kl_divergence: float
    mean_kl_divergence: float
    top_token_agreement: float
    worst: LogitDifference

    @property
    def ok(self) -> bool:
        """Whether enough positions lie within the tolerance."""
        return self.difference <= self.tolerance

    def __repr__(self) -> str:
        return (
            f"LogitComparison(folder={self.folder!r}, ok={self.ok}, difference={self.difference:.2g},"
            f" tolerance={self.tolerance:g}, top_token_agreement={self.top_token_agreement:.3f})"
        )

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values, as `pp_export compare-logits --json` gives it; see
        `schemas/compare_logits.json`.
        """
        return {"schema_version": 1, **asdict(self), "ok": self.ok}


def measure(
    logits: torch.Tensor, recording: Recording, tolerance: float, required_share: float, folder: Path
) -> dict[str, Any]:
    """The figures of a comparison, one row of the batch at a time, in float64."""
    import torch

    vocab_size = logits.shape[-1]
    relative, mean, kl, agreed = [], [], [], []
    largest, worst = -1.0, None
    for row, exported in enumerate(logits):
        wide = exported.double()
        spread = wide.std(dim=-1, correction=0)
        unusable = ~((spread > 0) & torch.isfinite(spread))
        if bool(unusable.any()):
            text = "the exported model's logits are not finite, or all alike"
            at = {"batch": row, "position": int(unusable.int().argmax())}
            raise VerificationError(text, where={"folder": folder, **at})
        ids, recorded = _row(recording, row, vocab_size)
        inside = ids < vocab_size
        ids = ids.clamp(max=vocab_size - 1)
        chosen = wide.gather(-1, ids)
        errors = torch.where(inside, (chosen - recorded).abs(), 0.0)
        counts = inside.sum(-1)
        relative.append((errors.square().sum(-1) / counts).sqrt() / spread)
        mean.append(errors.sum(-1) / counts)
        masked = recorded.masked_fill(~inside, -torch.inf)
        log_p = masked.log_softmax(-1)
        log_q = chosen.masked_fill(~inside, -torch.inf).log_softmax(-1)
        kl.append(torch.where(inside, log_p.exp() * (log_p - log_q), 0.0).sum(-1).clamp(min=0))
        top, is_top = wide.argmax(-1, keepdim=True), masked == masked.amax(-1, keepdim=True)
        agreed.append(((ids == top) & is_top & inside).any(-1))
        if float(errors.max()) > largest:
            largest = float(errors.max())
            place = divmod(int(errors.argmax()), errors.shape[-1])
            values = (float(recorded[place]), float(chosen[place]))
            worst = LogitDifference(row, place[0], int(ids[place]), *values)
    by_size = torch.cat(relative).sort().values
    return {
        "tolerance": tolerance,
        "share_within": float((by_size <= tolerance).double().mean()),
        "difference": float(by_size[math.ceil(required_share * len(by_size)) - 1]),
        "max_difference": float(by_size[-1]),
        "max_abs_difference": largest,
        "mean_abs_difference": float(torch.cat(mean).mean()),
        "max_kl_divergence": float(torch.cat(kl).max()),
        "mean_kl_divergence": float(torch.cat(kl).mean()),
        "top_token_agreement": float(torch.cat(agreed).double().mean()),
        "worst": worst,
    }


def _row(recording: Recording, row: int, vocab_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns and recorded logits [sequence, k] of one row of the batch; padding may be among the columns."""
    import torch

    if recording.ids is not None:
        return recording.ids[row], recording.values[row].double()
    values = recording.values[row, :, :vocab_size].double()
    return torch.arange(vocab_size).expand(values.shape), values
