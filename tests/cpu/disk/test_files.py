"""Claims of `pp_export.disk.files` and `pp_export.disk.publish`: what has its final name is whole,
whatever call fails; only own files are removed.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import io
import json
import mmap
import os
import random
import resource
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pp_export.core import file_names
from pp_export.core.digest import STEP_BYTES
from pp_export.core.errors import TargetError
from pp_export.disk import beside, calls, files, folders
from pp_export.disk import publish as publishing
from pp_export.disk.files import NewFile, copy_file, write_file

TEMPORARY = f".f.{os.getpid()}.tmp"
DATA = bytes(range(256)) * 40
WATCHED = (
    "open",
    "posix_fallocate",
    "write",
    "fchmod",
    "fsync",
    "close",
    "rename",
    "chmod",
    "unlink",
    "replace",
)


class FaultyOs:
    """The `os` module, but a watched call number `fail_at` (from 0) raises `code`; counts the watched
    calls.
    """

    def __init__(
        self, fail_at: int | None = None, code: int = errno.EIO, only: tuple[str, ...] = WATCHED
    ) -> None:
        self.fail_at, self.code, self.only = fail_at, code, only
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in self.only:
            return real

        def call(*arguments: Any, **named: Any) -> Any:
            self.calls.append(name)
            if len(self.calls) - 1 == self.fail_at:
                if name == "close":
                    real(*arguments)
                raise OSError(self.code, os.strerror(self.code))
            return real(*arguments, **named)

        return call


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FaultyOs]:
    def install(
        fail_at: int | None = None, code: int = errno.EIO, only: tuple[str, ...] = WATCHED
    ) -> FaultyOs:
        faulty_os = FaultyOs(fail_at, code, only)
        for module in (beside, calls, files, folders, publishing):
            monkeypatch.setattr(module, "os", faulty_os)
        return faulty_os

    return install


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    """`os.umask`, set back afterwards."""
    before = os.umask(0o022)
    os.umask(before)
    yield os.umask
    os.umask(before)


def publish(staging: Path, target: Path, *, overwrite: bool) -> list[str]:
    """The last step of an export."""
    publishing.check_target(target, overwrite=overwrite)
    return publishing.publish(staging, target)


def listing(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def num_open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


# --- files


@pytest.mark.parametrize(
    "parts", [[], [b""], [DATA], [b"a", memoryview(DATA), b""], [b"x" * (STEP_BYTES + 1)]]
)
def test_a_file_has_exactly_its_parts(tmp_path: Path, parts: list[bytes]) -> None:
    """The file holds the parts one after another and nothing else is left beside it."""
    write_file(tmp_path / "f", parts)
    assert (tmp_path / "f").read_bytes() == b"".join(map(bytes, parts))
    assert listing(tmp_path) == ["f"]


def test_views_of_wider_elements_count_their_bytes(tmp_path: Path) -> None:
    """A view of 8-byte elements is written with all of its bytes."""
    view = memoryview(DATA).cast("Q")
    write_file(tmp_path / "f", [view])
    assert (tmp_path / "f").read_bytes() == DATA


def test_a_short_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system writes fewer bytes than asked, the rest follows."""
    faulty_os = FaultyOs()
    faulty_os.write = lambda descriptor, data: os.write(descriptor, data[:7])  # type: ignore[attr-defined]
    monkeypatch.setattr(files, "os", faulty_os)
    write_file(tmp_path / "f", [DATA])
    assert (tmp_path / "f").read_bytes() == DATA


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002, 0o027])
def test_modes_follow_the_umask(tmp_path: Path, umask: Callable[[int], int], mask: int) -> None:
    """Files and the published folder have the modes that the umask gives, like any program's."""
    umask(mask)
    folders.make_folder(tmp_path / "staging")
    assert mode(tmp_path / "staging") == 0o700
    write_file(tmp_path / "staging" / "f", [DATA])
    copy_file(tmp_path / "staging" / "f", tmp_path / "staging" / "sub" / "g")
    publish(tmp_path / "staging", tmp_path / "target", overwrite=False)
    assert mode(tmp_path / "target") == 0o777 & ~mask
    assert mode(tmp_path / "target" / "f") == 0o666 & ~mask
    assert mode(tmp_path / "target" / "sub" / "g") == 0o666 & ~mask
    assert os.umask(mask) == mask


