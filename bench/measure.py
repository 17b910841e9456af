"""Runs one command to its end and says what it took."""

from __future__ import annotations

import json
import os
import resource
import select
import shutil
import subprocess
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.memory import MemorySampler
from bench.variants import Variant
from tests.fixtures.launch import ROOT

SAMPLE_SECONDS = 0.02
_TAIL_CHARACTERS = 4000


@dataclass(frozen=True)
class Run:
    """One run of one variant. CPU seconds are those of all its processes; `report` is pp_export's own.

    `disk_busy` is for how much of the time the disk of its output had something to do; None where the kernel
    doesn't count it. `other_cores` is how many cores all else kept busy meanwhile, the kernel's own threads
    (which write dirty pages to the disk) and the sampling included: above a few tenths, somebody else was
    using the machine.
    """

    variant: str
    round: int
    wall_seconds: float
    cpu_seconds: float
    disk_busy: float | None
    other_cores: float
    peak_anonymous_bytes: int
    peak_resident_bytes: int
    num_samples: int
    processes: list[dict[str, Any]]
    phases: dict[str, float] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)


def clean(variant: Variant) -> None:
    """Remove what an earlier run made, and let the disk come to rest, so that no run pays for another."""
    if variant.output is not None and variant.output.exists():
        shutil.rmtree(variant.output)
    if variant.report is not None:
        variant.report.unlink(missing_ok=True)
    os.sync()


def run(variant: Variant, number: int, log: Path) -> Run:
    """Measure the whole process, from before it is started until it has ended. Its output goes to `log`."""
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": paths, "PYTHONWARNINGS": "ignore"}
    own_before, all_before = _own_cpu_seconds(), _all_cpu_seconds()
    disk_before = _disk_seconds(log.parent)
    with log.open("wb") as output:
        begin = time.perf_counter()
        process = subprocess.Popen(
            variant.command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            sampler = _sample_until_end(process.pid)
            status = process.wait()
            wall_seconds = time.perf_counter() - begin
        except BaseException:
            process.terminate()  # torchrun then ends its ranks
            process.wait()
            raise
    if status != 0:
        tail = log.read_text(errors="replace")[-_TAIL_CHARACTERS:]
        raise SystemExit(f"{' '.join(variant.command)}\nexit status {status}; its output ends with:\n{tail}")
    cpu_seconds = _own_cpu_seconds() - own_before
    other_seconds = max(0.0, _all_cpu_seconds() - all_before - cpu_seconds)
    disk_seconds = None if disk_before is None else (_disk_seconds(log.parent) or 0.0) - disk_before
    report = json.loads(variant.report.read_bytes()) if variant.report is not None else {}
    return Run(
        variant.name,
        number,
        wall_seconds,
        cpu_seconds,
        None if disk_seconds is None else min(1.0, disk_seconds / wall_seconds),
        other_seconds / wall_seconds,
        sampler.peak_bytes,
        sampler.resident_bytes,
        sampler.num_samples,
        [asdict(peak) for peak in sampler.processes.values()],
        report.get("seconds", {}),
        {key: report[key] for key in ("peak_anonymous_bytes", "planned_peak_bytes", "total_size") if report},
    )


def _own_cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _disk_seconds(folder: Path) -> float | None:
    """For how long the disk of `folder` has had something to do since the machine started."""
    device = os.stat(folder).st_dev
    numbers = [str(os.major(device)), str(os.minor(device))]
    for line in Path("/proc/diskstats").read_text().splitlines():
        fields = line.split()
        if fields[:2] == numbers:
            return int(fields[12]) / 1000
    return None


def _all_cpu_seconds() -> float:
    """What all cores together have spent on anything: user, nice, system, irq, softirq and stolen time."""
    ticks = [int(value) for value in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return sum(ticks[:3] + ticks[5:8]) / os.sysconf("SC_CLK_TCK")


def _sample_until_end(pid: int) -> MemorySampler:
    """Sample until the process has ended; the end is noticed at once, not at the next sample."""
    sampler = MemorySampler(pid)
    end = select.poll()
    descriptor = os.pidfd_open(pid)
    try:
        end.register(descriptor, select.POLLIN)
        while not end.poll(SAMPLE_SECONDS * 1000):
            sampler.sample()
    finally:
        os.close(descriptor)
    return sampler
