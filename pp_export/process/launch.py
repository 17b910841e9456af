"""Whether this process was started as one of the ranks of one export, from the environment of launchers.

Processes that don't know each other would each export everything, all to one folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pp_export.core.errors import LaunchError


class _Launcher(NamedTuple):
    """A program that starts many processes, and the variables that tell each how many and which it is."""

    name: str
    size: str
    number: str


_LAUNCHERS = (
    _Launcher("srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    _Launcher("mpirun", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    _Launcher("mpiexec", "PMI_SIZE", "PMI_RANK"),
)

_LAUNCHER_PROCESSES = (
    *("torchrun", "torch.distributed", "slurmstepd"),
    *("mpirun", "mpiexec", "orted", "prted", "hydra_pmi_proxy"),
)
"""What stands in the command line of a process that starts ranks."""

VARIABLES = frozenset(
    {
        *("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"),
        *("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_ERROR_FILE"),
        *(variable for launcher in _LAUNCHERS for variable in launcher[1:]),
    }
)
"""What makes a process a member of what a launcher started; for a process of its own they are left out."""


def check_launch(environment: Mapping[str, str]) -> None:
    """Raise LaunchError where several processes, or several torchruns, were started that are no one world."""
    for launcher in _LAUNCHERS:
        count = _number(environment, launcher.size)
        if count < 2:
            continue
        where = {"process": f"{environment.get(launcher.number, '?')} of {launcher.name}'s {count}"}
        if "WORLD_SIZE" not in environment:
            raise LaunchError(
                f"{launcher.name} started {count} processes that don't know of each other: each would export "
                "everything",
                where=where,
                expected="one process (it has a thread for each core), or one torchrun on each node",
                got=f"{launcher.size}={count} and no RANK or WORLD_SIZE",
                advice=_advice(launcher, environment),
            )
        torchruns = _number(environment, "GROUP_WORLD_SIZE")
        if 0 < torchruns < count:
            raise LaunchError(
                f"{launcher.name} started {count} torchruns, and each is a world of its own",
                where=where,
                expected=f"one world of {count} torchruns (--nnodes={count}, one rendezvous for all)",
                got=f"a torchrun that knows of {torchruns}",
                advice=_advice(launcher, environment),
            )


def is_first(environment: Mapping[str, str]) -> bool:
    """Whether this process is the one that speaks for all that its launchers started."""
    numbers = [environment.get(name, "0") for name in ("RANK", *(each.number for each in _LAUNCHERS))]
    return all(number == "0" for number in numbers)


def speaks(environment: Mapping[str, str]) -> bool:
    """Whether this process prints a result that all processes of its launch have alike. What a launcher's
    process has started speaks for itself, whatever rank it inherits.
    """
    return is_first(environment) or not _is_started_by_launcher()


def _is_started_by_launcher() -> bool:
    try:
        parent = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return False
    return any(name in parent for name in _LAUNCHER_PROCESSES)


def _advice(launcher: _Launcher, environment: Mapping[str, str]) -> str:
    nodes = _number(environment, "SLURM_STEP_NUM_NODES") if launcher.name == "srun" else 1
    if nodes < 2:
        alone = "python -m pp_export export ..."
        return (
            f"{launcher.name} -n 1 {alone}; for several nodes `pp_export launch-template slurm-many-nodes`; "
            f"where one process alone exports on purpose: env -u {launcher.size} {alone}"
        )
    return (
        f"srun --nodes={nodes} --ntasks-per-node=1 torchrun --nnodes={nodes} --nproc-per-node=RANKS "
        "--rdzv-backend=c10d --rdzv-id=$SLURM_JOB_ID --rdzv-endpoint=FIRST_HOST:PORT -m pp_export export ... "
        "(`pp_export launch-template slurm-many-nodes` is that)"
    )


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    return int(text) if text.isdecimal() else 0
