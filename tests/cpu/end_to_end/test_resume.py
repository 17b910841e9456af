"""Claims of `--resume`: what an earlier run has committed is not made again, if it is of the same export and
intact on disk; whatever happened before, the bytes are those of a run that never failed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from pp_export.core import file_names
from pp_export.core.errors import ExportError, TargetError
from pp_export.disk.folders import record_beside, staging_of
from pp_export.shards import index, write
from pp_export.verification import verify_folder
from tests.cpu.conftest import Checkpoint, Reference
from tests.fixtures.exports import RememberedDefinition, export_here, files_of
from tests.fixtures.processes import run_python, torchrun
from tests.fixtures.ranges import cut_finely

Options = dict[str, Any]

FILES = {"max_shard_size": "100KB"}
NUM_COMMITTED = 5


@pytest.fixture
def inputs(checkpoint: Checkpoint, reference: Reference, tmp_path: Path) -> Options:
    """Options with a checkpoint of the test's own."""
    shutil.copytree(checkpoint("qwen2", "tp2pp2"), tmp_path / "checkpoint")
    (tmp_path / "exports").mkdir()
    return {
        "checkpoint": tmp_path / "checkpoint",
        "reference": reference("qwen2"),
        "output": tmp_path / "exports" / "export",
        "threads": 1,
        **FILES,
    }


