"""Claims of `many.py`: iterations of a run are exported by one launch, whatever happens to some of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from pp_export.checkpoint.formats import describe_checkpoint
from tests.cpu.conftest import Checkpoint, Reference
from tests.cpu.schemas.test_schemas import schema
from tests.cpu.view.test_html import sections_of
from tests.fixtures.exports import RememberedDefinition, export_here, files_of
from tests.fixtures.processes import Ended, run_python, started, torchrun

WRITER = """
import shutil, sys, time
from pathlib import Path
source, root = map(Path, sys.argv[1:3])
for iteration in (20, 30, 40):
    time.sleep(1.0)
    shutil.copytree(source, root / "being written")
    (root / "being written").rename(root / f"iter_{iteration:07d}")
    (root / "latest_checkpointed_iteration.txt").write_text(str(iteration))
"""


class Case:
    """A run with one save of many names, and the command that exports it."""

    def __init__(self, checkpoint: Path, reference: Path, root: Path) -> None:
        self.root, self.run, self.exports = root, root / "run", root / "exports"
        self.exports.mkdir()
        self.state = root / "state"
        self.state.mkdir()
        shutil.copytree(checkpoint, self.run)
        self.inputs: dict[str, Any] = {"checkpoint": self.run, "reference": reference}

    def save(self, iteration: int) -> Path:
        folder = self.run / f"iter_{iteration:07d}"
        shutil.copytree(self.run / "iter_0000010", folder)
        return folder

    def damage(self, iteration: int) -> None:
        """A bit of the head's weights, which are read by the last rank."""
        catalog = describe_checkpoint(self.run, iteration)
        stored = next(tensor for tensor in catalog.tensors if "output_layer" in tensor.key).boxes[-1]
        item = catalog.stored_items[stored.item]
        file = self.run / f"iter_{iteration:07d}" / catalog.files[item.file]
        image = bytearray(file.read_bytes())
        image[item.offset + item.length // 2] ^= 1
        file.write_bytes(image)

    def command(self, *words: str, fault: str = "none") -> list[str]:
        """The command line, of which faults and known definitions are a part."""
        RememberedDefinition.write(self.state / "answers.json")
        flags = [f"--{name}={value}" for name, value in self.inputs.items()]
        output = [f"--output={self.exports}/run-{{iteration}}", f"--report={self.root / 'report.json'}"]
        return ["-m", "tests.fixtures.faulty", str(self.state), fault, "export", *flags, *output, *words]

    @property
    def report(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.root / "report.json").read_text())
        Draft202012Validator(schema("many")).validate(value)
        return value

    @property
    def statuses(self) -> dict[int, str]:
        return {each["iteration"]: each["status"] for each in self.report["iterations"]}

    @property
    def page(self) -> bytes:
        return (self.root / "page.html").read_bytes()

    def check(self, *iterations: int) -> None:
        """These are exported with equal bytes, and there is nothing else."""
        assert sorted(os.listdir(self.exports)) == sorted(f"run-{iteration}" for iteration in iterations)
        sums = {(self.exports / f"run-{iteration}" / "SHA256SUMS").read_text() for iteration in iterations}
        assert len(sums) <= 1


@pytest.fixture
def case(checkpoint: Checkpoint, reference: Reference, tmp_path: Path) -> Case:
    return Case(checkpoint("qwen2", "tp2"), reference("qwen2"), tmp_path)


def alone(case: Case, *words: str) -> Ended:
    os.environ["RANK"] = "0"  # faulty.py names its files by it
    try:
        return run_python(case.command(*words), case.root / "output")
    finally:
        del os.environ["RANK"]


