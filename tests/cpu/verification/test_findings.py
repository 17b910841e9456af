"""Claims of `pp_export.verification.findings`: names of strangers are shown safely."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from pp_export.verification import verify_folder
from tests.fixtures.damage import rewrite
from tests.fixtures.hf_folders import SHARDS


def test_names_are_shown_safely(folder: Path) -> None:
    """A fault's text is bounded and has no control characters, whatever a header or folder is called."""
    name = "\x1b[2J" + "x" * 10_000
    rewrite(SHARDS[0], lambda tensors: {name: torch.ones(2)})(folder)
    (folder / "odd\nname\udcff").write_bytes(b"")
    result = verify_folder(folder)
    assert any(fault.tensor == name for fault in result.faults)
    assert all(str(fault).isprintable() and len(str(fault)) < 1000 for fault in result.faults)
    json.dumps(result.to_json()).encode()
