"""Claims: whichever call of a publication meets whatever fault, the target is what it was or what it is to
be, and the next run makes good what a killed one left.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pp_export.core import file_names
from pp_export.core.errors import TargetError
from pp_export.disk import litter
from tests.fixtures.disk_faults import FaultPlan, in_a_child, meeting
from tests.fixtures.staged import MODES, Staged


@pytest.fixture
def root() -> Iterator[Path]:
    """A folder in memory, where there is one: these tests sync some hundred thousand times."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "two renames":
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    return str(request.param)


def attempt(case: Staged, plan: FaultPlan) -> tuple[list[str] | None, TargetError | None]:
    """The notes of a publication, or its error."""
    with meeting(plan):
        try:
            return case.publish(), None
        except TargetError as error:
            return None, error


def first_call(root: Path, mode: str) -> int:
    """The call with which publishing begins, or making what is published: that is the same in all modes."""
    case, plan, begun = Staged(root / "undisturbed", mode), FaultPlan(0, ""), list[int]()
    case.prepare()
    with meeting(plan):
        assert case.publish(on_staged=lambda: begun.append(plan.count)) == []
    assert case.found() == case.after
    assert plan.count > begun[0] + 15
    return 1 if mode == "new" else begun[0] + 1


@pytest.mark.parametrize(
    ("kind", "sticky"),
    [("EIO", False), ("EIO", True), ("lost reply", False), ("lost reply", True), ("short write", True)],
)
def test_any_failing_call(root: Path, mode: str, kind: str, sticky: bool) -> None:
    """Success means that the new export is there; failure that the older one is, or nothing where there was
    nothing. Where the disk fails for good in between, it has no index, or no name, and the next run sees to
    it.
    """
    for number in range(first_call(root, mode), 1000):
        case = Staged(root / str(number), mode)
        case.prepare()
        plan = FaultPlan(number, kind, sticky)
        notes, error = attempt(case, plan)
        if plan.met is None:
            break
        found, call = case.found(), (number, plan.met)
        if error is None:
            assert found == case.after, (call, notes)
            assert notes or os.listdir(case.root) == ["target"], call
        elif sticky and found not in (case.before or None, case.after):
            assert (mode == "two renames") if found is None else (file_names.INDEX not in found), call
            assert found is None or "could not be put back" in error.findings[0], call
        else:
            assert found == (case.before or None) or (sticky and kind == "lost reply"), call
        if error is not None:
            rerun(case)
        shutil.rmtree(case.root)
    else:
        pytest.fail("the fault never stopped being met")


def rerun(case: Staged) -> None:
    """The next run, which names nobody's process as alive, gives what an undisturbed one gives."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(litter, "_is_over", lambda _: True)
        case.publish("b2")
    assert case.found() == case.after


def test_killed_at_any_call(root: Path, mode: str) -> None:
    """SIGKILL at any call: readers find the older export, the new one, or no index; the next run puts right
    and publishes, and what was left is named and can be removed.
    """
    number, status = first_call(root, mode) - 1, 1
    while status:
        number += 1
        case = Staged(root / str(number), mode)
        case.prepare()

        def killed(case: Staged = case, number: int = number) -> None:
            with meeting(FaultPlan(number, "SIGKILL")):
                case.publish()

        status = in_a_child(killed)
        found = case.found()
        if found not in (case.before or None, case.after):
            is_swapping = mode == "two renames" and found is None
            assert is_swapping or (found is not None and file_names.INDEX not in found), number
        if status:
            case.publish("b2")
            assert case.found() == case.after, number
            left = litter.leftovers_of(case.target)
            kept = [each.leftover.path for each in litter.remove(case.target) if not each.is_removed]
            assert [path.stat().st_size for path in kept] in ([], [0]), "a record that was never written"
            assert all("is gone" in each.life()[1] for each in left if each.path not in kept)
            for path in kept:
                path.unlink()
        assert os.listdir(case.root) == ["target"], number
        shutil.rmtree(case.root)


def test_a_reader_sees_one_export_or_the_other(root: Path, mode: str) -> None:
    """Who polls while names change: with an index, all files are of its generation; a folder of its own is
    never absent where the filesystem can exchange names.
    """
    seen = Counter[str]()
    for number in range(30):
        case = Staged(root / str(number), mode)
        case.prepare()
        is_over = threading.Event()

        def poll(case: Staged = case, is_over: threading.Event = is_over) -> None:
            while not is_over.is_set():
                seen[look_at(case)] += 1

        reader = threading.Thread(target=poll)
        reader.start()
        case.publish()
        is_over.set()
        reader.join()
        assert look_at(case) == "new"
        shutil.rmtree(case.root)
    allowed = {"old", "new", "changed meanwhile"}
    if case.beside or mode in ("new", "two renames"):
        allowed.add("none")
    assert set(seen) <= allowed, seen
    assert seen["old"] + seen["none"] > 0


def look_at(case: Staged) -> str:
    """Which export a reader finds that reads the index, and then all that it finds."""
    try:
        folder = case.target.stat().st_ino
        index = (case.target / file_names.INDEX).read_bytes()
        names = set(os.listdir(case.target))
        weights = {(case.target / name).read_bytes()[:3] for name in json.loads(index)["weight_map"].values()}
        again = (case.target / file_names.INDEX).read_bytes()
        if case.target.stat().st_ino != folder or again != index:
            return "changed meanwhile"
    except FileNotFoundError as error:
        is_there = error.filename not in (str(case.target), str(case.target / file_names.INDEX))
        return "changed meanwhile" if is_there or (case.target.exists() and not case.beside) else "none"
    generation = "new" if index == case.after[file_names.INDEX] else "old"
    assert weights == {generation.encode()}
    expected = case.after if generation == "new" else case.before
    assert {name.partition("/")[0] for name in expected} <= names
    return generation
