"""Claims: whatever fails on whatever rank, all ranks end, one report says what, and nothing is left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pp_export.checkpoint.formats import describe_checkpoint
from pp_export.core.errors import TargetError
from tests.cpu.conftest import Checkpoint, Reference
from tests.fixtures.exports import RememberedDefinition, export_here, files_of
from tests.fixtures.processes import Ended, Running, is_alive, started, torchrun

TIMEOUT_S = 60
SUMS = "SHA256SUMS"
# Both ranks read, send, receive and write.
GRID = ("--pipeline-parallel", "1", "--tensor-parallel", "2", "--leaders-per-stage", "all")


class Case:
    """One export by two ranks that will fail: inputs to damage, a target that exists, and what to look at."""

    def __init__(self, checkpoint: Path, reference: Path, root: Path) -> None:
        self.root, self.parent, self.state = root, root / "parent", root / "state"
        self.checkpoint, self.reference = root / "checkpoint", root / "reference"
        self.report_file = root / "report.json"
        self.originals = {self.checkpoint: checkpoint, self.reference: reference}
        self.restore()
        self.parent.mkdir()
        self.state.mkdir()
        self.target = self.parent / "export"

    def restore(self) -> None:
        """Undo the damage to the inputs."""
        for copy, original in self.originals.items():
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(original, copy)

    @property
    def inputs(self) -> dict[str, Any]:
        return {"checkpoint": self.checkpoint, "reference": self.reference}

    def export_old(self) -> None:
        """Put an older export, of other files, in the target's place."""
        export_here(**self.inputs, output=self.target, max_shard_size="100KB")

    @contextmanager
    def started(self, fault: str, *options: str) -> Iterator[Running]:
        """The export under torchrun, with a fault."""
        RememberedDefinition.write(self.state / "answers.json")
        command = torchrun(2, "-m", "tests.fixtures.faulty", str(self.state), fault, "export", *GRID)
        command += ["--checkpoint", str(self.checkpoint), "--reference", str(self.reference)]
        command += ["--output", str(self.target), "--report", str(self.report_file), *options]
        with started(command, self.root / "output") as running:
            yield running

    def failed(self, fault: str, *options: str) -> tuple[dict[str, Any], Ended]:
        """Run the export to its failure; its error, as reported, and its end, both looked at."""
        before = files_of(self.parent)
        with self.started(fault, *options) as running:
            error, ended = self.looked_at(running.wait(TIMEOUT_S), before)
        _, title, cause = ended.stderr.rpartition("Root Cause")
        assert title, "torchrun's summary comes last"
        assert error["what"] in cause, "and says what happened"
        assert f"rank      : {error['where']['rank']} " in cause
        assert ended.stderr.count(f"error: {error['what']}") == 1, "one rank speaks, once"
        return error, ended

    def middle(self, running: Running) -> dict[int, int]:
        """Wait until both ranks are in the middle of exporting; their process ids."""
        return self.reached(running, "middle.0", "middle.1")

    def reached(self, running: Running, *names: str) -> dict[int, int]:
        """Wait until all ranks that leave marks of these names have left them; the ranks' process ids."""
        markers = [self.state / name for name in names]
        deadline = time.monotonic() + TIMEOUT_S
        while not all(marker.exists() for marker in markers):
            assert running.process.poll() is None, running.wait(1).stderr
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return self.pids()

    def pids(self) -> dict[int, int]:
        return {rank: int((self.state / str(rank)).read_text()) for rank in (0, 1)}

    def looked_at(self, ended: Ended, before: dict[str, bytes]) -> tuple[dict[str, Any], Ended]:
        """Assert what holds after every failure; the reported error."""
        assert ended.status != 0
        assert not [pid for pid in self.pids().values() if is_alive(pid)]
        assert files_of(self.parent) == before, "the target is what it was, and nothing lies beside it"
        assert sorted(os.listdir(self.parent)) == sorted({Path(name).parts[0] for name in before})
        report = json.loads(self.report_file.read_text())
        assert report["status"] == "failed"
        error = report["error"]
        assert f"error: {error['what']}" in ended.stderr
        return error, ended