def test_one_process_exports_what_is_to_do(case: Case) -> None:
    """One bad iteration doesn't stop the others; again, only what is missing is made; the table, the report
    and the page say what became of each.
    """
    case.save(20)
    (case.save(30) / "metadata.json").unlink()
    export_here(**case.inputs, iteration=10, output=case.exports / "run-10")
    before = files_of(case.exports / "run-10")
    ended = alone(case, "--iteration=20,latest,30,40", f"--html={case.root / 'page.html'}")
    assert ended.status == 1
    assert case.statuses == {10: "skipped", 20: "exported", 30: "failed", 40: "failed"}
    case.check(10, 20)
    assert files_of(case.exports / "run-10") == before
    errors = {each["iteration"]: each["error"] for each in case.report["iterations"]}
    assert "iter_0000040" in errors[40]["what"]
    assert "1 exported, 1 skipped, 2 failed" in ended.stdout
    assert "it is exported and proved" in ended.stdout
    (iterations,) = (each for each in sections_of(case.page).values() if each["kind"] == "table")
    assert [row[:2] for row in iterations["rows"]] == [[n, status] for n, status in case.statuses.items()]
    shutil.rmtree(case.exports / "run-10")
    ended = alone(case, "--iteration=all", "--json")
    assert ended.status == 0
    assert case.statuses == {10: "exported", 20: "skipped", 30: "skipped"}
    assert json.loads(ended.stdout) == case.report
    case.check(10, 20)


def test_ranks_go_on_after_one_of_them_has_failed(case: Case) -> None:
    """Damage that another rank than 0 meets ends that export on all ranks, and the next one begins in a new
    world of the same ranks.
    """
    for iteration in (20, 30):
        case.save(iteration)
    case.damage(10)
    case.damage(20)
    (case.exports / "run-20").mkdir()
    command = case.command("--iteration=all", "--parents", "--overwrite")
    ended = run_python(torchrun(2, *command), case.root / "output")
    assert ended.status == 1
    assert case.statuses == {10: "failed", 20: "failed", 30: "exported"}
    for each in case.report["iterations"][:2]:
        assert "CRC-32" in each["error"]["what"]
        assert each["error"]["where"]["rank"] == "1"
    (case.exports / "run-20").rmdir()
    case.check(30)


def wait_for(done: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def test_a_watch_exports_beside_a_writer(case: Case) -> None:
    """Two ranks export each save that another process renames into place, one at a time, until torchrun is
    stopped; all of them leave at once, and the report says that nothing failed.
    """
    with started(torchrun(2, *case.command("--watch")), case.root / "output") as running:
        source, root = case.run / "iter_0000010", case.run
        run_python(["-c", WRITER, str(source), str(root)], case.root / "writer").checked()
        wait_for((case.exports / "run-40").is_dir)
        wait_for(lambda: 40 in case.statuses)
        os.kill(running.process.pid, signal.SIGTERM)
        ended = running.wait(40)
    assert case.statuses == dict.fromkeys((10, 20, 30, 40), "exported")
    report = case.report
    assert (report["status"], report["stopped"], report["error"]) == ("ok", True, None)
    assert "4 exported, 0 skipped, 0 failed; stopped by a signal" in ended.stdout
    case.check(10, 20, 30, 40)


@pytest.mark.parametrize(("words", "status"), [("--watch", 0), ("--iteration=all", 1)])
def test_a_signal_undoes_the_export_in_hand(case: Case, words: str, status: int) -> None:
    """Who is stopped while it exports leaves nothing of that export; for a watch that is its end, for a list
    of iterations a failure, since they are not all done.
    """
    export_here(**case.inputs, iteration=10, output=case.exports / "run-10")
    case.save(20)
    case.save(30)
    command = case.command(words, "--threads=1", fault="slow")
    with started(command, case.root / "output", env={"RANK": "0"}) as running:
        wait_for((case.state / "middle.0").exists)
        os.kill(running.process.pid, signal.SIGTERM)
        ended = running.wait(30)
    assert ended.status == status, ended.stderr
    assert case.statuses == {10: "skipped"}
    assert case.report["stopped"]
    case.check(10)


def test_a_rank_that_is_killed_ends_all(case: Case) -> None:
    """There is no next world without it: all ends before torchrun kills, with what happened in the report."""
    command = case.command("--watch", "--threads=1", fault="slow")
    with started(torchrun(2, *command), case.root / "output") as running:
        wait_for((case.state / "middle.1").exists)
        os.kill(int((case.state / "1").read_text()), signal.SIGKILL)
        ended = running.wait(60)
    assert ended.status == 1
    assert case.report["status"] == "failed"
    assert "rank 1" in json.dumps(case.report["error"])
    assert "ended without a word" in json.dumps(case.report)
    case.check()
