"""What the bytes of a checkpoint tell, on stdout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pp_export.core.words import counted
from pp_export.view.text import console, empty_table, human_bytes

if TYPE_CHECKING:
    from pp_export.steps.checkpoint_report import Examination

_MAX_FAULTS = 40


def print_examination(examined: Examination) -> None:
    """Every tensor with its digest and what is suspicious, then the faults, then all in a line."""
    out = console()
    tensors = empty_table()
    for column in ("tensor", "type", "shape", "XXH3-128", "suspicious"):
        tensors.add_column(column, overflow="fold")
    for name, tensor in examined.tensors.items():
        digest, told = tensor.digest or "not all is there", ", ".join(tensor.suspicions)
        tensors.add_row(name, tensor.dtype, str(list(tensor.shape)), digest, told)
    out.print(tensors)
    for fault in examined.faults[:_MAX_FAULTS]:
        out.print(f"FAULT {fault}", soft_wrap=True)
    if len(examined.faults) > _MAX_FAULTS:
        out.print(f"and {counted(len(examined.faults) - _MAX_FAULTS, 'more fault')} (--json has all)")
    suspicious = sum(bool(tensor.suspicions) for tensor in examined.tensors.values())
    checked = "CRC-32 of every record checked" if examined.has_checksums else "no checksums were stored"
    rate = human_bytes(examined.num_bytes_read / max(examined.seconds, 1e-3))
    verdict = "ok" if examined.ok else counted(len(examined.faults), "fault")
    out.print(
        f"{verdict}: {counted(len(examined.tensors), 'tensor')}, {suspicious or 'none'} suspicious;"
        f" {human_bytes(examined.num_bytes_read)} read in {examined.seconds:.1f} s, {rate}/s; {checked}",
        soft_wrap=True,
    )