@pytest.fixture(scope="module")
def truth(checkpoint: Checkpoint, reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> str:
    """SHA256SUMS of an export that nothing disturbed."""
    output = tmp_path_factory.mktemp("truth") / "export"
    export_here(checkpoint=checkpoint("qwen2", "tp1"), reference=reference("qwen2"), output=output)
    return (output / SUMS).read_text()


@pytest.fixture
def case(checkpoint: Checkpoint, reference: Reference, truth: str, tmp_path: Path) -> Iterator[Case]:
    """A case; after the failure, the repaired export must succeed with the right bytes."""
    case = Case(checkpoint("qwen2", "tp2pp2"), reference("qwen2"), tmp_path)
    yield case
    case.restore()
    export_here(**case.inputs, output=case.target, overwrite=True)
    assert (case.target / SUMS).read_text() == truth
    assert os.listdir(case.parent) == ["export"]


def tensor_file_of(case: Case, key: str, box: int) -> tuple[Path, int, int]:
    """The .distcp file that holds a box of a stored tensor, and the box's offset and length in it."""
    catalog = describe_checkpoint(case.checkpoint, None)
    number = next(tensor for tensor in catalog.tensors if tensor.key == key).boxes[box].item
    stored = catalog.stored_items[number]
    return Path(catalog.description.folder) / catalog.files[stored.file], stored.offset, stored.length


def flip(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 0x10
    file.write_bytes(data)


def test_a_missing_tensor_file_ends_all_ranks(case: Case) -> None:
    """What rank 0 finds in the metadata ends rank 1 too, and the report names the file."""
    file, _, _ = tensor_file_of(case, "output_layer.weight", 1)
    file.unlink()
    error, ended = case.failed("none")
    assert error["kind"] == "CheckpointError"
    assert error["findings"] == [f"{file.name} is missing"]
    assert error["where"]["rank"] == "0"
    assert "[rank 1] error" not in ended.stderr, "one rank speaks"


def test_a_tensor_file_that_is_cut_short_meanwhile(case: Case) -> None:
    """A file that shrinks after planning is named, with the rank, the tensor and the operation."""
    file, _, _ = tensor_file_of(case, "output_layer.weight", 1)
    (case.state / "victims").write_text(str(file))
    error, _ = case.failed("cut@0")
    assert error["kind"] == "CheckpointError"
    assert error["where"]["operation"] == "read"
    assert error["where"]["file"] == str(file)
    assert error["where"]["tensor"]
    assert error["where"]["rank"] in ("0", "1")


def test_a_flipped_bit_that_rank_1_reads(case: Case) -> None:
    """One flipped bit in a record that rank 1 reads is reported with rank, stage, tensor and file."""
    file, offset, length = tensor_file_of(case, "output_layer.weight", 1)
    flip(file, offset + length // 2)
    error, ended = case.failed("none")
    assert error["kind"] == "CheckpointError"
    assert "CRC-32" in error["what"]
    expected = {"rank": "1", "stage": "0", "operation": "read", "tensor": "output_layer.weight"}
    assert expected.items() <= error["where"].items()
    assert error["where"]["file"] == str(file)
    assert error["expected"] != error["got"]
    assert "[rank 0] error: the stored bytes are damaged" in ended.stderr


def test_an_unreadable_reference_ends_all_ranks(case: Case) -> None:
    """A config.json that isn't JSON ends all ranks, and the report names it."""
    (case.reference / "config.json").write_text('{"architectures": [')
    error, _ = case.failed("none")
    assert error["kind"] == "ReferenceFolderError"
    assert error["where"]["file"] == str(case.reference / "config.json")


@pytest.fixture
def small_disk(case: Case) -> Iterator[Path]:
    """A filesystem of 600 KB in the place of the target's parent; skipped where it can't be mounted."""
    command = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(case.parent)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root may mount a small filesystem")
    try:
        yield case.parent
    finally:
        subprocess.run(["umount", str(case.parent)], check=True)


def check_no_space(case: Case, fault: str) -> dict[str, Any]:
    """Export onto a full disk; the error as reported."""
    error, _ = case.failed(fault)
    assert error["kind"] == "TargetError"
    assert "No space left on device" in error["what"]
    assert error["where"]["operation"] in ("reserve space", "write", "create")
    assert error["where"]["file"].startswith(str(case.parent))
    assert "free space" in error["advice"]
    return error


def test_a_disk_that_fills_up(case: Case, small_disk: Path) -> None:
    """A disk that is full in the middle is reported with operation and file; what was written is freed."""
    assert shutil.disk_usage(small_disk).free < 872_000
    check_no_space(case, "space-unknown")
    assert shutil.disk_usage(small_disk).used < 100_000


def test_a_disk_that_is_full_for_one_rank(case: Case) -> None:
    """ENOSPC on rank 1 alone, as from a quota or a full Lustre target, is reported with that rank."""
    error = check_no_space(case, "no-space@1")
    assert error["where"]["rank"] == "1"


def test_a_disk_that_is_known_to_be_too_small(case: Case, small_disk: Path) -> None:
    """Where the filesystem tells how much is free, the export stops before it writes, with both numbers."""
    with pytest.raises(TargetError, match="too little space") as caught:
        export_here(**case.inputs, output=case.target)
    assert caught.value.where["folder"] == str(small_disk)
    assert "bytes" in str(caught.value.expected)
    assert "bytes free" in str(caught.value.got)
    assert os.listdir(small_disk) == []


def test_a_rank_that_raises_in_the_middle(case: Case) -> None:
    """Any exception on rank 1 is reported with rank, operation and file; the old target is unchanged."""
    case.export_old()
    error, ended = case.failed("raise@1", "--overwrite")
    assert "RuntimeError: injected" in error["what"]
    assert error["where"]["rank"] == "1"
    assert error["where"]["operation"] == "freeze"
    assert error["where"]["file"].startswith("model-")
    assert "faulty.py" in "".join(error["findings"]), "the report tells where in the code"
    assert "[rank 0] error: RuntimeError: injected" in ended.stderr


def test_rank_0_raises_at_the_end(case: Case) -> None:
    """An exception on rank 0 alone, after all shards were written, ends rank 1 too."""
    case.export_old()
    error, ended = case.failed("raise-after-export@0", "--overwrite")
    assert "RuntimeError: injected" in error["what"]
    assert error["where"]["rank"] == "0"
    assert "[rank 1] error" not in ended.stderr, "one rank speaks"


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed(case: Case, victim: int) -> None:
    """SIGKILL for a rank, as when memory is out: another one cleans up and reports which went silent.

    Signals that come while it cleans up, as torchrun sends them when a rank is gone, don't disturb it.
    """
    case.export_old()
    before = files_of(case.parent)
    with case.started("slow,signal-while-cleaning", "--overwrite") as running:
        os.kill(case.middle(running)[victim], signal.SIGKILL)
        error, _ = case.looked_at(running.wait(TIMEOUT_S), before)
    assert error["kind"] == "PeerError", "and not that torchrun then told the other to stop"
    assert error["where"]["rank"] == str(victim)
    assert any(f"rank {victim} ended without a word" in finding for finding in error["findings"])


@pytest.mark.parametrize("where", ["connect", "last"])
def test_a_rank_that_is_killed_before_or_after_the_rounds(case: Case, where: str) -> None:
    """SIGKILL for rank 1 before its group is connected, or when all its rounds are over: rank 0 ends within
    seconds and says who went silent.
    """
    before = files_of(case.parent)
    with case.started(f"hold-{where}@1") as running:
        os.kill(case.reached(running, "held")[1], signal.SIGKILL)
        killed = time.monotonic()
        error, _ = case.looked_at(running.wait(TIMEOUT_S), before)
        assert time.monotonic() - killed < 25
    assert any("rank 1 ended without a word" in finding for finding in error["findings"])


def test_a_launcher_that_is_killed(case: Case) -> None:
    """SIGKILL for torchrun, with which the ranks' store goes: the orphans end by themselves and clean up."""
    case.export_old()
    before = files_of(case.parent)
    with case.started("slow", "--overwrite") as running:
        pids = case.middle(running).values()
        running.process.kill()
        deadline = time.monotonic() + 30
        while any(map(is_alive, pids)):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        error, _ = case.looked_at(running.wait(TIMEOUT_S), before)
    assert error["kind"] == "PeerError"
    assert "launcher" in error["what"]


def test_a_job_that_is_told_to_stop(case: Case) -> None:
    """SIGTERM for torchrun, as by a scheduler: all ranks stop and clean up, and the report says why."""
    case.export_old()
    before = files_of(case.parent)
    with case.started("slow", "--overwrite") as running:
        case.middle(running)
        running.process.send_signal(signal.SIGTERM)
        error, _ = case.looked_at(running.wait(TIMEOUT_S), before)
    assert error["kind"] == "StoppedError"
    assert "SIGTERM" in error["what"]
    assert error["where"]["rank"] == "0"


@pytest.mark.parametrize("where", ["connect", "last"])
def test_a_rank_that_hangs_before_or_after_the_rounds(case: Case, where: str) -> None:
    """A worker of rank 1 that does not get on, before the first round or after the last, is named with what
    it was at, after --stall-seconds.
    """
    before = files_of(case.parent)
    with case.started(f"hold-{where}@1", "--stall-seconds", "4") as running:
        case.reached(running, "held")
        error, _ = case.looked_at(running.wait(TIMEOUT_S), before)
    assert "no progress for 4 s" in error["what"]
    assert any(finding.startswith("rank 1 was ") for finding in error["findings"])


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_hangs(case: Case, victim: int) -> None:
    """A stopped rank is noticed after --stall-seconds, by whichever rank still runs, and named.

    torchrun waits half a minute before it kills a process that doesn't end when asked to; here the stopped
    one is let go on as soon as the other has given up, and may not publish then.
    """
    case.export_old()
    before = files_of(case.parent)
    with case.started("slow", "--overwrite", "--stall-seconds", "5") as running:
        pid = case.middle(running)[victim]
        os.kill(pid, signal.SIGSTOP)
        stopped = time.monotonic()
        try:
            while not case.report_file.exists():
                assert time.monotonic() < stopped + 30
                time.sleep(0.1)
            assert files_of(case.parent) == before
        finally:
            os.kill(pid, signal.SIGCONT)
        error, _ = case.looked_at(running.wait(TIMEOUT_S), before)
    assert error["kind"] == "PeerError"
    assert "no progress for 5 s" in error["what"]
    assert error["where"]["rank"] == str(victim)
