"""Claims about input that nobody foresaw: a fault, and never a traceback or a long wait."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import given, settings

from pp_export.verification import KINDS, verify_folder
from tests.fixtures.hf_folders import INDEX, MANIFEST, MIDDLE, SUMS, seal, write_manifest
from tests.fixtures.mutations import FUZZ, json_mutations, mutations


def check_fuzzed(folder: Path, *, changed: bool) -> None:
    """Verification of a fuzzed folder returns known kinds in bounded time, and sees the change."""
    started = time.process_time()
    quick, full = verify_folder(folder, quick=True), verify_folder(folder, threads=1)
    assert time.process_time() - started < 1
    assert set(quick.faults) <= set(full.faults)
    for fault in full.faults:
        assert fault.kind in KINDS
        assert str(fault).isprintable()
    assert not (changed and full.ok)
    json.dumps(full.to_json())


def fuzz(sealed: Path, file: str, change: Callable[[bytes], bytes], *, resealed: bool = False) -> None:
    with tempfile.TemporaryDirectory(dir=sealed.parent) as parent:
        folder = Path(shutil.copytree(sealed, Path(parent) / "model", copy_function=os.link))
        before = (folder / file).read_bytes()
        after = change(before)
        (folder / file).unlink()
        (folder / file).write_bytes(after)
        same = before == after
        if file == MANIFEST:  # its digest is over the JSON value, and where it came from is anybody's text
            was, now = json.loads(before), _json_or_none(after)
            if resealed:
                write_manifest(folder, now)
                ignored = dict.fromkeys(("digest", "provenance"))
                was, now = was | ignored, now | ignored
            same = was == now
        elif resealed:
            seal(folder)
            same = json.loads(before) == json.loads(after)
        check_fuzzed(folder, changed=not same)


def _json_or_none(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


@FUZZ
@given(mutations())
def test_fuzzed_bytes(sealed: Path, mutate: Callable[[bytes], bytes]) -> None:
    """Damaged bytes in a shard, the index, the manifest or SHA256SUMS: a fault, never a traceback."""
    for file in (MIDDLE, INDEX, MANIFEST, SUMS):
        fuzz(sealed, file, mutate)


@settings(FUZZ, max_examples=60)
@given(json_mutations())
def test_fuzzed_values(sealed: Path, mutate: Callable[[Any], Any]) -> None:
    """Any JSON value anywhere in index or manifest is found, in a correctly sealed manifest too."""

    def change(data: bytes) -> bytes:
        return json.dumps(mutate(json.loads(data))).encode()

    fuzz(sealed, INDEX, change)
    fuzz(sealed, INDEX, change, resealed=True)
    fuzz(sealed, MANIFEST, change)
    fuzz(sealed, MANIFEST, change, resealed=True)
