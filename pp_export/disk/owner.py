"""Whose a staging folder is, and whether that run still lives: what can be said for certain, and no more."""

from __future__ import annotations

import enum
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pp_export.core.errors import TargetError
from pp_export.disk.calls import attempt, quietly
from pp_export.disk.files import read_file
from pp_export.disk.folders import record_beside, sync_folder

_MAX_BYTES = 1 << 16
_ASK_SECONDS = 15.0
_NOT_RUNNING = {
    *("PENDING", "COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY"),
    *("BOOT_FAIL", "DEADLINE"),
}
_KINDS = {"int": int, "float": float, "list[str]": list}
_GENERIC_HOSTS = ("", "localhost", "localhost.localdomain")


class Life(enum.Enum):
    """What is known of a run: it lives, it is dead, or neither can be proved."""

    ALIVE, DEAD, UNKNOWN = "alive", "dead", "unknown"


@dataclass(frozen=True)
class Owner:
    """The process of rank 0 that made a staging folder, in run `run_id`, at `began` (seconds since 1970).

    `pid_started` is when the process began, in clock ticks since `boot` of the host; `pids` names the set of
    process ids that `pid` is one of (a container has its own). `replaces` is what the target was then.
    """

    run_id: str
    host: str
    machine: str
    boot: str
    pids: str
    pid: int
    pid_started: str
    began: float
    slurm_cluster: str
    slurm_job: str
    slurm_restart: int
    replaces: list[str]

    @classmethod
    def of_this_process(cls, run_id: str, replaces: list[str]) -> Owner:
        return cls(
            run_id=run_id,
            pid=os.getpid(),
            pid_started=_started(os.getpid()),
            began=time.time(),
            replaces=replaces,
            **{**_here(), **_slurm_job(os.environ)},
        )

    def __str__(self) -> str:
        job = f" of Slurm job {self.slurm_job}" if self.slurm_job else ""
        return f"process {self.pid}{job} on {self.host}"


def claim(staging: Path, run_id: str, replaces: list[str]) -> None:
    """Write down, beside it, that this process owns a staging folder; called on rank 0 before it makes one,
    or takes over that of an older run.
    """
    image = json.dumps(asdict(Owner.of_this_process(run_id, replaces)), indent=1).encode()
    path = record_beside(staging)  # a temporary name would be too long
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = attempt("create", path, os.open, path, flags, 0o666)
    try:
        while image:
            image = image[attempt("write", path, os.write, descriptor, image) :]
        attempt("fsync", path, os.fsync, descriptor)
    except BaseException:
        quietly(os.unlink, path)
        raise
    finally:
        quietly(os.close, descriptor)
    sync_folder(path.parent)


def read(staging: Path) -> Owner | None:
    """The owner of a staging folder; None where no record beside it says who that is."""
    try:
        value = json.loads(read_file(record_beside(staging), _MAX_BYTES))
        kinds = {field.name: _KINDS.get(str(field.type), str) for field in fields(Owner)}
        if isinstance(value, dict) and all(isinstance(value.get(name), kind) for name, kind in kinds.items()):
            return Owner(**{name: value[name] for name in kinds})
    except (TargetError, ValueError, RecursionError):
        return None
    return None


def check_own(staging: Path, run_id: str) -> Owner:
    """The record of a staging folder, if run `run_id` still owns it. Raises TargetError where another run has
    taken it, or its place.
    """
    owner = read(staging)
    if owner is None or owner.run_id != run_id:
        raise TargetError(
            "the staging folder is this run's no longer: another run has taken it over, or removed it",
            where={"folder": staging},
            expected=f"run {run_id}",
            got="no record of its owner" if owner is None else f"run {owner.run_id}, {owner}",
        )
    return owner


def life_of(owner: Owner, *, ask_slurm: bool) -> tuple[Life, str]:
    """Whether a run lives, and how that is known. `ask_slurm` lets squeue be asked, which takes a moment."""
    here = _here()
    if (owner.boot, owner.pids) == (here["boot"], here["pids"]) and owner.boot:
        if _started(owner.pid) == owner.pid_started:
            return Life.ALIVE, f"process {owner.pid} runs on this host"
        return Life.DEAD, f"process {owner.pid} of this host is gone"
    is_this_machine = owner.machine == here["machine"] and owner.machine and owner.host == here["host"]
    if is_this_machine and owner.boot != here["boot"] and owner.host not in _GENERIC_HOSTS:
        return Life.DEAD, f"{owner.host} was started again since"
    return _in_slurm(owner, ask_slurm) if owner.slurm_job else (Life.UNKNOWN, f"{owner.host} is another host")


def is_earlier_start(owner: Owner) -> bool:
    """Whether a run was one of this very Slurm job, before Slurm started the job again."""
    own = _slurm_job(os.environ)
    is_own_job = (owner.slurm_job, owner.slurm_cluster) == (own["slurm_job"], own["slurm_cluster"])
    return bool(owner.slurm_job) and is_own_job and owner.slurm_restart < own["slurm_restart"]


def _in_slurm(owner: Owner, ask: bool) -> tuple[Life, str]:
    if is_earlier_start(owner):
        return Life.DEAD, f"Slurm has started job {owner.slurm_job} again since"
    if not ask:
        return Life.UNKNOWN, f"Slurm job {owner.slurm_job} was not asked for"
    config = _output("scontrol", "show", "config") or ""
    cluster = re.search(r"^ClusterName\s*=\s*(\S+)", config, re.MULTILINE)
    if cluster is None or cluster[1] != owner.slurm_cluster:
        return (
            Life.UNKNOWN,
            f"job {owner.slurm_job} is of a Slurm that this host can't ask",
        )
    states = _output("squeue", "--noheader", "--states=all", f"--jobs={owner.slurm_job}", "--format=%T")
    if states is None:
        return Life.UNKNOWN, "squeue gives no answer"
    if set(states.split()) <= _NOT_RUNNING:
        return Life.DEAD, f"Slurm job {owner.slurm_job} doesn't run"
    return Life.ALIVE, f"Slurm job {owner.slurm_job} runs"


def _output(*command: str) -> str | None:
    """What a command of Slurm prints. A job that it has forgotten is an empty answer; no answer is None."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ASK_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0:
        return "" if "Invalid job id" in done.stderr else None
    return done.stdout


def _here() -> dict[str, str]:
    """What tells this host, and its set of process ids, from others."""
    try:
        pids = str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        pids = ""
    boot, machine = _text("/proc/sys/kernel/random/boot_id"), _text("/etc/machine-id")
    return {"host": platform.node(), "machine": machine, "boot": boot, "pids": pids}


def _slurm_job(environment: Mapping[str, str]) -> dict[str, Any]:
    restart = environment.get("SLURM_RESTART_COUNT", "0")
    return {
        "slurm_cluster": environment.get("SLURM_CLUSTER_NAME", ""),
        "slurm_job": environment.get("SLURM_JOB_ID", ""),
        "slurm_restart": int(restart) if restart.isdecimal() else 0,
    }


def _started(pid: int) -> str:
    """When a process began; nothing where there is none, or only what is left of one."""
    stat = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return "" if len(stat) < 20 or stat[0] == "Z" else stat[19]


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except (OSError, ValueError):
        return ""