@pytest.fixture(scope="module")
def truth(
    checkpoint: Checkpoint, reference: Reference, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """The files of an export that nothing disturbed."""
    output = tmp_path_factory.mktemp("truth") / "export"
    export_here(
        checkpoint=checkpoint("qwen2", "tp2pp2"), reference=reference("qwen2"), output=output, **FILES
    )
    return files_of(output)


@contextmanager
def committing(*, at_most: int | None = None) -> Iterator[list[tuple[str, int]]]:
    """Lists what is committed, file and number of its range; fails after so many."""
    original, done = write.commit_shard, list[tuple[str, int]]()

    def commit(file: Any, manifest: Any, staging: Path) -> None:
        if len(done) == at_most:
            raise OSError("injected")
        original(file, manifest, staging)
        done.append((manifest.file, getattr(manifest, "number", 0)))

    with patch.object(write, "commit_shard", commit):
        yield done


def fail(options: Options, at_most: int = NUM_COMMITTED) -> list[tuple[str, int]]:
    """An export that fails after some commits, and leaves them; what it has committed."""
    with committing(at_most=at_most) as done, pytest.raises(ExportError) as caught:
        export_here(**options, resume=True)
    assert any("--resume goes on with" in finding for finding in caught.value.findings)
    return done


def left(options: Options) -> list[Path]:
    """What lies beside the target, without the record that says whose a folder is."""
    beside = [path for path in options["output"].parent.iterdir() if path != options["output"]]
    owned = {record_beside(staging_of(path)) for path in beside if path.is_dir()}
    return [path for path in beside if path not in owned]


def is_whole(options: Options, truth: dict[str, bytes]) -> bool:
    """Whether the target is what it would have been at once, and nothing lies beside it."""
    return files_of(options["output"]) == truth and left(options) == []


@pytest.mark.parametrize("how", ["files", "ranges"])
def test_what_is_committed_is_not_made_again(inputs: Options, truth: dict[str, bytes], how: str) -> None:
    """A resumed export commits the rest alone, says how many bytes it has kept, and publishes the bytes of a
    run that never failed, the manifest's too.
    """
    with cut_finely() if how == "ranges" else nullcontext():
        first = fail(inputs)
        with committing() as second:
            report = export_here(**inputs, resume=True)
    assert not {*first} & {*second}
    assert second
    assert 0 < report.kept_bytes < sum(len(data) for name, data in truth.items() if name.endswith("tensors"))
    assert any(f"{len(first)} shards" in note and "earlier run" in note for note in report.notes)
    if how == "files":
        assert is_whole(inputs, truth)
    else:
        assert files_of(inputs["output"])[file_names.SUMS] == truth[file_names.SUMS]
        assert left(inputs) == []
    assert verify_folder(inputs["output"]).ok


def test_only_the_end_was_missing(inputs: Options, truth: dict[str, bytes]) -> None:
    """A run that fails when all files are joined and indexed leaves all of them, joined ones too."""
    for context in (nullcontext(), cut_finely()):
        with context:
            with patch.object(index, "write_index", _raise), pytest.raises(ExportError):
                export_here(**inputs, resume=True)
            with committing() as done:
                export_here(**inputs, resume=True)
        assert done == []
        assert files_of(inputs["output"])[file_names.SUMS] == truth[file_names.SUMS]
        shutil.rmtree(inputs["output"])


def test_files_of_ranges_are_kept_by_any_number_of_ranks(inputs: Options, truth: dict[str, bytes]) -> None:
    """A file that several ranks wrote and one run joined is whole for a run that would write it by one rank,
    and gets its SHA-256.
    """
    with cut_finely(), patch.object(index, "write_index", _raise), pytest.raises(ExportError):
        export_here(**inputs, resume=True)
    with committing() as done:
        export_here(**inputs, resume=True)
    assert done == []
    assert is_whole(inputs, truth)


def _raise(*_: Any) -> None:
    raise OSError("injected")


def test_it_may_fail_again(inputs: Options, truth: dict[str, bytes]) -> None:
    """A resumed run that fails leaves what both have committed."""
    first = fail(inputs)
    second = fail(inputs, at_most=2)
    with committing() as third:
        export_here(**inputs, resume=True)
    assert len({*first, *second, *third}) == len(first) + len(second) + len(third)
    assert is_whole(inputs, truth)


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def damage(data: Path, record: Path, what: str, position: int, elsewhere: Path) -> None:
    if what == "data":
        flip(data, position)
    elif what == "cut":
        os.truncate(data, data.stat().st_size // 2 if position < 0 else position)
    elif what == "gone":
        data.unlink()
    elif what == "link":
        shutil.move(data, elsewhere)
        data.symlink_to(elsewhere)
    elif what == "JSON":
        flip(record, 20)
    elif what == "digest":
        recorded = json.loads(record.read_text())
        of_all = "sha256" if "sha256" in recorded else "xxh3_128"
        recorded[of_all] = recorded[of_all].translate(str.maketrans("0a", "a0"))
        record.write_text(json.dumps(recorded))
    else:
        record.unlink()


@pytest.mark.parametrize("what", ["data", "cut", "gone", "JSON", "digest", "no JSON", "link"])
@pytest.mark.parametrize("how", ["files", "ranges"])
def test_a_damaged_shard_is_made_again(
    inputs: Options, truth: dict[str, bytes], how: str, what: str, tmp_path: Path
) -> None:
    """One flipped bit in a committed shard, or in its JSON, costs that shard and nothing else."""
    with cut_finely() if how == "ranges" else nullcontext():
        first = fail(inputs)
        (folder,) = left(inputs)
        if how == "files":
            victim, position = first[0], -1
            name, data = file_names.shard_json(victim[0]), folder / victim[0]
        else:
            victim = next(each for each in first if (folder / f".{each[0]}.ranges.tmp").exists())
            name, data = file_names.range_json(*victim), folder / f".{victim[0]}.ranges.tmp"
            recorded = json.loads((folder / name).read_text())
            position = (recorded["begin"] + recorded["end"]) // 2
        damage(data, folder / name, what, position, tmp_path / "elsewhere")
        with committing() as second:
            export_here(**inputs, resume=True)
    assert victim in second
    if how == "files":
        assert not {*first[1:]} & {*second}
    assert files_of(inputs["output"])[file_names.SUMS] == truth[file_names.SUMS]
    assert left(inputs) == []


def test_foreign_files_in_what_was_left_are_not_published(inputs: Options, truth: dict[str, bytes]) -> None:
    """What is no committed shard of this export is removed: temporary files, an older index, whatever."""
    fail(inputs)
    (folder,) = left(inputs)
    (folder / ".model-00001-of-00009.safetensors.1.tmp").write_bytes(b"x")
    (folder / "config.json").write_text("{}")
    (folder / "sub" / "deep").mkdir(parents=True)
    (folder / "sub" / "deep" / "file").touch()
    (folder / "loop").symlink_to(folder)
    export_here(**inputs, resume=True)
    assert is_whole(inputs, truth)


def touched(path: Path) -> None:
    os.utime(path, ns=(1, 1))


CHANGES: dict[str, tuple[Callable[[Options], Any], str]] = {
    "dtype": (
        lambda options: options.update(dtype="bfloat16"),
        "option dtype: checkpoint then, bfloat16 now",
    ),
    "size": (
        lambda options: options.update(max_shard_size="90KB"),
        "option max-shard-size: 100KB then, 90KB",
    ),
    "contents": (lambda options: options.update(contents="model"), "option contents: folder then, model now"),
    "checkpoint": (
        lambda options: touched(sorted(options["checkpoint"].rglob("*.distcp"))[0]),
        "file of the checkpoint __0_0.distcp: ",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_work_is_refused_by_name(inputs: Options, change: str) -> None:
    """With other options or another checkpoint, what was left is not taken, nor removed, and the error says
    what is different.
    """
    fail(inputs)
    (folder,) = left(inputs)
    before = files_of(folder)
    act, difference = CHANGES[change]
    act(inputs)
    with pytest.raises(TargetError, match="belongs to another export") as caught:
        export_here(**inputs, resume=True)
    assert any(finding.startswith(difference) for finding in caught.value.findings), caught.value.findings
    assert caught.value.where["folder"] == str(folder)
    assert files_of(folder) == before
    assert left(inputs) == [folder]


def test_without_the_option_nothing_is_left_and_nothing_taken(
    inputs: Options, truth: dict[str, bytes]
) -> None:
    """An export without --resume removes its own folder when it fails, and begins anew beside another's."""
    with committing(at_most=3), pytest.raises(ExportError):
        export_here(**inputs)
    assert left(inputs) == []
    fail(inputs)
    (folder,) = left(inputs)
    with committing() as done:
        report = export_here(**inputs)
    assert report.kept_bytes == 0
    assert len(done) == sum(name.endswith(".safetensors") for name in truth)
    assert left(inputs) == [folder]
    assert files_of(inputs["output"]) == truth


def test_a_run_that_committed_nothing_leaves_nothing(inputs: Options) -> None:
    """There is nothing to go on with, so nothing stays."""
    with committing(at_most=0), pytest.raises(ExportError):
        export_here(**inputs, resume=True)
    assert left(inputs) == []


def test_an_older_target_stays_until_the_resumed_export_is_complete(
    inputs: Options, truth: dict[str, bytes]
) -> None:
    """--resume with --overwrite: the older export is there, whole, until the swap."""
    export_here(**{**inputs, "max_shard_size": "5GB"})
    before = files_of(inputs["output"])
    fail({**inputs, "overwrite": True})
    assert files_of(inputs["output"]) == before
    export_here(**inputs, resume=True, overwrite=True)
    assert is_whole(inputs, truth)


@pytest.mark.parametrize("then", [1, 2])
def test_ranks_that_were_killed(inputs: Options, truth: dict[str, bytes], then: int, tmp_path: Path) -> None:
    """SIGKILL for both ranks and their launcher: what they had committed is taken up by as many ranks, or by
    one.
    """
    state = tmp_path / "state"
    state.mkdir()
    RememberedDefinition.write(state / "answers.json")
    paths = [f"--{name.replace('_', '-')}={value}" for name, value in inputs.items()]
    module = ("-m", "tests.fixtures.faulty", str(state))
    command = [*module, "kill-all-after-commits", "export", "--resume", *paths]
    ended = run_python(torchrun(2, *command), tmp_path / "killed")
    assert ended.status == -signal.SIGKILL
    (folder,) = left(inputs)
    committed = {path.name for path in (folder / file_names.SHARD_JSONS).glob("model-*.json")}
    assert len(committed) >= 2

    report = tmp_path / "report.json"
    command = [*module, "none", "export", "--resume", "--report", str(report), *paths]
    alone = ["-m", "pp_export", *command[4:]]
    run_python(torchrun(2, *command) if then == 2 else alone, tmp_path / "resumed").checked()
    told = json.loads(report.read_text())
    assert told["kept_bytes"] > 0
    assert files_of(inputs["output"])[file_names.SUMS] == truth[file_names.SUMS]
    assert left(inputs) == []
