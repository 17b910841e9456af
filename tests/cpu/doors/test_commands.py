"""Claims of the command line: what a user types does what it says, and says what it did."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pp_export.core.errors import TargetError
from tests.cpu.conftest import Checkpoint, Reference
from tests.fixtures import toy_qwen2
from tests.fixtures.exports import export_here, files_of
from tests.fixtures.processes import Ended, run_python, torchrun

NUM_RANKS = 4
_IN_ONE_PROCESS = """
import json, sys
from pp_export.cli import main
status = [main(command) for command in json.loads(sys.argv[1])]
import torch.distributed
assert status == [0] * len(status), status
assert not torch.distributed.is_initialized()
heavy = ("megatron", "transformers", "accelerate")
loaded = [name for name in sys.modules if name.partition(".")[0] in heavy]
assert not loaded, loaded
assert not torch.cuda.is_initialized()
"""


@dataclass(frozen=True)
class Exported:
    """An export by the real command line, under umask 027: its folder, its report and what it printed."""

    folder: Path
    report: dict[str, Any]
    ended: Ended


@pytest.fixture(scope="module")
def exported(
    checkpoint: Checkpoint, reference: Reference, tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    """One launch of `torchrun -m pp_export export JOB.yaml --set ...` with four ranks."""
    root = tmp_path_factory.mktemp("commands")
    job = root / "job.yaml"
    # JSON is YAML. The output is overridden by --set, the shard size by a flag.
    values = {
        "checkpoint": str(checkpoint("qwen2", "tp2pp2")),
        "reference": str(reference("qwen2")),
        "output": str(root / "of the job file"),
        "pipeline_parallel": 2,
        "max_shard_size": "5GB",
    }
    job.write_text(json.dumps(values))
    folder, report = root / "export", root / "report.json"
    options = ["--set", f"output={folder}", "--set", "tensor-parallel=2"]
    options += ["--max-shard-size", "100KB", "--report", str(report)]
    command = torchrun(NUM_RANKS, "-m", "pp_export", "export", str(job), *options)
    ended = run_python(command, root / "output", umask=0o027).checked()
    assert not (root / "of the job file").exists()
    return Exported(folder, json.loads(report.read_text()), ended)


def test_the_report_says_what_was_done(exported: Exported, checkpoint: Checkpoint) -> None:
    """The report's counts are those of the folder, its grid and options those that were asked for."""
    report = exported.report
    index = json.loads((exported.folder / "model.safetensors.index.json").read_text())
    assert report["status"] == "ok"
    assert report["output"] == str(exported.folder)
    assert report["checkpoint"] == str(checkpoint("qwen2", "tp2pp2") / "iter_0000010")
    assert (report["format"], report["iteration"]) == ("torch_dist", 10)
    assert report["expected_from"] == "the model's own definition (transformers)"
    assert report["stages"] == [2, 2]
    assert report["options"]["max_shard_size"] == "100KB"
    assert report["num_tensors"] == len(index["weight_map"])
    assert report["num_files"] == len(set(index["weight_map"].values()))
    assert {key: report[key] for key in index["metadata"]} == index["metadata"]
    assert report["verified"] is report["source_checked"] is True
    assert set(report["assets_copied"]) | {"config.json", "model.safetensors.index.json"} <= set(
        files_of(exported.folder)
    )
    assert set(report["seconds"]) == {"plan", "export", "index", "publish"}
    peaks, planned = report["peak_anonymous_bytes"], report["planned_peak_bytes"]
    assert len(peaks) == len(planned) == NUM_RANKS
    assert all(0 < peak <= limit for peak, limit in zip(peaks, planned))


def test_a_person_sees_what_happens_and_what_came_out(exported: Exported) -> None:
    """Progress goes to stderr, by rank 0 alone; the summary, once, to stdout."""
    assert exported.ended.stderr.count("exporting Qwen2ForCausalLM: 75 tensors") == 1
    assert "by 4 ranks in 2 stages" in exported.ended.stderr
    assert exported.ended.stdout.count("every byte re-read") == 1
    assert "exporting" not in exported.ended.stdout


def test_modes_follow_the_umask(exported: Exported) -> None:
    """Under umask 027 every published file has mode 640, the folder 750, and nothing private remains."""
    assert stat.S_IMODE(exported.folder.stat().st_mode) == 0o750
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in exported.folder.rglob("*")}
    assert set(modes.values()) == {0o640}, modes


