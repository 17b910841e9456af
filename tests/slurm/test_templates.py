"""Claims: the templates of `launch` export on a real Slurm as users submit them, and whatever Slurm does to a
job in the middle, nothing half made is published or left.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.gpu.model import SIZES, write_checkpoint
from pp_export.core import file_names
from tests.cpu.conftest import RankSaves
from tests.fixtures.exports import files_of
from tests.fixtures.processes import ROOT, run_python
from tests.slurm.cluster import ENDED, Cluster, missing, wait_until

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())
LAUNCH = ROOT / "launch"
SIZES_OF_A_WHILE = replace(SIZES["small"], layers=6, hidden=2048, ffn=8192, heads=16, groups=4, head_dim=128)
# Started again right after a node was lost, a job may get a step on one node only. Slurm itself waits for two
# minutes.
SETTLES_SECONDS = 25
SMALL = ("--cpus-per-task=1", "--mem=0")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    for above in (folder, folder.parent, folder.parent.parent):
        above.chmod(0o755)  # munge's user looks into it
    with Cluster(folder) as running:
        yield running


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `job.yaml` for a checkpoint of two iterations that takes seconds to export."""
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "reference").mkdir()
    (folder / "reference" / "config.json").write_text(json.dumps(SIZES_OF_A_WHILE.config_json()))
    for iteration in (100, 200):
        write_checkpoint(folder / "checkpoint" / f"iter_{iteration:07d}", SIZES_OF_A_WHILE)
    (folder / "checkpoint" / "latest_checkpointed_iteration.txt").write_text("100")
    job = {"checkpoint": folder / "checkpoint", "reference": folder / "reference", "max_shard_size": "100MB"}
    (folder / "job.yaml").write_text("".join(f"{key}: {value}\n" for key, value in job.items()))
    return folder


class Job:
    """A submitted template and what it is to make."""

    def __init__(
        self, cluster: Cluster, jobs: Path, template: str, name: str, *sbatch: str, **env: str
    ) -> None:
        self.cluster, self.output = cluster, jobs / name
        known = {"JOB": str(jobs / "job.yaml"), "OUTPUT": str(self.output), "PYTHON": sys.executable}
        env = {**known, "PYTHONPATH": str(ROOT), "RANKS_PER_NODE": "2", **env}
        self.number = cluster.submit(LAUNCH / template, sbatch=(*SMALL, *sbatch), cwd=jobs, **env)
        self.log = jobs / f"pp_export-{self.number}.log"

    @property
    def litter(self) -> list[str]:
        """What it leaves beside its output."""
        return [path.name for path in self.output.parent.glob(f".{self.output.name}.*")]

    @property
    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(Path(f"{self.output}.report.json").read_bytes())
        return found

    def wait_for_bytes(self) -> None:
        """Wait until the export is in the middle of writing."""
        wait_until(lambda: bool(self.litter), f"staging folder of job {self.number}\n{self.log}", 90)
        assert not self.output.exists()

    def wait_for_a_shard(self) -> None:
        """Wait until the export has committed something, and is not at its end."""
        records = f".{self.output.name}.*/{file_names.SHARD_JSONS}/model-*.json"
        wait_until(lambda: any(self.output.parent.glob(records)), f"first shard of job {self.number}", 90)
        assert not self.output.exists()

    def check_complete(self, tmp_path: Path) -> None:
        """The output is whole, and nothing lies beside it."""
        assert self.cluster.ended(self.number)["JobState"] == "COMPLETED", self.log.read_text()
        run_python(["-m", "pp_export", "verify", str(self.output)], tmp_path, timeout_s=120).checked()
        assert self.report["status"] == "ok"


@pytest.fixture(scope="module")
def whole(cluster: Cluster, jobs: Path) -> Job:
    """An export on one node."""
    job = Job(cluster, jobs, "one_node.sbatch", "one-node")
    cluster.ended(job.number)
    return job


def test_one_node(whole: Job, tmp_path: Path) -> None:
    """The job completes, the folder verifies, the report and the log are where the template says."""
    whole.check_complete(tmp_path)
    assert whole.litter == []
    assert "exporting" in whole.log.read_text()


def test_many_nodes_make_the_same_bytes(cluster: Cluster, jobs: Path, whole: Job, tmp_path: Path) -> None:
    """Two nodes of two ranks are one world, and make what one process makes."""
    job = Job(cluster, jobs, "many_nodes.sbatch", "many-nodes", "--nodes=2")
    job.check_complete(tmp_path)
    assert job.litter == []
    assert len(job.report["planned_peak_bytes"]) == 4
    assert cluster.job(job.number)["NumNodes"] == "2"
    made, expected = (
        {name: data for name, data in files_of(folder).items() if name.endswith(".safetensors")}
        for folder in (job.output, whole.output)
    )
    assert made == expected


def test_a_consolidation_on_one_node_and_on_two(cluster: Cluster, jobs: Path, tmp_path: Path) -> None:
    """One process on one node, two ranks on each of two: both make what the ranks of the training job had."""
    (tmp_path / "saves").mkdir()
    saves = RankSaves(tmp_path / "saves")
    env = {"INPUT": str(saves.save("qwen2", "hf")), "REFERENCE": str(saves.source("qwen2"))}
    one = Job(cluster, jobs, "consolidate.sbatch", "consolidated", **env)
    one.check_complete(tmp_path)
    two = Job(cluster, jobs, "consolidate.sbatch", "consolidated-by-two", "--nodes=2", **env)
    two.check_complete(tmp_path)
    assert [len(job.report["planned_peak_bytes"]) for job in (one, two)] == [1, 4]
    made, expected, true = (
        {name: data for name, data in files_of(folder).items() if name.endswith(".safetensors")}
        for folder in (two.output, one.output, saves.source("qwen2"))
    )
    assert made == expected
    assert made.keys() == true.keys()
    assert one.litter == two.litter == []


