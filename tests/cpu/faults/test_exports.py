"""Claims: whichever filesystem call of a whole export meets whatever fault, the output is what it was or is
proved, the report says which, nothing is left that hinders, and the next export has the right bytes.

One process, every call. `make test-faults` runs every kind of fault in every mode; else kinds take turns
where modes do the same.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import pp_export
from pp_export.core import file_names
from pp_export.core.errors import ExportError, StoppedError, TargetError
from pp_export.disk import litter
from pp_export.process import signals
from pp_export.steps.report import ExportReport
from pp_export.steps.target import Target
from tests.fixtures import smallest
from tests.fixtures.disk_faults import KINDS, FaultPlan, in_a_child, meeting
from tests.fixtures.exports import files_of, remembering

ALL = bool(os.environ.get("PP_EXPORT_TEST_ALL_FAULTS"))
MODES: dict[str, dict[str, Any]] = {
    "new": {},
    "overwrite": {"overwrite": True},
    "model": {"overwrite": True, "contents": "model"},
    "weights": {"overwrite": True, "contents": "weights"},
}
FAULTS = [
    (kind, sticky) for kind in KINDS for sticky in (False, True) if not kind.startswith("SIG") or not sticky
]
FEW = [("EIO", False), ("ENOSPC", True), ("SIGKILL", False)]
Tree = dict[str, bytes]


@dataclass(frozen=True)
class Inputs:
    """What is exported, in a folder in memory where there is one."""

    root: Path
    checkpoint: Path
    reference: Path

    def export(self, folder: Path, **options: Any) -> ExportReport:
        """Export to `folder`/target, and report to `folder`.json."""
        report = folder.with_suffix(".json")
        with remembering():
            done: ExportReport = pp_export.export_checkpoint(
                self.checkpoint,
                reference=self.reference,
                output=folder / "target",
                report=report,
                threads=1,
                **options,
            )
        return done


@pytest.fixture(scope="module")
def inputs() -> Iterator[Inputs]:
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    root = folder / "root"  # a report lies beside it
    inputs = Inputs(root, *smallest.write(root))
    inputs.export(root, parents=True)  # what transformers says is known from now on, to forks too
    yield inputs
    shutil.rmtree(folder)


class Case:
    """Exports in one mode: what is there before, what is to be, and what each run made of it."""

    def __init__(self, inputs: Inputs, mode: str) -> None:
        self.inputs, self.mode, self.options = inputs, mode, MODES[mode]
        self.prepared = inputs.root / f"before {mode}"
        (self.prepared / "target").mkdir(parents=True)
        if mode == "new":
            (self.prepared / "target").rmdir()
        else:
            inputs.export(self.prepared, max_shard_size="2KB", overwrite=True)
        if mode in ("model", "weights"):
            (self.prepared / "target" / "notes.txt").write_text("theirs")
        self.before = files_of(self.prepared)
        folder, plan, begun = self.fresh("undisturbed"), FaultPlan(0, ""), list[int]()
        publish = Target.publish

        def noting(target: Target, *arguments: Any) -> list[str]:
            begun.append(plan.count)
            return publish(target, *arguments)

        with meeting(plan), pytest.MonkeyPatch.context() as patch:
            patch.setattr(Target, "publish", noting)
            inputs.export(folder, **self.options)
        self.after, self.num_calls, self.first_of_publication = files_of(folder), plan.count, begun[0]
        assert pp_export.verify(folder / "target").ok
        assert self.after != self.before

    def fresh(self, name: str) -> Path:
        """A folder with what is there before an export."""
        folder = self.inputs.root / f"{self.mode} {name}"
        shutil.copytree(self.prepared, folder)
        return folder

    def look_at(self, folder: Path, plan: FaultPlan, outcome: ExportReport | ExportError) -> None:
        """Assert what holds after every run that ended by itself."""
        report, found = folder.with_suffix(".json"), files_of(folder)
        targets = {name: data for name, data in found.items() if name.startswith("target/")}
        told = json.loads(report.read_text()) if report.exists() else {}
        if isinstance(outcome, ExportReport):
            assert targets == self.after, plan
            assert told.get("status") == "ok" or any(
                "published; afterwards" in note for note in outcome.notes
            ), plan
            is_clean = not any("afterwards" in note for note in outcome.notes)
        else:
            assert isinstance(outcome, TargetError), (plan, outcome)
            assert "may be a defect" not in str(outcome), (plan, outcome)
            assert told.get("status") == "failed" or plan.sticky, plan
            is_unsettled = any("could not be put back" in finding for finding in outcome.findings)
            if not (plan.sticky and is_unsettled):
                assert targets == self.before, plan
            assert f"target/{file_names.INDEX}" not in targets or targets in (self.before, self.after), plan
            is_clean = not plan.sticky
        assert not is_clean or targets == found, plan

    def rerun(self, folder: Path) -> None:
        """The next export has the right bytes."""
        if self.mode == "new" and (folder / "target").exists():
            return
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(litter, "_is_over", lambda _: True)  # this process lives
            self.inputs.export(folder, **self.options)
        found = files_of(folder)
        assert {name: data for name, data in found.items() if name.startswith("target/")} == self.after


@pytest.fixture(scope="module", params=MODES)
def case(request: pytest.FixtureRequest, inputs: Inputs) -> Case:
    return Case(inputs, request.param)


def faults_of(case: Case) -> Iterator[tuple[int, str, bool]]:
    """The calls that meet a fault, and which."""
    for number in range(1, case.num_calls + 3):
        if ALL:
            yield from ((number, kind, sticky) for kind, sticky in FAULTS)
        elif case.mode == "new" or number > case.first_of_publication:
            yield (number, *FEW[number % len(FEW)])
            if case.mode == "new":
                yield (number, *FAULTS[number % len(FAULTS)])
            elif case.mode == "model":
                yield number, "lost reply", False  # each name may have changed after all


def test_every_call(case: Case) -> None:
    """Errors, short writes, lost replies, delays, SIGKILL and SIGSTOP, once or for good."""
    descriptors, threads = num_open_files(), threading.active_count()
    for number, kind, sticky in faults_of(case):
        folder, plan = case.fresh(f"{number} {kind} {sticky}"), FaultPlan(number, kind, sticky)
        if kind.startswith("SIG"):
            check_killed(case, folder, plan)
        else:
            try:
                with meeting(plan):
                    outcome: ExportReport | ExportError = case.inputs.export(folder, **case.options)
            except ExportError as error:
                outcome = error
            case.look_at(folder, plan, outcome)
        if number % 5 == 0 or ALL:
            case.rerun(folder)
        shutil.rmtree(folder)
    assert (num_open_files(), threading.active_count()) == (descriptors, threads)


def test_told_to_stop_at_any_call(case: Case) -> None:
    """SIGTERM at any call: stopped and nothing changed, or published and a success, though it came before the
    older export was removed and the report written.
    """
    ends = set()
    for number in range(1 if ALL else max(1, case.first_of_publication - 5), case.num_calls + 1):
        folder, plan = case.fresh(f"{number} SIGTERM"), FaultPlan(number, "SIGTERM", sticky=True)

        def told(folder: Path = folder, plan: FaultPlan = plan) -> int:
            signals.install()
            with meeting(plan):
                try:
                    case.inputs.export(folder, **case.options)
                except StoppedError:
                    return 3
            return 0

        end = in_a_child(told)
        found, report = files_of(folder), json.loads(folder.with_suffix(".json").read_text())
        expected = {0: (case.after, "ok"), 3: (case.before, "failed")}[end]
        assert (found, report["status"]) == expected, number
        ends.add(end)
        shutil.rmtree(folder)
    assert ends == {0, 3}


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
@pytest.mark.parametrize("contents", ["folder", "model"])
def test_two_exports_to_one_output(inputs: Inputs, contents: str, overwrite: bool) -> None:
    """Two processes that begin to publish at the same moment: one is published, the other is refused with the
    reason, and nothing is left of it.
    """
    options: dict[str, Any] = {"contents": contents, "overwrite": overwrite}
    for number in range(8):
        folder = inputs.root / f"two {contents} {overwrite} {number}"
        folder.mkdir()
        if overwrite or contents == "model":
            (folder / "target").mkdir()
        if overwrite:
            inputs.export(folder, overwrite=True, max_shard_size="2KB")
        ready = [os.pipe() for _ in range(2)]

        def one(own: int, other: int, folder: Path = folder, ready: Any = ready) -> int:
            publish = Target.publish

            def together(target: Target, *arguments: Any) -> list[str]:
                os.write(ready[other][1], b"x")
                os.read(ready[own][0], 1)
                return publish(target, *arguments)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Target, "publish", together)
                try:
                    inputs.export(folder, **options)
                except TargetError as error:
                    (folder / f"refused {own}").write_text(error.what)
                    return 3
            return 0

        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(in_a_child, lambda: one(0, 1))
            ends = {in_a_child(lambda: one(1, 0)), first.result()}
        assert ends == {0, 3}, number
        assert pp_export.verify(folder / "target").ok
        refused = [name for name in os.listdir(folder) if name != "target"]
        assert len(refused) == 1, refused
        assert (folder / refused[0]).read_text()
        shutil.rmtree(folder)
        for end in (end for pair in ready for end in pair):
            os.close(end)


def check_killed(case: Case, folder: Path, plan: FaultPlan) -> None:
    """A run that is killed leaves what was there, what is to be, or no index; the next names what is left."""

    def killed() -> None:
        with meeting(plan):
            case.inputs.export(folder, **case.options)

    status = in_a_child(killed)
    found = files_of(folder)
    targets = {name: data for name, data in found.items() if name.startswith("target/")}
    assert targets in (case.before, case.after) or f"target/{file_names.INDEX}" not in targets, plan
    if status and targets != found:
        left = litter.leftovers_of(folder / "target")
        assert left, plan
        removed = litter.remove(folder)
        assert all(each.is_removed for each in removed if each.leftover.owner is not None), plan
        targets = {name: data for name, data in files_of(folder).items() if name.startswith("target/")}
        assert targets in (case.before, case.after), plan


def num_open_files() -> int:
    return len(os.listdir("/proc/self/fd"))
