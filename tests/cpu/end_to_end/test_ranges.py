"""Claims: files that several ranks write are byte for byte those of one rank, are proved as well, and leave
nothing behind when a writer is gone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pp_export.checkpoint.folder_source import CheckpointSource
from pp_export.core import file_names
from pp_export.core.errors import ExportError, VerificationError
from pp_export.options.kinds import ExportOptions
from pp_export.shards import index, write
from pp_export.steps.inputs import plan_export, read_inputs
from pp_export.steps.pending import PendingInputs
from pp_export.verification import verify_folder
from tests.cpu.conftest import Checkpoint, Reference
from tests.fixtures.exports import RememberedDefinition, export_here, files_of, remembering
from tests.fixtures.processes import run_python, torchrun
from tests.fixtures.ranges import cut_finely

Options = dict[str, Any]

GRIDS: tuple[Options, ...] = (
    {"pipeline_parallel": 1, "tensor_parallel": 4, "leaders_per_stage": "all"},
    {"pipeline_parallel": 2, "tensor_parallel": 2, "leaders_per_stage": "all"},
)
HOLDERS: tuple[Options, ...] = ({"leaders_per_stage": "all"},)
"""No grid is asked for: who holds a file of its own reads it."""
CASES: dict[str, tuple[tuple[str, str], Options, tuple[Options, ...]]] = {
    "dense": (("qwen2", "tp2pp2"), {}, GRIDS),
    "moe": (("qwen3_moe", "ep4"), {}, GRIDS),
    "cast": (("qwen2", "tp4"), {"dtype": "bfloat16"}, GRIDS),
    "several files a layer": (("qwen2", "tp1"), {"max_shard_size": "100KB"}, GRIDS),
    "one file per rank": (("qwen3_moe_legacy", "tp2ep2"), {}, HOLDERS),
}


def num_leaders(given: Options, grid: Options) -> int:
    """The most ranks that lead one file in an export by four ranks."""
    options = ExportOptions(**given, **grid, output=Path("unused"))
    source = CheckpointSource(options.checkpoint, options.iteration, options.check_source)
    with cut_finely(), remembering():
        plan = plan_export(read_inputs(source, options, PendingInputs.start(options)), options, 4)
    return max(len({shard.leader for shard in ranges}) for ranges in plan.files)


def shards_of(folder: Path) -> Any:
    return json.loads((folder / file_names.MANIFEST).read_text())["shards"]


@pytest.fixture
def cut() -> Iterator[None]:
    with cut_finely():
        yield


@pytest.fixture
def inputs(checkpoint: Checkpoint, reference: Reference) -> Options:
    return {
        "checkpoint": checkpoint("qwen2", "tp1"),
        "reference": reference("qwen2"),
        "leaders_per_stage": "all",
    }


@pytest.fixture(scope="module")
def exported(
    checkpoint: Checkpoint, reference: Reference, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[Path]]:
    """Each case exported by one rank in whole files, and by four ranks in ranges."""
    root = tmp_path_factory.mktemp("ranges")
    found: dict[str, list[Path]] = {}
    jobs: list[Options] = []
    for name, (case, options, grids) in CASES.items():
        given = {"checkpoint": checkpoint(*case), "reference": reference(case[0]), **options}
        found[name] = [root / f"{name} whole"]
        export_here(**given, output=found[name][0])
        for number, grid in enumerate(grids):
            found[name].append(root / f"{name} {number}")
            job = {**given, **grid, "output": found[name][-1], "verify": number == 0}
            jobs.append({key: str(value) if isinstance(value, Path) else value for key, value in job.items()})
            assert num_leaders(given, grid) > 1
    RememberedDefinition.write(root / "answers.json")
    (root / "jobs.json").write_text(json.dumps(jobs))
    command = torchrun(4, "-m", "tests.fixtures.ranges", "tests.fixtures.many_exports")
    run_python([*command, str(root / "jobs.json"), str(root / "answers.json")], root / "output").checked()
    return found


@pytest.mark.parametrize("name", CASES)
def test_ranges_give_the_files_of_one_rank(exported: dict[str, list[Path]], name: str) -> None:
    """SHA256SUMS, the shards' records and all files but the manifest are the same, also with --no-verify."""
    whole, *in_ranges = exported[name]
    expected = files_of(whole)
    for folder in in_ranges:
        found = files_of(folder)
        assert {n: d for n, d in found.items() if n != file_names.MANIFEST} == {
            n: d for n, d in expected.items() if n != file_names.MANIFEST
        }
        assert shards_of(folder) == shards_of(whole)
        assert not verify_folder(folder).faults
    parent = {path.name for path in whole.parent.iterdir()}
    assert not [hidden for hidden in parent if hidden.startswith(".")]


