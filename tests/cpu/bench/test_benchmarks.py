"""Claims: the benchmarks run, on a machine without a GPU too. What they measure is no test's matter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench.exchange import __main__ as exchange
from bench.gpu import __main__ as gpu


def test_both_exchanges_send_the_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One counted run of each way, with two ranks, sends as much both ways and ends with a table."""
    kept = tmp_path / "kept.json"
    assert exchange.main(["--ranks", "2", "--runs", "1", "--layers", "1", "--json", str(kept)]) == 0
    assert "export / bare" in capsys.readouterr().out
    runs = [run for run in json.loads(kept.read_text())["runs"] if run["repetition"] == 1]
    assert [run["way"] for run in runs] == ["export", "bare"] * 2
    assert runs[0]["wire_bytes"] == runs[1]["wire_bytes"] > 0


def test_the_gpu_benchmark_runs_on_a_cpu(tmp_path: Path) -> None:
    """A job of two ranks exports to disk, sends what each rank does not lead, and leaves nothing behind."""
    kept, disk = tmp_path / "kept.json", tmp_path / "disk"
    small = ["--device", "cpu", "--size", "small", "--runs", "2", "--live-ranks", "2", "--offline-ranks"]
    folders = ["--targets", "disk", "--disk", str(disk), "--json", str(kept)]
    assert gpu.main([*small, *folders]) == 0
    runs = json.loads(kept.read_text())["runs"]
    assert {(run["target"], run["backend"]) for run in runs} == {("disk", "gloo")}
    assert all(0 < run["sent_bytes"] < run["bytes"] for run in runs)
    assert not list(disk.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpu_benchmark_is_skipped_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    """`make bench-gpu` says so, and that is no failure."""
    assert gpu.main([]) == 0
    assert "skipped" in capsys.readouterr().err
