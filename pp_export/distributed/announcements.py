"""Temporary: replaced by control's."""

from __future__ import annotations

from pp_export.distributed.store import Member


class Announcements:
    def __init__(self, member: Member) -> None:
        self._member = member
        self._own: set[str] = set()

    def post(self, name: str) -> None:
        self._own.add(name)
        if self._member.size > 1:
            self._member.store.set(f"announced/{name}", b"1")

    def has(self, name: str) -> bool:
        return name in self._own or (self._member.size > 1 and self._member.store.check(f"announced/{name}"))
