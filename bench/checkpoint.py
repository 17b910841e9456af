"""The checkpoint that is exported: written once by megatron-core's own writer, then kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from tests.fixtures.launch import ROOT, run_writer

LAYOUT, WORLD_SIZE = "tp2pp2", 4
_STEP_BYTES = 4 << 20


@dataclass(frozen=True)
class Source:
    """A checkpoint with its tracker file, and the Hugging Face folder of the same model without weights."""

    checkpoint: Path
    reference: Path

    @property
    def files(self) -> list[Path]:
        return sorted(path for path in self.checkpoint.rglob("*") if path.is_file())

    @property
    def num_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files)

    def warm(self) -> None:
        """Read every byte, so that the page cache holds what it can of it."""
        buffer = bytearray(_STEP_BYTES)
        for path in self.files:
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    def drop(self) -> None:
        """Ask the kernel to forget the checkpoint's pages. It keeps those that are not on disk yet."""
        for path in self.files:
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def default_cache() -> Path:
    """Where checkpoints are kept unless the command line says otherwise."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "pp_export-bench"


def locate(model: str, cache: Path) -> Source:
    """Where the cache keeps the checkpoint of `model`, or will."""
    versions = f"torch{metadata.version('torch')}-mcore{metadata.version('megatron-core')}"
    folder = cache / f"{model}-{LAYOUT}-{versions}"
    return Source(folder / LAYOUT, folder / "reference")


def ensure(source: Source, model: str) -> None:
    """Write the checkpoint and its reference, unless they are in the cache."""
    folder = source.checkpoint.parent
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = folder.with_name(f".{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        run_writer(model, [LAYOUT], unfinished, world_size=WORLD_SIZE, optimizer=False)
        command = [sys.executable, "-m", "tests.fixtures.reference", model, str(unfinished / "reference")]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        os.sync()
        unfinished.rename(folder)