def test_modes_are_those_of_whole_files(cut: None, inputs: Options, tmp_path: Path) -> None:
    """A file of ranges has the mode that a file of one writer gets."""
    before = os.umask(0o027)
    try:
        export_here(**inputs, output=tmp_path / "export")
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "export").iterdir()}
    assert modes == {0o640}


def test_a_damaged_byte_is_found_with_its_tensor(
    cut: None, inputs: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What changes on disk after the ranges were joined is found before publishing, in verifying and in
    reading back for SHA-256 only; a damaged header too.
    """
    original = index.write_index

    def damage(find: Callable[[bytearray], int]) -> Callable[..., None]:
        def damaging(staging: Path, *rest: Any) -> None:
            original(staging, *rest)
            path = next(path for path in sorted(staging.glob("*.safetensors")) if "00002-of" in path.name)
            data = bytearray(path.read_bytes())
            data[find(data)] ^= 1
            path.write_bytes(data)

        return damaging

    for verify in (True, False):
        monkeypatch.setattr(index, "write_index", damage(lambda data: len(data) - 1))
        with pytest.raises(VerificationError, match="not what was frozen") as caught:
            export_here(**inputs, output=tmp_path / "export", verify=verify)
        (finding,) = caught.value.findings
        assert "model-00002-of" in finding
        assert "self_attn.v_proj.weight" in finding
        monkeypatch.setattr(index, "write_index", damage(lambda data: data.index(b"__metadata__") + 2))
        with pytest.raises(VerificationError) as caught:
            export_here(**inputs, output=tmp_path / "export", verify=verify)
        assert any("header" in finding for finding in caught.value.findings)
    assert list(tmp_path.iterdir()) == []


def test_a_range_that_is_missing_is_named(
    cut: None, inputs: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the JSON of a range its file does not count as written, and nothing is published."""
    original = write.commit_shard

    def forget(file: Any, manifest: Any, staging: Path) -> None:
        original(file, manifest, staging)
        if getattr(manifest, "number", 0) == 1 and "00003-of" in manifest.file:
            (staging / file_names.range_json(manifest.file, 1)).unlink()

    monkeypatch.setattr(write, "commit_shard", forget)
    with pytest.raises(ExportError, match="shard JSON can't be read") as caught:
        export_here(**inputs, output=tmp_path / "export")
    assert "00003-of" in str(caught.value.where["file"])
    assert str(caught.value.where["file"]).endswith(".1.json")
    assert list(tmp_path.iterdir()) == []


def test_a_rank_that_is_killed_between_two_ranges(inputs: Options, tmp_path: Path) -> None:
    """SIGKILL for a rank that has committed a range of a file and not the next: all end, nothing is left."""
    target, state = tmp_path / "parent" / "export", tmp_path / "state"
    target.parent.mkdir()
    state.mkdir()
    RememberedDefinition.write(state / "answers.json")
    module = ("tests.fixtures.ranges", "tests.fixtures.faulty", str(state), "kill-after-commit@1")
    options = ("--pipeline-parallel", "1", "--leaders-per-stage", "all", "--report", str(state / "report"))
    paths = (
        f"--checkpoint={inputs['checkpoint']}",
        f"--reference={inputs['reference']}",
        f"--output={target}",
    )
    ended = run_python(torchrun(2, "-m", *module, "export", *options, *paths), tmp_path / "output")
    assert ended.status != 0
    assert (state / "committed").read_text()[-1].isdigit(), "a range, not a file"
    error = json.loads((state / "report").read_text())["error"]
    assert any("rank 1 ended without a word" in finding for finding in error["findings"])
    assert list(target.parent.iterdir()) == []
