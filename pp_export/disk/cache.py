"""A folder of the user's own for what can be found out again.

It may be deleted, damaged, full or out of reach at any time, and then it holds nothing: no call raises.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pp_export.disk.calls import do, quietly

_DIGEST_BYTES = 64  # of SHA-256, in hex


@dataclass(frozen=True)
class UserCache:
    """Entries by name, each a file of its own, in all at most `max_bytes`: the oldest go first.

    A file begins with the digest of what follows, and it is private: one that others could have written holds
    nothing.
    """

    folder: Path
    max_bytes: int

    @classmethod
    def of_user(cls, name: str, max_bytes: int) -> UserCache | None:
        """`pp_export/NAME` in $XDG_CACHE_HOME, or in ~/.cache; None where the user has no home."""
        chosen = os.environ.get("XDG_CACHE_HOME", "")
        root = Path(chosen if os.path.isabs(chosen) else os.path.expanduser("~/.cache"))
        return cls(root / "pp_export" / name, max_bytes) if root.is_absolute() else None

    def read(self, name: str) -> bytes | None:
        """What was kept under `name`; None where nothing was, or what is there isn't whole and our own."""
        with suppress(OSError):
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            with os.fdopen(os.open(self.folder / name, flags), "rb") as file:
                found = os.fstat(file.fileno())
                is_own = found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
                if not stat.S_ISREG(found.st_mode) or not is_own or found.st_size > self.max_bytes:
                    return None
                digest, data = file.read(_DIGEST_BYTES), file.read(self.max_bytes)
                return data if _digest(data) == digest else None
        return None

    def keep(self, name: str, data: bytes) -> None:
        """Keep `data` under `name`, whole or not at all; what is older makes room."""
        if _DIGEST_BYTES + len(data) > self.max_bytes:
            return
        with suppress(OSError):
            do(os.makedirs, self.folder, mode=0o700, exist_ok=True)
            descriptor, temporary = do(tempfile.mkstemp, dir=self.folder)  # of mode 0600
            try:
                with os.fdopen(descriptor, "wb") as file:
                    do(file.write, _digest(data) + data)
                do(os.rename, temporary, self.folder / name)
            except BaseException:
                quietly(os.unlink, temporary)
                raise
            self._make_room()

    def _make_room(self) -> None:
        """Remove the oldest entries, and what writers that were killed have left, until the rest fits."""
        left = self.max_bytes
        for path, found in sorted(self._entries(), key=lambda entry: -entry[1].st_mtime_ns):
            left -= found.st_size
            if left < 0:
                quietly(os.unlink, path)

    def _entries(self) -> Iterator[tuple[Path, os.stat_result]]:
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with suppress(OSError):  # another process was quicker
                    yield Path(entry.path), entry.stat(follow_symlinks=False)


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()
