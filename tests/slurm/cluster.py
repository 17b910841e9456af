"""A real Slurm of two nodes on this machine: its controller, node daemons and own munge, in one folder.

Needs root, and the packages `slurmctld slurmd slurm-client munge`. Nothing of the machine's own Slurm
or munge is touched: sockets, ports, keys and state are this cluster's.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

NODES = ("n1", "n2")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
_CONF = """\
ClusterName=tests
SlurmctldHost={host}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
SlurmctldPort={port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=requeue_delay=0,batch_sched_delay=0
MpiDefault=none
JobRequeue=1
KillWait=20
SlurmdTimeout=10
SlurmctldTimeout=60
ReturnToService=2
AccountingStorageType=accounting_storage/none
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """What this machine lacks to run the cluster; empty where it lacks nothing."""
    programs = ("slurmctld", "slurmd", "munged", "sbatch", "scontrol", "srun")
    lacks = [name for name in programs if shutil.which(name, path=_PATH) is None]
    if lacks:
        return f"no {', '.join(lacks)}: make test-slurm installs them"
    return "" if os.geteuid() == 0 else "Slurm's daemons need root"


class Cluster:
    """The cluster in `folder`; a context that starts and stops it. `env` is what its clients need."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _PATH}
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Cluster:
        host, ports = socket.gethostname().partition(".")[0], _free_ports(1 + len(NODES))
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=64 RealMemory=256000"
            for name, port in zip(NODES, ports[1:])
        )
        conf = _CONF.format(host=host, folder=self.folder, port=ports[0], nodes=nodes)
        (self.folder / "slurm.conf").write_text(conf)
        (self.folder / "state").mkdir()
        try:
            self._start_munge()
            self._start("slurmctld", "slurmctld", "-D", "-i")
            for name in NODES:
                self.start_node(name)
            self.wait_for_nodes()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        for process in reversed(self._running.values()):
            process.terminate()
        for pid in _processes(f"SLURM_CONF={self.folder}/slurm.conf"):
            _send(signal.SIGKILL, pid)
        for process in self._running.values():
            process.kill()
            process.wait()

    def start_node(self, name: str) -> None:
        """Start the daemon of a node."""
        (self.folder / f"spool-{name}").mkdir(exist_ok=True)
        self._start(name, "slurmd", "-D", "-N", name)

    def lose_node(self, name: str) -> None:
        """End a node as a power cut does: its daemon and all that it started at once, so that none can tell
        of another's end.
        """
        process = self._running.pop(name)
        tasks = _processes(f"SLURMD_NODENAME={name}")
        pids = {process.pid, *tasks, *filter(_is_shepherd, map(_parent, tasks))}
        for sent in (signal.SIGSTOP, signal.SIGKILL):
            for pid in pids:
                _send(sent, pid)
        process.wait()
        shutil.rmtree(self.folder / f"spool-{name}")  # or its daemon takes the old step for a living one

    def submit(
        self, script: Path, *arguments: str, sbatch: tuple[str, ...] = (), cwd: Path, **env: str
    ) -> str:
        """Submit a script as users do; the job's number."""
        command = ("sbatch", "--parsable", *sbatch, str(script), *arguments)
        done = subprocess.run(
            command, cwd=cwd, env=self.env | env, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def told(self, *command: str) -> str:
        """What a client of Slurm prints."""
        return subprocess.run(
            command, env=self.env, capture_output=True, text=True, check=False, timeout=60
        ).stdout

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says of a job."""
        return self.elements(number)[0]

    def elements(self, number: str) -> list[dict[str, str]]:
        """The same of each element of an array; a job that is none is one."""
        lines = self.told("scontrol", "show", "job", number, "--oneliner").splitlines()
        return [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines]

    def ended(self, number: str, timeout_s: float = 120) -> dict[str, str]:
        """What Slurm says of a job when it has ended."""
        wait_until(lambda: self.job(number)["JobState"] in ENDED, f"end of job {number}", timeout_s)
        return self.job(number)

    def wait_for_requeue(self, number: str) -> None:
        """Wait until a job that was started is in the queue again."""
        wait_until(lambda: self._is_queued_again(number), f"requeue of {self.job(number)}", 90)

    def start_now(self, number: str) -> None:
        """Spare a job in the queue the two minutes for which Slurm holds back what it has queued again."""
        self.told("scontrol", "update", f"JobId={number}", "StartTime=now")

    def wait_for_nodes(self) -> None:
        """Wait until all nodes are idle: none is down, or still ends a job."""
        wait_until(lambda: self._idle() == len(NODES), "idle nodes")

    def _is_queued_again(self, number: str) -> bool:
        job = self.job(number)
        return job["JobState"] == "PENDING" and job["Restarts"] == "1"

    def _idle(self) -> int:
        return self.told("sinfo", "-h", "-N", "-o", "%T").split().count("idle")

    def _start(self, name: str, *command: str, user: int | None = None, group: int | None = None) -> None:
        with (self.folder / f"{name}.out").open("ab") as log:
            self._running[name] = subprocess.Popen(
                command,
                env=self.env,
                user=user,
                group=group,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _start_munge(self) -> None:
        """A munged of its own, as munge's user: it refuses folders that others may write."""
        at, user = self.folder / "munge", pwd.getpwnam("munge")
        at.mkdir()
        (at / "key").write_bytes(os.urandom(1024))
        (at / "key").chmod(0o400)
        for path in (at, at / "key"):
            os.chown(path, user.pw_uid, user.pw_gid)
        at.chmod(0o755)
        names = {
            "key-file": "key",
            "socket": "socket",
            "pid-file": "pid",
            "log-file": "log",
            "seed-file": "seed",
        }
        words = [f"--{option}={at / name}" for option, name in names.items()]
        self._start("munged", "munged", "--foreground", *words, user=user.pw_uid, group=user.pw_gid)
        wait_until((at / "socket").exists, "socket of munged")


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    """Wait until `condition` holds; AssertionError where it doesn't within the time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {timeout_s} s"
        time.sleep(0.1)


def _processes(variable: str) -> list[int]:
    """The processes whose environment has `variable`, but for this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if variable.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return [pid for pid in found if pid != os.getpid()]


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _is_shepherd(pid: int) -> bool:
    """Whether it is the daemon that looks after the tasks of a step."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip() == "slurmstepd"
    except OSError:
        return False


def _send(sent: signal.Signals, pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, sent)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
