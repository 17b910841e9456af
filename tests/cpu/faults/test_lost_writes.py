"""Claims: a power cut at any moment leaves a target that is what it was or what it is to be, however much of
what was not synced is lost.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from pp_export.core import file_names
from pp_export.disk import folders, litter
from tests.fixtures.exports import files_of
from tests.fixtures.lost_writes import Log, Tree, after_power_cuts, follow, write
from tests.fixtures.staged import MODES, Staged


@pytest.fixture(params=MODES)
def case(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Staged:
    if request.param == "two renames":
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    case = Staged(tmp_path / "root", request.param)
    case.prepare()
    return case


def below(tree: Tree, name: str) -> Tree | None:
    """The files of a folder; None where there is none."""
    if f"{name}/" not in tree:
        return None
    inside = {
        path.removeprefix(f"{name}/"): data for path, data in tree.items() if path.startswith(f"{name}/")
    }
    return {path: data for path, data in inside.items() if path and not path.endswith("/")}


def test_power_cuts(case: Staged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each call, with each choice of what is lost: the older export, the new one, or none and a next
    run that puts the older one back.
    """
    log = Log(case.root)
    with follow(log):
        assert case.publish() == []
    assert below(dict(list(after_power_cuts(log))[-1][1]), "target") == case.after
    monkeypatch.setattr(litter, "_is_over", lambda _: True)
    put_right = dict[str, bool]()
    for number, (what, tree) in enumerate(after_power_cuts(log)):
        found = below(tree, "target")
        if found in (case.before or None, case.after):
            continue
        assert found is None or file_names.INDEX not in found, what
        key = repr(sorted(tree.items()))
        if key not in put_right:
            root = tmp_path / str(number)
            write(tree, root)
            litter.put_right(root / "target")
            put_right[key] = files_of(root / "target") == case.before
        assert put_right[key], what
    assert len(put_right) > 0 or not (case.beside or case.mode == "two renames")


def test_the_simulator_sees_a_missing_sync(case: Staged, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the sync of the staging folders some power cut leaves a part of an export under its name."""
    monkeypatch.setattr(folders, "sync_folder", lambda _: None)
    log = Log(case.root)
    with follow(log):
        case.publish()
    targets = [below(tree, "target") for _, tree in after_power_cuts(log)]
    assert any(found not in (case.before or None, case.after) for found in targets)
