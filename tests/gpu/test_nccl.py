"""Claims: over NCCL the export gives the bytes that it gives over Gloo, no plan and no failure can make it
hang, and values go from the GPU to the leader without memory of their own.

A GPU machine need not have megatron-core: checkpoint and model are those of `tests.fixtures.toy_qwen2`. Where
there is one GPU, its ranks are hosts of their own for NCCL (`tests.fixtures.hosts`).
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pp_export.core import file_names
from tests.fixtures import toy_qwen2
from tests.fixtures.exports import files_of
from tests.fixtures.gpu_job import SCHEMES
from tests.fixtures.processes import is_alive, run_python, started, torchrun

NUM_GPUS = torch.cuda.device_count()
PLANS_EACH = 110

pytestmark = pytest.mark.skipif(NUM_GPUS == 0, reason="needs an NVIDIA GPU")


def launched(num_ranks: int, *command: str) -> list[str]:
    """A command for ranks with a GPU each, or, where there are fewer, with hosts that share them."""
    own = ("-m",) if num_ranks <= NUM_GPUS else ("-m", "tests.fixtures.hosts")
    return torchrun(num_ranks, *own, *command)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_qwen2.write_reference(tmp_path_factory.mktemp("reference") / "folder")


@pytest.fixture(scope="module")
def inputs(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that name a checkpoint and its reference."""
    checkpoint = toy_qwen2.write_checkpoint(tmp_path_factory.mktemp("checkpoint"))
    return ["--checkpoint", str(checkpoint), "--reference", str(reference)]


def export(inputs: list[str], folder: Path, num_ranks: int, *options: str) -> dict[str, bytes]:
    """The files of an export under torchrun, but the manifest, which tells how they were made."""
    command = launched(
        num_ranks, "pp_export", "export", *inputs, "--output", str(folder / "export"), *options
    )
    folder.mkdir()
    run_python(command, folder / "printed", timeout_s=120).checked()
    files = files_of(folder / "export")
    return {name: data for name, data in files.items() if name != file_names.MANIFEST}


