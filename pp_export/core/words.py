"""How amounts are said to people."""

from __future__ import annotations


def counted(count: int, what: str) -> str:
    """`1 file`, `1,200 files`."""
    return f"{count:,} {what}" + "s" * (count != 1)
