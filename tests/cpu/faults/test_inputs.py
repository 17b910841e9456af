"""Claims: whichever call that looks at an input or reads it meets a fault of the disk, the export stops with
one error that names what failed, or is right without it; nothing of it stays.

Every call on a path below the inputs, and on a file that was opened there, fails once with EIO.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import pp_export
from pp_export.core.errors import ExportError
from tests.fixtures import smallest
from tests.fixtures.exports import files_of, remembering

CALLS = (
    *((os, name) for name in ("stat", "lstat", "fstat", "open", "scandir", "listdir", "readlink")),
    *((os, name) for name in ("read", "pread", "preadv")),
    *((module, "open") for module in (builtins, io)),
)


@dataclass
class FailingReads:
    """Makes call number `fails_at` on the inputs fail; `made` are the calls so far, each with its path."""

    root: str
    fails_at: int = -1
    made: list[str] = field(default_factory=list)

    def patch(self, into: pytest.MonkeyPatch) -> None:
        for module, name in CALLS:
            into.setattr(module, name, self._wrapped(getattr(module, name), name))

    def _wrapped(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        readlink = os.readlink

        def path_of(what: Any) -> str:
            try:
                return readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else os.fsdecode(what)
            except (OSError, TypeError):
                return ""

        def made(what: Any = ".", *arguments: Any, **named: Any) -> Any:
            path = path_of(what)
            if path.startswith(self.root):
                self.made.append(f"{name} {path}")
                if len(self.made) - 1 == self.fails_at:
                    raise OSError(errno.EIO, os.strerror(errno.EIO), path)
            return call(what, *arguments, **named)

        return made


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return smallest.write(tmp_path_factory.mktemp("inputs"))


def export(inputs: tuple[Path, Path], output: Path, reads: FailingReads) -> ExportError | None:
    """Export with failing reads; the error, if it fails."""
    checkpoint, reference = inputs
    with remembering(), pytest.MonkeyPatch.context() as patch:
        reads.patch(patch)
        try:
            pp_export.export_checkpoint(checkpoint, reference=reference, output=output, threads=1)
        except ExportError as error:
            return error
    return None


def test_a_fault_of_an_input_is_one_error_that_names_it(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    """None is taken for a defect of ours, none leaves anything, and what succeeds has the right bytes."""
    root = str(inputs[0].parent)
    assert export(inputs, tmp_path / "warm", FailingReads(root)) is None
    reads = FailingReads(root)
    assert export(inputs, tmp_path / "right", reads) is None
    right = {name: data for name, data in files_of(tmp_path / "right").items() if "manifest" not in name}
    failed = 0
    for number, call in enumerate(reads.made):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        error = export(inputs, folder / "target", FailingReads(root, number))
        if error is None:
            found = files_of(folder / "target")
            assert {name: data for name, data in found.items() if "manifest" not in name} == right, call
        else:
            failed += 1
            told = str(error)
            assert "defect of pp_export" not in told, (call, told)
            assert os.strerror(errno.EIO) in told, (call, told)
            assert os.listdir(folder) == [], call
        shutil.rmtree(folder)
    assert failed > len(reads.made) / 2, "most calls matter"