@pytest.fixture(scope="module")
def over_gloo(inputs: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an export by one rank over Gloo."""
    folder = tmp_path_factory.mktemp("gloo") / "1"
    files = export(inputs, folder, 1, "--backend", "gloo", "--max-shard-size", "1MB")
    assert file_names.SUMS in files
    return files


@pytest.mark.parametrize(("num_ranks", "leaders"), [(1, "all"), (2, "1"), (4, "all")])
def test_files_go_over_nccl(
    inputs: list[str], over_gloo: dict[str, bytes], tmp_path: Path, num_ranks: int, leaders: str
) -> None:
    """Ranks of one stage, one or all of them leading, send over NCCL what they read from files, and give the
    files of a CPU export; the report counts what was sent.
    """
    report = tmp_path / "report.json"
    grid = ["--pipeline-parallel", "1", "--tensor-parallel", str(num_ranks), "--leaders-per-stage", leaders]
    options = ["--backend", "nccl", "--max-shard-size", "1MB", "--report", str(report), *grid]
    assert export(inputs, tmp_path / "nccl", num_ranks, *options) == over_gloo
    told = json.loads(report.read_text())
    assert (told["backend"], bool(told["links"])) == (("nccl", True) if num_ranks > 1 else (None, False))


@pytest.mark.parametrize(("num_ranks", "device"), [(2, "cuda"), (2, "cpu"), (4, "cuda")])
def test_random_plans_come_to_their_end(tmp_path: Path, num_ranks: int, device: str) -> None:
    """Whoever leads and whoever reads, values in GPU or host memory, contiguous or not: every plan is walked,
    every file is right, exactly the planned bytes are sent, and nothing stays on the device.
    """
    count = PLANS_EACH if device == "cuda" else PLANS_EACH // 4
    arguments = [str(tmp_path), "nccl", device, str(100 * num_ranks), str(count)]
    command = launched(num_ranks, "tests.fixtures.random_plans", *arguments)
    run_python(command, tmp_path / "printed", timeout_s=200).checked()
    for rank in range(num_ranks):
        found = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert (found["walked"], found["faults"]) == (count, [])
        assert found.get("left on the device", 0) == 0


@pytest.fixture(scope="module")
def job(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """What the ranks of a job with its model on GPUs found, and where its exports are."""
    folder = tmp_path_factory.mktemp("job")
    command = launched(2, "tests.fixtures.gpu_job", str(folder), str(reference), "cuda")
    run_python(command, folder / "printed", timeout_s=200).checked()
    return folder, [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


def weights(sums: bytes) -> list[bytes]:
    """The lines of SHA256SUMS that are of weights."""
    return [line for line in sums.splitlines() if line.endswith(b".safetensors")]


@pytest.mark.parametrize("name", ["nccl", "gloo", "auto", "small buckets"])
def test_a_live_model_gives_the_bytes_of_files(
    job: tuple[Path, list[dict[str, Any]]], over_gloo: dict[str, bytes], name: str
) -> None:
    """A model in parts on GPUs, all ranks leading, is exported over either backend with the bytes of a
    checkpoint of it.
    """
    folder, ranks = job
    found = weights((folder / name / file_names.SUMS).read_bytes())
    assert found == weights(over_gloo[file_names.SUMS])
    assert len(found) > 5
    for rank in ranks:
        assert rank[name]["backend"] == ("gloo" if name == "gloo" else "nccl")
    assert {(link["sender"], link["receiver"]) for link in ranks[0][name]["links"]} == {(0, 1), (1, 0)}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_gpu_model_is_quantized_as_files_are(
    job: tuple[Path, list[dict[str, Any]]], inputs: list[str], tmp_path: Path, scheme: str
) -> None:
    """Weights in parts on GPUs are whole before they are quantized, and have the bytes of a CPU's export."""
    options = ["--backend", "gloo", "--max-shard-size", "1MB", "--quantize", scheme]
    on_cpu = export(inputs, tmp_path / "files", 1, *options)
    folder, ranks = job
    assert weights((folder / scheme / file_names.SUMS).read_bytes()) == weights(on_cpu[file_names.SUMS])
    assert ranks[0][scheme]["quantized"]


@pytest.mark.parametrize("name", ["nccl", "gloo", "auto", "small buckets", "fault round"])
def test_nothing_stays_on_the_gpu(job: tuple[Path, list[dict[str, Any]]], name: str) -> None:
    """Allocated before and after are the same, and meanwhile no more than the buckets of the rounds."""
    for rank in job[1]:
        assert rank[f"{name} measured"]["left"] == 0
        assert rank[f"{name} measured"]["peak"] <= 3 * (8 << 20) * 2


@pytest.mark.parametrize("where", ["connect", "round", "last"])
def test_a_rank_that_raises_ends_all_and_leaves_the_job(
    job: tuple[Path, list[dict[str, Any]]], where: str
) -> None:
    """Before the first round, in a round and after the last: all ranks raise within seconds the error of the
    rank at fault, and the job's collectives over NCCL go on, as does the next export.
    """
    ranks = job[1]
    for rank in ranks:
        error = rank[f"fault {where}"]
        assert error == ranks[0][f"fault {where}"]
        assert f"injected into {where}" in error["what"]
        assert error["where"]["rank"] == "1"
        assert rank[f"fault {where} measured"]["seconds"] < 20
        assert set(rank["works"]) == {2.0}
        assert rank["threads"] == []
        assert rank["keys"] == 0


def test_a_rank_that_is_killed_ends_all(tmp_path: Path) -> None:
    """SIGKILL for a rank while rounds go over NCCL: no other rank stays behind."""
    command = launched(2, "tests.fixtures.random_plans", str(tmp_path), "nccl", "cuda", "0", "1000")
    with started(command, tmp_path / "printed") as running:
        deadline = time.monotonic() + 60
        while not (marks := sorted(tmp_path.glob("walking.*"))) or len(marks) < 2:
            assert running.process.poll() is None, running.wait(1).stderr
            assert time.monotonic() < deadline
            time.sleep(0.1)
        pids = [int(mark.read_text()) for mark in marks]
        os.kill(pids[1], signal.SIGKILL)
        killed = time.monotonic()
        assert running.wait(60).status != 0
        assert time.monotonic() - killed < 40
    assert not [pid for pid in pids if is_alive(pid)]


def test_a_parameter_that_is_still_written_is_waited_for(
    job: tuple[Path, list[dict[str, Any]]], over_gloo: dict[str, bytes]
) -> None:
    """What the job has sent to its GPU before the call, on a stream of its own, is in the export."""
    from safetensors import safe_open

    name = "model.norm.weight"
    index = json.loads(over_gloo[file_names.INDEX])["weight_map"]
    with safe_open(job[0] / "written late" / index[name], framework="pt") as file:
        written = file.get_tensor(name)
    before = toy_qwen2.values()["decoder.final_layernorm.weight"]
    assert torch.equal(written, before + before)