def test_nothing_has_the_final_name_before_commit(tmp_path: Path) -> None:
    """Until `commit` there is only a hidden temporary file, which nobody else may read."""
    file = NewFile(tmp_path / "f", len(DATA))
    file.write(DATA)
    assert listing(tmp_path) == [TEMPORARY]
    assert mode(tmp_path / TEMPORARY) == 0o600
    file.commit()
    assert listing(tmp_path) == ["f"]


def test_a_temporary_name_that_exists_is_not_taken_over(tmp_path: Path) -> None:
    """A file or a link under the temporary name is neither followed nor overwritten."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"keep")
    for make in (
        lambda: (tmp_path / TEMPORARY).symlink_to(victim),
        lambda: (tmp_path / TEMPORARY).write_bytes(b"x"),
    ):
        make()
        with pytest.raises(TargetError, match="create failed") as caught:
            write_file(tmp_path / "f", [DATA])
        assert caught.value.where == {"operation": "create", "file": str(tmp_path / "f")}
        assert listing(tmp_path) == [TEMPORARY, "victim"]
        assert victim.read_bytes() == b"keep"
        (tmp_path / TEMPORARY).unlink()


def test_the_final_name_is_replaced_as_a_name(tmp_path: Path) -> None:
    """An old file is replaced in one step; where the name is a link, the link is replaced and not
    followed.
    """
    victim = tmp_path / "victim"
    victim.write_bytes(b"keep")
    (tmp_path / "f").symlink_to(victim)
    write_file(tmp_path / "f", [DATA])
    assert (tmp_path / "f").read_bytes() == DATA
    assert not (tmp_path / "f").is_symlink()
    assert victim.read_bytes() == b"keep"


@pytest.mark.parametrize("num_bytes", [0, len(DATA) - 1, len(DATA) + 1])
def test_another_number_of_bytes_than_planned_is_refused(tmp_path: Path, num_bytes: int) -> None:
    """A file that got more or fewer bytes than announced never gets its name, and the error has both
    numbers.
    """
    file = NewFile(tmp_path / "f", num_bytes)
    file.write(DATA)
    with pytest.raises(TargetError, match="another number of bytes") as caught:
        file.commit()
    assert (caught.value.expected, caught.value.got) == (str(num_bytes), str(len(DATA)))
    assert listing(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_any_failing_call_leaves_the_old_file_or_none(
    tmp_path: Path, faulty: Callable[..., FaultyOs], code: int
) -> None:
    """Whichever call fails, the name holds what it held before, nothing else is left, and the call is
    named.
    """
    calls = faulty().calls
    write_file(tmp_path / "f", [b"old"])
    names = list(calls)
    assert names == ["open", "posix_fallocate", "write", "fchmod", "fsync", "close", "rename"]
    before = num_open_files()
    for number, name in enumerate(names):
        faulty(number, code)
        with pytest.raises(TargetError) as caught:
            write_file(tmp_path / "f", [DATA])
        assert os.strerror(code) in caught.value.what
        assert caught.value.where["file"] == str(tmp_path / "f")
        assert caught.value.where["operation"]
        assert (caught.value.advice is None) == (code == errno.EIO)
        assert (tmp_path / "f").read_bytes() == b"old", name
        assert listing(tmp_path) == ["f"], name
    assert num_open_files() == before


def test_a_full_disk_is_met_before_the_first_byte(tmp_path: Path, faulty: Callable[..., FaultyOs]) -> None:
    """The whole size is reserved when the file is made, so that a full disk stops it there."""
    faulty(0, errno.ENOSPC, only=("posix_fallocate",))
    with pytest.raises(TargetError, match="No space left") as caught:
        NewFile(tmp_path / "f", len(DATA))
    assert caught.value.where["operation"] == "reserve space"
    assert "quotas" in str(caught.value.advice)
    assert listing(tmp_path) == []


def test_a_real_limit_stops_the_file_with_advice(tmp_path: Path) -> None:
    """A file size limit of the process ends in an error that names the limit, and leaves nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(TargetError) as caught:
            NewFile(tmp_path / "f", 1 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "ulimit -f" in str(caught.value.advice)
    assert listing(tmp_path) == []


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_a_filesystem_that_cannot_reserve_is_fine(
    tmp_path: Path, faulty: Callable[..., FaultyOs], code: int
) -> None:
    """Where space can't be reserved, the file is written all the same."""
    faulty(0, code, only=("posix_fallocate",))
    write_file(tmp_path / "f", [DATA])
    assert (tmp_path / "f").read_bytes() == DATA


def aligned(num_bytes: int, shift: int = 0) -> memoryview:
    """Random bytes in memory that begins `shift` bytes behind a page's beginning."""
    image = memoryview(mmap.mmap(-1, num_bytes + shift + 1))[shift : shift + num_bytes]
    image[:] = random.Random(num_bytes).randbytes(num_bytes)
    return image


class NoDirect:
    """The `fcntl` of a filesystem that has no O_DIRECT."""

    F_GETFL, F_SETFL = fcntl.F_GETFL, fcntl.F_SETFL

    @staticmethod
    def fcntl(descriptor: int, command: int, argument: int = 0) -> int:
        if command == fcntl.F_SETFL and argument & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return fcntl.fcntl(descriptor, command, argument)


@pytest.mark.parametrize("has_direct", [True, False], ids=["past the cache", "no such flag"])
@pytest.mark.parametrize("shift", [0, 8], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("num_bytes", [1, 4095, 4096, 4097, 5 * 4096 + 8, 3 * 16384])
def test_direct_writing_gives_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_bytes: int, shift: int, has_direct: bool
) -> None:
    """A file written past the page cache has the same bytes, whatever its length, memory and filesystem
    are.
    """
    monkeypatch.setattr(files, "DIRECT_STEP_BYTES", 16384)
    if not has_direct:
        monkeypatch.setattr(files, "fcntl", NoDirect)
    data = aligned(num_bytes, shift)
    file = NewFile(tmp_path / "f", num_bytes, direct=True)
    for begin in range(0, num_bytes, 3 * 4096):
        file.write(data[begin : begin + 3 * 4096])
    file.commit()
    assert (tmp_path / "f").read_bytes() == data
    assert listing(tmp_path) == ["f"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failing_direct_write_is_named_and_leaves_nothing(
    tmp_path: Path, faulty: Callable[..., FaultyOs], code: int
) -> None:
    """A write past the page cache that fails ends like any other; only a refused alignment is tried
    otherwise.
    """
    for number in (0, 1):
        faulty(number, code, only=("write",))
        file = NewFile(tmp_path / "f", 4096 + 8, direct=True)
        with pytest.raises(TargetError, match="write failed") as caught:
            file.write(aligned(4096 + 8))
        assert caught.value.where == {"operation": "write", "file": str(tmp_path / "f")}
        assert listing(tmp_path) == []
    faulty(0, errno.EINVAL, only=("write",))
    file = NewFile(tmp_path / "f", 4096, direct=True)
    file.write(aligned(4096))
    file.commit()
    assert (tmp_path / "f").read_bytes() == aligned(4096)


def test_abandoning_never_raises(tmp_path: Path, faulty: Callable[..., FaultyOs]) -> None:
    """Giving a file up can fail quietly only: the first error is the one to report."""
    file = NewFile(tmp_path / "f", 3)
    for only in (("close",), ("unlink",)):
        faulty(0, only=only)
        file.abandon()
    faulty()
    file.abandon()
    file.abandon()
    assert listing(tmp_path) == []


def test_a_missing_folder_is_a_target_error(tmp_path: Path) -> None:
    """Where the folder is missing the error names the operation and the file."""
    with pytest.raises(TargetError, match="create failed: No such file") as caught:
        write_file(tmp_path / "absent" / "f", [DATA])
    assert caught.value.where["file"] == str(tmp_path / "absent" / "f")


def test_copies_are_equal_and_links_are_followed(tmp_path: Path) -> None:
    """A copy has the bytes of what its source leads to, and is a regular file in a folder made for it."""
    (tmp_path / "blob").write_bytes(DATA * 5)
    (tmp_path / "link").symlink_to("blob")
    copy_file(tmp_path / "link", tmp_path / "a" / "b" / "copy")
    copied = tmp_path / "a" / "b" / "copy"
    assert copied.read_bytes() == DATA * 5
    assert not copied.is_symlink()


def test_a_source_that_grows_or_cannot_be_read_leaves_no_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source that changes while it is copied, or fails in the middle, leaves nothing under the final
    name.
    """
    source, target = tmp_path / "source", tmp_path / "out" / "copy"
    source.write_bytes(DATA)
    faulty_os = FaultyOs()
    faulty_os.fstat = lambda _: os.stat_result((0, 0, 0, 0, 0, 0, 10, 0, 0, 0))  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr(files, "os", faulty_os)
        with pytest.raises(TargetError, match="another number of bytes"):
            copy_file(source, target)

    class FailingFile(io.FileIO):
        def read(self, size: int | None = -1) -> Any:
            if self.tell() > 0:
                raise OSError(errno.EIO, "the disk is broken")
            return super().read(10)

    class FailingPath(type(source)):  # type: ignore[misc]
        def open(self, *_: object) -> FailingFile:
            return FailingFile(self)

    with pytest.raises(OSError, match="the disk is broken"):
        copy_file(FailingPath(source), target)
    assert listing(tmp_path / "out") == []


def test_only_regular_files_are_regular(tmp_path: Path) -> None:
    """Folders, pipes, dangling links and absent names are not regular; links to files are."""
    (tmp_path / "f").write_bytes(b"")
    (tmp_path / "link").symlink_to("f")
    (tmp_path / "dangling").symlink_to("absent")
    os.mkfifo(tmp_path / "pipe")
    names = ("f", "link", "dangling", "pipe", "absent", ".")
    assert [name for name in names if files.is_regular(tmp_path / name)] == ["f", "link"]


# --- the folder


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    """A finished folder of a run, beside a bystander that must stay."""
    (tmp_path / "bystander").mkdir()
    (tmp_path / "bystander" / "f").write_bytes(b"keep")
    folder = folders.staging_path(tmp_path / "target", "run7")
    folders.make_folder(folder)
    write_file(folder / "config.json", [b"new"])
    return folder


def older(folder: Path) -> None:
    """A model folder that may be replaced."""
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes(b"old")


def content(tmp_path: Path) -> bytes | None:
    path = tmp_path / "target" / "config.json"
    return path.read_bytes() if path.exists() else None


def test_staging_lies_hidden_beside_the_target(tmp_path: Path) -> None:
    """The staging folder has the target's parent, a hidden name with the run in it, and must be new."""
    folder = folders.staging_path(tmp_path / "target", "run7")
    assert folder == tmp_path / ".target.pp_export-run7"
    folders.make_folder(folder)
    with pytest.raises(TargetError, match="make folder failed"):
        folders.make_folder(folder)


def test_publishing_gives_the_folder_its_name(tmp_path: Path, staging: Path) -> None:
    """The staging folder becomes the target, and nothing else changes."""
    publish(staging, tmp_path / "target", overwrite=False)
    assert content(tmp_path) == b"new"
    assert listing(tmp_path) == ["bystander", "bystander/f", "target", "target/config.json"]


def test_an_existing_target_is_refused_and_kept(tmp_path: Path, staging: Path) -> None:
    """Without --overwrite an existing folder stays as it is, with the way out in the message."""
    older(tmp_path / "target")
    acts: list[Callable[[], object]] = [
        lambda: publish(staging, tmp_path / "target", overwrite=False),
        lambda: publishing.check_target(tmp_path / "target", overwrite=False),
    ]
    for act in acts:
        with pytest.raises(TargetError, match="the output exists") as caught:
            act()
        assert "--overwrite" in str(caught.value.advice)
        assert content(tmp_path) == b"old"


@pytest.mark.parametrize("has_exchange", [True, False], ids=["exchange", "two renames"])
def test_overwriting_swaps_and_removes_only_the_old_folder(
    tmp_path: Path, staging: Path, monkeypatch: pytest.MonkeyPatch, has_exchange: bool
) -> None:
    """With --overwrite the new folder takes the name and the old one goes, on filesystems of both kinds."""
    if not has_exchange:
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    older(tmp_path / "target")
    (tmp_path / "target" / "README.md").write_bytes(b"old")
    publish(staging, tmp_path / "target", overwrite=True)
    assert content(tmp_path) == b"new"
    assert listing(tmp_path) == ["bystander", "bystander/f", "target", "target/config.json"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EACCES])
def test_exchange_falls_back_only_where_it_is_unknown(
    tmp_path: Path, staging: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """A filesystem that can't exchange gets two renames; any other failure is reported and changes
    nothing.
    """

    class Libc:
        def renameat2(self, *_: object) -> int:
            return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Libc())
    monkeypatch.setattr(ctypes, "get_errno", lambda: code)
    older(tmp_path / "target")
    if code == errno.EACCES:
        with pytest.raises(TargetError, match="swap failed: Permission denied"):
            publish(staging, tmp_path / "target", overwrite=True)
        assert content(tmp_path) == b"old"
    else:
        publish(staging, tmp_path / "target", overwrite=True)
        assert content(tmp_path) == b"new"


@pytest.mark.parametrize("has_exchange", [True, False], ids=["exchange", "two renames"])
@pytest.mark.parametrize("overwrite", [True, False])
def test_any_failing_call_leaves_the_target_whole(
    tmp_path: Path,
    faulty: Callable[..., FaultyOs],
    monkeypatch: pytest.MonkeyPatch,
    overwrite: bool,
    has_exchange: bool,
) -> None:
    """Whichever call of publishing fails, the name leads to the old folder or to the new one, never to a
    part.
    """
    if not has_exchange:
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())

    def attempt(root: Path, fail_at: int | None) -> list[str]:
        root.mkdir()
        if overwrite:
            older(root / "target")
        folder = root / ".staging"
        folder.mkdir()
        (folder / "config.json").write_bytes(b"new")
        faulty_os = faulty(fail_at)
        if fail_at is None:
            publish(folder, root / "target", overwrite=overwrite)
        else:
            try:
                assert publish(folder, root / "target", overwrite=overwrite)[0].startswith("the export is")
                assert content(root) == b"new"
            except TargetError:
                assert overwrite or content(root) is None
        return faulty_os.calls

    num_calls = len(attempt(tmp_path / "all", None))
    assert num_calls >= 7 if not (overwrite and has_exchange) else num_calls >= 6
    for number in range(num_calls):
        root = tmp_path / str(number)
        attempt(root, number)
        assert content(root) in ((b"old", b"new") if overwrite else (None, b"new")), number
        assert (root / "target").exists() == (content(root) is not None)


