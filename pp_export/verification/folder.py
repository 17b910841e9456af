"""The files of a folder, found without following a link out of it."""

from __future__ import annotations

import io
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

from pp_export.core.errors import VerificationError
from pp_export.verification.findings import Fault, MalformedError

IGNORED = (".cache", ".git", ".gitattributes")
"""What git and the Hub's client put beside a model; no loader reads it."""

_LEFTOVER = re.compile(r"\.tmp.*|.*\.tmp")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass
class Listing:
    """The regular files of a folder, by relative path, and what else was found there."""

    root: Path
    sizes: dict[str, int] = field(default_factory=dict)
    blob_digests: dict[str, str] = field(default_factory=dict)
    """SHA-256 that the Hub's cache promises, for snapshot links to blobs that are named by it."""
    faults: list[Fault] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    def fault(self, kind: str, file: str, message: str) -> None:
        """Note a fault."""
        self.faults.append(Fault(kind, file, None, message))

    def open(self, name: str) -> io.FileIO:
        """Open a file of the listing."""
        if name not in self.sizes:
            raise KeyError(name)
        return open_regular(self.root / name)

    def read(self, name: str, max_bytes: int) -> bytes:
        """The whole content of a small file, or MalformedError."""
        if self.sizes[name] > max_bytes:
            raise MalformedError(f"it has {self.sizes[name]:,} bytes; more than {max_bytes:,} are not read")
        try:
            with self.open(name) as file:
                return read_upto(file, max_bytes)
        except OSError as error:
            raise MalformedError(f"it cannot be read: {error.strerror}") from None

    def weight_files(self) -> list[str]:
        """Names of the *.safetensors at the top level, which is where loaders look."""
        return sorted(name for name in self.sizes if name.endswith(".safetensors") and "/" not in name)


def is_sha256(value: object) -> bool:
    """Whether `value` is a SHA-256 in lower-case hex."""
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def open_regular(path: Path) -> io.FileIO:
    """Open a regular file for reading; a pipe or device raises OSError instead of blocking."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "not a regular file", str(path))
    return io.FileIO(descriptor)


def read_upto(file: io.FileIO, max_bytes: int) -> bytes:
    """What `file` holds, at most `max_bytes`."""
    data = bytearray()
    while len(data) < max_bytes and (part := file.read(min(1 << 20, max_bytes - len(data)))):
        data += part
    return bytes(data)


def list_folder(root: Path) -> Listing:
    """Every regular file below `root`. Raises VerificationError where `root` is not a readable folder."""
    listing = Listing(root)
    try:
        real_root = os.path.realpath(root)
        pending = [(entry.name, entry) for entry in os.scandir(root)]
    except OSError as error:
        text = f"the folder can't be read: {error.strerror}"
        raise VerificationError(text, where={"folder": root}, advice="check the path") from None
    while pending:
        name, entry = pending.pop()
        if name in IGNORED:
            listing.ignored.append(name)
            continue
        try:
            if entry.is_dir(follow_symlinks=False):
                pending += [(f"{name}/{below.name}", below) for below in os.scandir(entry.path)]
            else:
                _add_file(listing, name, entry, real_root)
        except OSError as error:
            listing.fault("unreadable-file", name, f"it cannot be read: {error.strerror}")
    listing.sizes = dict(sorted(listing.sizes.items()))
    listing.faults.sort(key=lambda fault: fault.file)
    return listing


def _add_file(listing: Listing, name: str, entry: os.DirEntry[str], real_root: str) -> None:
    if entry.is_symlink():
        real = os.path.realpath(entry.path)
        inside = _is_inside(real, real_root)
        if not os.path.isfile(real) or not (inside or _is_blob(real, real_root)):
            listing.fault("unsafe-link", name, "a link out of the folder or to no file; it was not followed")
            return
        if not inside and is_sha256(os.path.basename(real)):
            listing.blob_digests[name] = os.path.basename(real)
    elif not entry.is_file():
        listing.fault("not-a-file", name, "neither a regular file nor a folder; it was not opened")
        return
    if _LEFTOVER.fullmatch(entry.name):
        listing.fault("leftover-file", name, "a temporary file of a writer that died; no part of the model")
    listing.sizes[name] = entry.stat().st_size


def _is_inside(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip("/") + "/")


def _is_blob(path: str, root: str) -> bool:
    """Whether `root` is a snapshot in the Hub's cache and `path` one of that repository's blobs."""
    snapshots = os.path.dirname(root)
    blobs = os.path.join(os.path.dirname(snapshots), "blobs")
    return os.path.basename(snapshots) == "snapshots" and os.path.dirname(path) == blobs
