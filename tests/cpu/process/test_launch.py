"""Claims: a start that would be several exports is refused by name, and no start that is one export is.

The variables are what Slurm 22.05, Open MPI 5, MPICH 4 and torchrun set.
"""

from __future__ import annotations

import pytest

from pp_export.core.errors import LaunchError
from pp_export.process import child
from pp_export.process.launch import check_launch, is_first

BATCH = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_NNODES": "2"}
"""What the script of a job with eight tasks has; it is one process."""
STEP = BATCH | {"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "3"}
TWO_TORCHRUNS = STEP | {"SLURM_STEP_NUM_TASKS": "2"}


def ranks(world_size: int, torchruns: int, rank: int = 0) -> dict[str, str]:
    """What torchrun gives a rank."""
    return {"RANK": str(rank), "WORLD_SIZE": str(world_size), "GROUP_WORLD_SIZE": str(torchruns)}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        BATCH,
        STEP | {"SLURM_STEP_NUM_TASKS": "1"},
        ranks(8, 1),
        BATCH | ranks(8, 1),
        TWO_TORCHRUNS | ranks(16, 2),
        STEP | {"RANK": "3", "WORLD_SIZE": "8"},  # set by a script of the user
        {"OMPI_COMM_WORLD_SIZE": "1"},
        {"SLURM_STEP_NUM_TASKS": "many"},
    ],
)
def test_what_is_one_export_goes_on(environment: dict[str, str]) -> None:
    """A lone process, one torchrun, one torchrun on each node, ranks that a script named."""
    check_launch(environment)


@pytest.mark.parametrize(
    ("environment", "launcher"),
    [
        (STEP, "srun"),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1"}, "mpirun"),
        ({"PMI_SIZE": "4", "PMI_RANK": "1"}, "mpiexec"),
    ],
)
def test_processes_that_know_nothing_of_each_other_are_refused(
    environment: dict[str, str], launcher: str
) -> None:
    """Each would export everything: the launcher is named, and which process says it."""
    with pytest.raises(LaunchError, match=f"{launcher} started . processes") as caught:
        check_launch(environment)
    assert caught.value.advice is not None
    assert launcher in caught.value.advice
    assert " of " in caught.value.where["process"]


def test_a_world_on_each_node_is_refused() -> None:
    """Two torchruns of one step that don't know each other; the line to use names the nodes."""
    with pytest.raises(LaunchError, match="2 torchruns") as caught:
        check_launch(TWO_TORCHRUNS | ranks(8, 1))
    assert "--nnodes=2" in str(caught.value)


@pytest.mark.parametrize("launched", [STEP, TWO_TORCHRUNS | ranks(8, 1)])
def test_a_background_export_is_one_of_its_own(
    monkeypatch: pytest.MonkeyPatch, launched: dict[str, str]
) -> None:
    """What a rank of such a job starts knows nothing of the launch, nor of the rank's error file."""
    for name, value in {**launched, "TORCHELASTIC_ERROR_FILE": "/dev/null"}.items():
        monkeypatch.setenv(name, value)
    environment = child.environment()
    check_launch(environment)
    assert is_first(environment)
    assert "TORCHELASTIC_ERROR_FILE" not in environment


def test_one_speaks_for_all() -> None:
    """Of what was started, one process is the first, on whichever level it was counted."""
    assert is_first({})
    assert is_first({"SLURM_PROCID": "0", "RANK": "0"})
    assert not is_first(STEP)
    assert not is_first(TWO_TORCHRUNS | ranks(8, 1))  # the first rank of the second torchrun
    assert not is_first(ranks(8, 1, rank=1))