def test_targets_that_are_no_folders_are_refused(tmp_path: Path, staging: Path) -> None:
    """A link (also a dangling one) or a file under the target's name is refused, with --overwrite too, and
    kept.
    """
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "config.json").write_bytes(b"keep")
    target = tmp_path / "target"
    for make in (
        lambda: target.symlink_to("elsewhere"),
        lambda: target.symlink_to("absent"),
        lambda: target.write_bytes(b"a file"),
    ):
        make()
        for overwrite in (True, False):
            with pytest.raises(TargetError, match="exists and is not a folder"):
                publish(staging, target, overwrite=overwrite)
        assert target.is_symlink() or target.read_bytes() == b"a file"
        target.unlink()
    assert (tmp_path / "elsewhere" / "config.json").read_bytes() == b"keep"
    assert (staging / "config.json").read_bytes() == b"new"


def test_a_folder_that_came_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    """Where nothing was when the export began, and another run publishes between the last look and the
    rename, that run's folder stays, and so does what was staged.
    """
    staging, target = tmp_path / "staging", tmp_path / "target"
    for folder, data in ((staging, b"own"), (target, b"another's")):
        folder.mkdir()
        (folder / "config.json").write_bytes(data)
    with pytest.raises(TargetError, match="at the same moment"):
        publishing.publish(staging, target, [])
    assert (target / "config.json").read_bytes() == b"another's"
    assert (staging / "config.json").read_bytes() == b"own"


