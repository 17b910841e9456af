"""Claims of `pp_export.disk.cache`: what is kept is private, bounded and whole, and nothing raises."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pp_export.disk.cache import UserCache


def test_what_is_kept_is_read_again(tmp_path: Path) -> None:
    """Also after it was replaced; what was never kept is nothing."""
    kept = UserCache(tmp_path / "a" / "b", 1000)
    assert kept.read("x") is None
    for data in (b"one", b"", b"two"):
        kept.keep("x", data)
        assert kept.read("x") == data
    assert kept.read("y") is None


def test_files_are_private(tmp_path: Path) -> None:
    """Nobody else can read or write the folder and what is in it, whatever the umask."""
    before = os.umask(0)
    try:
        UserCache(tmp_path / "c", 1000).keep("x", b"data")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "c", tmp_path / "c" / "x")]
    assert modes == [0o700, 0o600]


def test_the_oldest_make_room(tmp_path: Path) -> None:
    """In all there are never more bytes than the bound; the youngest stay, and what a killed writer left goes
    like an entry.
    """
    kept = UserCache(tmp_path, 3 * (100 + 64))
    left = tmp_path / "tmpleft"
    left.write_bytes(b"x" * 150)
    os.utime(left, (1, 1))
    for number in range(5):
        kept.keep(str(number), b"x" * 100)
        os.utime(tmp_path / str(number), (number + 2, number + 2))
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= kept.max_bytes
    assert sorted(os.listdir(tmp_path)) == ["2", "3", "4"]


def test_what_is_larger_than_all_is_not_kept(tmp_path: Path) -> None:
    """It would push out everything else, and then itself."""
    kept = UserCache(tmp_path, 200)
    kept.keep("small", b"x" * 100)
    kept.keep("large", b"x" * 150)
    assert kept.read("large") is None
    assert kept.read("small") == b"x" * 100


def test_a_link_or_a_pipe_is_nothing(tmp_path: Path) -> None:
    """Neither is followed, waited for or read."""
    kept = UserCache(tmp_path, 1000)
    kept.keep("real", b"data")
    (tmp_path / "link").symlink_to("real")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    assert [kept.read(name) for name in ("link", "pipe", "folder")] == [None] * 3


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path: Path) -> None:
    """Where a file stands in the way, nothing is kept, and nothing is raised."""
    (tmp_path / "file").write_text("mine")
    kept = UserCache(tmp_path / "file" / "cache", 1000)
    kept.keep("x", b"data")
    assert kept.read("x") is None
    assert (tmp_path / "file").read_text() == "mine"


def test_a_disk_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the last step fails, the entry is not there, and no file of it either."""

    def fail(*_: object) -> None:
        raise OSError(28, "no space left")

    kept = UserCache(tmp_path, 1000)
    monkeypatch.setattr(os, "rename", fail)
    kept.keep("x", b"data")
    assert os.listdir(tmp_path) == []


def test_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In $XDG_CACHE_HOME where that is a full path, else in the home; a user without a home has none."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = UserCache.of_user("things", 1)
    assert found is not None
    assert found.folder == tmp_path / "pp_export" / "things"
    for relative in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", relative)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        found = UserCache.of_user("things", 1)
        assert found is not None
        assert found.folder == tmp_path / "home" / ".cache" / "pp_export" / "things"
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as where passwd knows no such user
    assert UserCache.of_user("things", 1) is None