def test_sha256sum_accepts_the_folder(exported: Exported) -> None:
    """`sha256sum -c SHA256SUMS` passes on every file of the folder but the two that describe it, and the
    manifest records the same sums; nothing is hidden beside them, so tools that list the folder see all.
    """
    done = subprocess.run(
        ["sha256sum", "--strict", "-c", "SHA256SUMS"],
        cwd=exported.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    checked = {line.rpartition(": ")[0] for line in done.stdout.splitlines()}
    assert checked == set(files_of(exported.folder)) - {"SHA256SUMS", "export_manifest.json"}
    assert not [path for path in exported.folder.rglob("*") if path.name.startswith(".")]
    lines = (exported.folder / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    manifest = json.loads((exported.folder / "export_manifest.json").read_text())
    recorded = {name: claim["sha256"] for name, claim in manifest["files"].items()}
    recorded |= {shard["file"]: shard["sha256"] for shard in manifest["shards"]}
    assert {name: recorded[name] for name in sums} == sums


def test_verify_proves_the_folder_and_loads_it(exported: Exported, tmp_path: Path) -> None:
    """`verify --load --json` reads every file, finds nothing, and transformers takes every tensor."""
    command = ["-m", "pp_export", "verify", "--load", "--json", str(exported.folder)]
    result = json.loads(run_python(command, tmp_path).checked().stdout)
    assert result["ok"] is True
    assert result["faults"] == []
    assert result["num_tensors"] == exported.report["num_tensors"]
    assert result["num_bytes_read"] >= exported.report["total_size"]


def test_verify_fails_on_a_flipped_bit(exported: Exported, tmp_path: Path) -> None:
    """One flipped bit makes `verify` exit with 1 and print the file and the tensor."""
    folder = tmp_path / "damaged"
    folder.mkdir()
    for name, data in files_of(exported.folder).items():
        (folder / name).write_bytes(data)
    shard = (
        folder
        / json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]["model.norm.weight"]
    )
    damaged = bytearray(shard.read_bytes())
    damaged[-1] ^= 1
    shard.write_bytes(damaged)
    ended = run_python(["-m", "pp_export", "verify", str(folder)], tmp_path / "output")
    assert ended.status == 1
    assert f"{shard.name}" in ended.stdout
    assert "model.norm.weight" in ended.stdout


def test_diff_and_the_metadata_commands(
    exported: Exported, checkpoint: Checkpoint, reference: Reference, tmp_path: Path
) -> None:
    """`diff` finds an export of another layout identical; `plan` and `inspect` need no process group.

    None of them imports megatron or transformers, or touches a GPU, and `plan` makes nothing.
    """
    other = tmp_path / "other"
    export_here(checkpoint=checkpoint("qwen2", "pp2vpp3"), reference=reference("qwen2"), output=other)
    folders = ["--checkpoint", str(checkpoint("qwen2", "tp4")), "--reference", str(reference("qwen2"))]
    commands = [
        ["inspect", str(checkpoint("qwen2", "tp4")), "--json"],
        ["inspect", str(checkpoint("qwen2", "tp4"))],
        ["plan", *folders, "--output", str(tmp_path / "planned"), "--world-size", "16", "--json"],
        ["plan", *folders, "--output", str(tmp_path / "planned"), "--world-size", "16"],
        ["diff", str(exported.folder), str(other), "--json"],
        ["diff", str(exported.folder), str(other)],
        ["verify", "--quick", str(other)],
    ]
    ended = run_python(["-c", _IN_ONE_PROCESS, json.dumps(commands)], tmp_path / "output").checked()
    values = list(_json_values(ended.stdout))
    inspected, planned, difference = values
    assert inspected["args"]["tensor_model_parallel_size"] == 4
    assert inspected["weights"]["num_parameters"] > exported.report["total_parameters"], "padded vocabulary"
    assert len(planned["ranks"]) == 16
    assert planned["total_size"] == exported.report["total_size"]
    assert difference["identical"] is True
    assert not (tmp_path / "planned").exists()
    for text in ("written by", "peak memory", "decoder.layers.self_attention.linear_qkv.weight"):
        assert text in ended.stdout


def test_overwrite_replaces_the_whole_folder(
    checkpoint: Checkpoint, reference: Reference, tmp_path: Path
) -> None:
    """`overwrite` gives the folder that a fresh export gives: no stale shard, no stale file, no staging."""
    folder, fresh = tmp_path / "parent" / "export", tmp_path / "fresh"
    folder.parent.mkdir()
    inputs = {"checkpoint": checkpoint("qwen2", "tp2"), "reference": reference("qwen2")}
    export_here(**inputs, output=folder, max_shard_size="20KB")
    (folder / "README.md").write_text("of the old export")
    many = len(files_of(folder))
    export_here(**inputs, output=fresh)
    export_here(**inputs, output=folder, overwrite=True)
    assert len(files_of(fresh)) < many
    names = set(files_of(fresh)) - {"export_manifest.json"}
    assert {name: files_of(folder)[name] for name in names} == {name: files_of(fresh)[name] for name in names}
    assert set(files_of(folder)) == set(files_of(fresh))
    assert [path.name for path in folder.parent.iterdir()] == ["export"]
    with pytest.raises(TargetError):
        export_here(**inputs, output=folder)


def test_the_command_refuses_an_existing_output(
    exported: Exported, checkpoint: Checkpoint, reference: Reference, tmp_path: Path
) -> None:
    """Without --overwrite: status 1, one error on stderr, the report says why, the folder is untouched."""
    before = files_of(exported.folder)
    report = tmp_path / "report.json"
    command = ["-m", "pp_export", "export", "--checkpoint", str(checkpoint("qwen2", "tp2"))]
    command += ["--reference", str(reference("qwen2")), "--output", str(exported.folder)]
    ended = run_python([*command, "--report", str(report)], tmp_path / "output")
    assert ended.status == 1
    assert ended.stdout == ""
    assert ended.stderr.count("error: the output exists") == 1
    assert "--overwrite" in ended.stderr
    written = json.loads(report.read_text())
    assert written["status"] == "failed"
    assert written["error"]["kind"] == "TargetError"
    assert written["error"]["where"]["output"] == str(exported.folder)
    assert files_of(exported.folder) == before


@pytest.mark.asks_elsewhere  # for the folder of the report, which there isn't
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--set", "tensor_paralel=2"], ["tensor_paralel", "did you mean 'tensor_parallel'"]),
        (["--set", "max_shard_size=much"], ["--max-shard-size can't be read", "much"]),
        (["--tensor-parallel", "two"], ["--tensor-parallel", "'two'"]),
        (
            ["--report", "no/such/folder/report.json"],
            ["the report's folder", "no/such/folder"],
        ),
    ],
    ids=["unknown key", "no size", "no number", "no folder for the report"],
)
def test_wrong_options_are_refused_before_anything_is_read(
    arguments: list[str], told: list[str], tmp_path: Path
) -> None:
    """A wrong option ends the command with status 1 and a message that names it, whatever the inputs are."""
    command = ["-m", "pp_export", "export", "--checkpoint", "absent", "--reference", "absent"]
    ended = run_python([*command, "--output", str(tmp_path / "export"), *arguments], tmp_path / "output")
    assert ended.status == 1
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    assert all(text in ended.stderr for text in told), ended.stderr