def test_a_missing_parent_is_refused(tmp_path: Path) -> None:
    """The parent of the output isn't made on a guess."""
    with pytest.raises(TargetError, match="parent folder does not exist"):
        publishing.check_target(tmp_path / "absent" / "target", overwrite=False)


def test_too_little_space_is_refused_with_both_numbers(tmp_path: Path) -> None:
    """More bytes than the filesystem has free are refused before anything is written."""
    folders.check_space(tmp_path / "target", 1)
    with pytest.raises(TargetError, match="too little space") as caught:
        folders.check_space(tmp_path / "target", 1 << 62)
    assert caught.value.expected == f"{1 << 62:,} bytes"
    assert "bytes free" in str(caught.value.got)


def test_removing_takes_the_folder_and_no_link_s_target(tmp_path: Path, staging: Path) -> None:
    """Removing a staging folder removes links in it as links; an absent one is fine, a link instead of one is
    not.
    """
    (staging / "link").symlink_to(tmp_path / "bystander")
    folders.remove_folder(staging)
    folders.remove_folder(staging)
    assert listing(tmp_path) == ["bystander", "bystander/f"]
    staging.symlink_to(tmp_path / "bystander")
    with pytest.raises(TargetError, match="remove failed"):
        folders.remove_folder(staging)
    assert (tmp_path / "bystander" / "f").read_bytes() == b"keep"