def test_a_job_requeued_in_the_middle_goes_on(cluster: Cluster, jobs: Path, tmp_path: Path) -> None:
    """The ranks stop, the job comes back under its number and goes on with what it had committed."""
    job = Job(cluster, jobs, "many_nodes.sbatch", "requeued", "--nodes=2")
    job.wait_for_a_shard()
    cluster.told("scontrol", "requeue", job.number)
    cluster.wait_for_requeue(job.number)
    cluster.start_now(job.number)
    job.check_complete(tmp_path)
    assert cluster.job(job.number)["Restarts"] == "1"
    assert 0 < job.report["kept_bytes"] < job.report["total_size"]
    assert job.litter == []


def test_a_cancelled_job_leaves_what_is_committed(cluster: Cluster, jobs: Path, tmp_path: Path) -> None:
    """No folder; the report says that it was told to stop. Submitted again, on one node, it goes on."""
    job = Job(cluster, jobs, "many_nodes.sbatch", "cancelled", "--nodes=2")
    job.wait_for_a_shard()
    cluster.told("scancel", job.number)
    assert cluster.ended(job.number)["JobState"] == "CANCELLED"
    wait_until(lambda: all(name.endswith(("-kept", "-own")) for name in job.litter), "end of the ranks", 30)
    assert not job.output.exists()
    assert len(job.litter) == 2  # the folder, and the record of whose it was
    assert job.report["status"] == "failed"
    assert "SIGTERM" in json.dumps(job.report)
    again = Job(cluster, jobs, "one_node.sbatch", "cancelled")
    again.check_complete(tmp_path)
    assert again.report["kept_bytes"] > 0
    assert again.litter == []


def test_a_lost_node_brings_the_job_back(cluster: Cluster, jobs: Path, tmp_path: Path) -> None:
    """When a node is gone, Slurm queues the job again; with a node in its place it completes."""
    job = Job(cluster, jobs, "many_nodes.sbatch", "lost", "--nodes=2")
    job.wait_for_bytes()
    cluster.lose_node("n2")
    try:
        cluster.wait_for_requeue(job.number)
        assert not job.output.exists()
    finally:
        cluster.start_node("n2")
    cluster.wait_for_nodes()
    time.sleep(SETTLES_SECONDS)
    cluster.start_now(job.number)
    job.check_complete(tmp_path)


def test_time_is_used_to_stop(cluster: Cluster, jobs: Path) -> None:
    """Before its time is over the job is told to stop and publishes nothing: it fails, and is not cut off."""
    job = Job(cluster, jobs, "many_nodes.sbatch", "late", "--nodes=2", "--time=1", "--signal=TERM@58")
    state = cluster.ended(job.number)["JobState"]
    if state != "COMPLETED":  # Slurm looks at times now and then, and may be later than the export is
        assert state == "FAILED", job.log.read_text()
        assert not job.output.exists()


def test_an_array_with_a_bad_element(cluster: Cluster, jobs: Path, tmp_path: Path) -> None:
    """Each element is a job of its own: what is not there fails by name, the others complete. Submitted again
    they leave what is made as it is.
    """
    outputs = jobs / "iterations"
    outputs.mkdir()
    made: dict[str, int] = {}
    for _ in range(2):
        array = Job(cluster, jobs, "iterations.sbatch", "unused", "--array=100,150,200", OUTPUTS=str(outputs))
        states = _ended_elements(cluster, array.number)
        assert states == {"100": "COMPLETED", "150": "FAILED", "200": "COMPLETED"}
        assert {path.name for path in outputs.iterdir() if path.is_dir()} == {"iter_100", "iter_200"}
        report = json.loads((outputs / "iter_150.report.json").read_bytes())
        assert report["status"] == "failed"
        assert "150" in report["iterations"][0]["error"]["what"]
        times = {path.name: path.stat().st_mtime_ns for path in outputs.iterdir() if path.is_dir()}
        made = made or times
        assert times == made


def _ended_elements(cluster: Cluster, number: str) -> dict[str, str]:
    """The state of each element of an array when all have ended."""

    def states() -> dict[str, str]:
        return {each["ArrayTaskId"]: each["JobState"] for each in cluster.elements(number)}

    wait_until(lambda: set(states().values()) <= set(ENDED), "end of the array", 180)
    return states()


@pytest.mark.parametrize(
    ("launcher", "words"),
    [
        (("-n", "2"), ("-m",)),
        (
            ("-N", "2", "--ntasks-per-node=1"),
            ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", "-m"),
        ),
    ],
    ids=["no torchrun", "a torchrun of its own on each node"],
)
def test_processes_that_are_no_world_are_refused(
    cluster: Cluster, jobs: Path, tmp_path: Path, launcher: tuple[str, ...], words: tuple[str, ...]
) -> None:
    """They would each export everything to one folder: one says what to do instead, and nothing is made."""
    output = tmp_path / "output"
    command = [*words, "pp_export", "export", str(jobs / "job.yaml"), "--output", str(output)]
    done = subprocess.run(
        ["srun", *launcher, sys.executable, *command],
        cwd=tmp_path,
        env=cluster.env | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stderr.count("error: srun started 2") == 1
    assert "launch-template slurm-many-nodes" in done.stderr
    assert not list(tmp_path.glob("*output*"))
