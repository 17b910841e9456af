"""Claims of `pp_export.steps.transfer`: what a failure elsewhere leaves of a rank's workers."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace

import torch

from pp_export.core import file_names
from pp_export.process.ring_buffer import RingBuffer
from pp_export.steps.transfer import Frozen, Transfer
from pp_export.steps.workers import Progress
from tests.fixtures.frozen import freeze_tensors


def test_no_thread_is_left_when_a_shard_is_written(tmp_path: Path) -> None:
    """Between two shards the writer has no helper: when another worker fails, nobody asks it for more."""
    (tmp_path / file_names.SHARD_JSONS).mkdir()
    frozen = freeze_tensors("model-00001-of-00001.safetensors", {"a": torch.ones(3)})
    transfer = object.__new__(Transfer)
    transfer._rank, transfer._staging, transfer._progress = 0, tmp_path, Progress()
    transfer._span, transfer._written = transfer._progress.recorder.span, []
    ring = RingBuffer(len(frozen.image))
    transfer._rings = SimpleNamespace(images=ring)  # type: ignore[assignment]
    image = ring.take(len(frozen.image), lambda: None)
    before = set(threading.enumerate())
    written = transfer._write(Frozen(frozen, image))
    assert set(threading.enumerate()) == before
    written.file.abandon()