# --- weights beside what others put there


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A folder that somebody else made, with everything in it that a folder can hold."""
    folder = tmp_path / "target"
    (folder / "assets" / "deep").mkdir(parents=True)
    (folder / "empty").mkdir()
    for name in ("config.json", "assets/deep/template.jinja", "adapter_model.safetensors", ".hidden"):
        (folder / name).write_text(f"their {name}")
    (folder / "config.json").chmod(0o640)
    (folder / "link").symlink_to("assets/deep")
    (folder / "away").symlink_to(tmp_path / "bystander" / "f")
    (folder / "dangling").symlink_to("nowhere")
    return folder


THEIRS = [
    *(".hidden", "adapter_model.safetensors", "assets", "assets/deep", "assets/deep/template.jinja", "away"),
    *("config.json", "dangling", "empty", "link"),
]
NEW = [file_names.INDEX, "f"]


@pytest.fixture
def weights(staging: Path) -> Path:
    """A staged export with an index."""
    (staging / "config.json").rename(staging / "f")
    write_file(staging / file_names.INDEX, [b"{}"])
    return staging


def test_other_files_stay_what_they_are(tmp_path: Path, weights: Path, target: Path) -> None:
    """Beside other files the new ones appear and nothing else changes: bytes, modes, links and the folder."""
    before = {name: (target / name).lstat().st_ino for name in THEIRS}
    assert beside.publish_beside(weights, target) == []
    assert listing(target) == sorted([*THEIRS, *NEW])
    assert {name: (target / name).lstat().st_ino for name in THEIRS} == before
    assert (target / "config.json").read_text() == "their config.json"
    assert mode(target / "config.json") == 0o640
    assert (target / "f").read_bytes() == b"new"
    assert sorted(os.listdir(tmp_path)) == ["bystander", "target"]
    assert (tmp_path / "bystander" / "f").read_bytes() == b"keep"


def test_beside_nothing_is_a_folder_of_its_own(tmp_path: Path, weights: Path) -> None:
    """Where the target doesn't exist it appears as a whole."""
    assert beside.publish_beside(weights, tmp_path / "target") == []
    assert listing(tmp_path / "target") == sorted(NEW)