def _json_values(text: str) -> list[dict[str, Any]]:
    """Every JSON object that begins at the start of a line."""
    decoder, values, at = json.JSONDecoder(), [], 0
    while (begin := text.find("{\n", at)) >= 0:
        value, at = decoder.raw_decode(text, begin)
        values.append(value)
    return values


def test_paths_need_not_be_text(tmp_path: Path) -> None:
    """Checkpoint, output, report and page whose names are no UTF-8: exported, reported and verified."""
    strange = os.fsdecode(b"na\xff me")
    checkpoint = toy_qwen2.write_checkpoint(tmp_path / f"checkpoint {strange}")
    reference = toy_qwen2.write_reference(tmp_path / f"reference {strange}")
    output, report, page = (tmp_path / f"{name} {strange}" for name in ("output", "report", "page"))
    options = [f"--checkpoint={checkpoint}", f"--reference={reference}", f"--output={output}"]
    more = ["--provenance=full", f"--report={report}", f"--html={page}", "--json"]
    run_python(["-m", "pp_export", "export", *options, *more], tmp_path / "printed").checked()
    assert json.loads(report.read_bytes())["status"] == "ok"
    assert page.read_bytes().decode()
    for command in (["inspect", str(checkpoint)], ["verify", str(output)]):
        page.unlink()
        run_python(["-m", "pp_export", *command, f"--html={page}"], tmp_path / "printed").checked()
        assert page.read_bytes().decode()