@pytest.mark.parametrize("old", ["model.safetensors", "model-00001-of-00002.safetensors", file_names.INDEX])
def test_old_weights_are_replaced_where_that_was_asked_for(
    tmp_path: Path, weights: Path, target: Path, old: str
) -> None:
    """Weights of an earlier export are refused without --overwrite; with it they go, and others' stay."""
    (target / old).write_bytes(b"old")
    assert publishing.holds_weights(target)
    with pytest.raises(TargetError, match="the output exists"):
        publishing.check_target(target, overwrite=False, beside=True)
    assert (target / old).read_bytes() == b"old"
    publishing.check_target(target, overwrite=True, beside=True)
    beside.publish_beside(weights, target)
    assert listing(target) == sorted([*THEIRS, *NEW])
    assert (target / file_names.INDEX).read_bytes() == b"{}"


def test_shards_that_an_old_index_names_are_old_weights(weights: Path, target: Path) -> None:
    """Whatever an earlier index calls its shards, they go with it; a path that it names is left alone."""
    (target / "part-1.safetensors").write_bytes(b"old")
    (target / "assets" / "x.safetensors").write_bytes(b"theirs")
    weight_map = {"a": "part-1.safetensors", "b": "assets/x.safetensors", "c": "../bystander/f"}
    (target / file_names.INDEX).write_text(json.dumps({"weight_map": weight_map}))
    beside.publish_beside(weights, target)
    assert listing(target) == sorted([*THEIRS, "assets/x.safetensors", *NEW])


def test_a_folder_without_weights_may_take_some(tmp_path: Path, target: Path) -> None:
    """Other files alone are no weights; for a folder of its own they are still in the way."""
    assert not publishing.holds_weights(target)
    publishing.check_target(target, overwrite=False, beside=True)
    publishing.check_target(tmp_path / "absent", overwrite=False, beside=True)
    with pytest.raises(TargetError, match="the output exists"):
        publishing.check_target(target, overwrite=False)


def test_what_is_read_is_never_replaced(tmp_path: Path, target: Path) -> None:
    """The output is neither a source nor above one; beside others it may be above one."""
    inner = target / "assets"
    link = tmp_path / "other name"
    link.symlink_to(inner)
    for source in (target, inner, link):
        with pytest.raises(TargetError, match="contains, a folder that the export reads"):
            publishing.check_target(target, overwrite=True, sources=[tmp_path, source])
    publishing.check_target(target, overwrite=True, beside=True, sources=[inner])
    with pytest.raises(TargetError, match="that the export reads"):
        publishing.check_target(target, overwrite=True, beside=True, sources=[target])


def test_an_index_names_only_what_is_whole(
    tmp_path: Path, faulty: Callable[..., FaultyOs], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever call fails, other files stay, and with an index the folder is the old export or the new."""
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", file_names.INDEX)

    def attempt(root: Path, fail_at: int | None) -> list[str]:
        for folder, text in (("target", b"old"), (".staging", b"new")):
            (root / folder).mkdir(parents=True)
            for name in names:
                (root / folder / name).write_bytes(text)
        (root / "target" / "config.json").write_bytes(b"theirs")
        faulty_os = faulty(fail_at)
        try:
            notes = beside.publish_beside(root / ".staging", root / "target")
            assert (notes == []) == (fail_at is None)
        except TargetError:
            assert fail_at is not None
        return faulty_os.calls

    calls = attempt(tmp_path / "all", None)
    assert calls.count("rename") == 4
    for number, call in enumerate(calls):
        root = tmp_path / str(number)
        attempt(root, number)
        assert (root / "target" / "config.json").read_bytes() == b"theirs"
        if (root / "target" / file_names.INDEX).exists():
            assert len({(root / "target" / name).read_bytes() for name in names}) == 1, call


def test_an_old_single_file_never_stands_beside_the_new_index(
    weights: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loaders take model.safetensors before an index, so the old one is gone when the new index comes."""
    (target / "model.safetensors").write_bytes(b"old")
    seen: list[bool] = []

    def rename(source: Path, path: Path) -> None:
        if path == target / file_names.INDEX:
            seen.append((target / "model.safetensors").exists())
        os.rename(source, path)

    faulty_os = FaultyOs(only=())
    faulty_os.rename = rename  # type: ignore[attr-defined]
    monkeypatch.setattr(beside, "os", faulty_os)
    beside.publish_beside(weights, target)
    assert seen == [False]


def test_parents_are_made_where_they_are_asked_for(tmp_path: Path) -> None:
    """`make_parents` makes all folders above the target and not the target; again is fine, a file is not."""
    target = tmp_path / "a" / "b" / "target"
    folders.make_parents(target)
    folders.make_parents(target)
    assert listing(tmp_path) == ["a", "a/b"]
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(TargetError, match="make folder failed"):
        folders.make_parents(tmp_path / "file" / "target")
