"""Claims of `pp_export.cli`: wrong arguments are named, results go to stdout, the exit status tells the
outcome.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from jsonschema import Draft202012Validator

import pp_export
from pp_export import cli, flags
from pp_export.options.consolidation import OF_MEGATRON, ConsolidateOptions
from pp_export.options.kinds import ExportOptions, flag
from pp_export.options.values import options_from, read_job
from tests.cpu.conftest import Checkpoint, Reference
from tests.fixtures.damage import edit_json
from tests.fixtures.processes import run_python, started, torchrun
from tests.fixtures.tiny_models import ask, write_tiny_model
from tests.fixtures.undefined import without_definition

ROOT = Path(pp_export.__file__).resolve().parents[1]


class Outcome(NamedTuple):
    status: int
    stdout: str
    stderr: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs a command in this process, as one rank, and puts signals and logging back afterwards."""

    def leave(status: int) -> None:
        raise SystemExit(status)

    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cli.os, "_exit", leave)  # type: ignore[attr-defined]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    logger = logging.getLogger("pp_export")
    before = (logger.handlers[:], logger.level, logger.propagate)

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as left:
            status = left.code if isinstance(left.code, int) else 1
        return Outcome(status, *capsys.readouterr())

    with without_definition():
        yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)
    logger.handlers[:], logger.level, logger.propagate = before


@pytest.fixture
def folders(checkpoint: Checkpoint, reference: Reference, tmp_path: Path) -> list[object]:
    """The flags that every export needs."""
    return [
        *("--checkpoint", checkpoint("qwen2", "tp2pp2")),
        *("--reference", reference("qwen2")),
        *("--output", tmp_path / "out"),
    ]


def parsed(*arguments: str) -> ExportOptions:
    return options_from(
        flags.values_of(flags.parser().parse_args(["export", *arguments]), ExportOptions),
        "flags",
        ExportOptions,
    )


FOLDERS = ("--checkpoint", "c", "--reference", "r", "--output", "o")


# --- arguments


def test_every_option_is_a_flag_with_its_help(run: Run) -> None:
    """The help of export, plan and consolidate names every field of the options as a flag, with its text and
    its choices; of a consolidation those that are of Megatron are none.
    """
    for command, kind in (
        ("export", ExportOptions),
        ("plan", ExportOptions),
        ("consolidate", ConsolidateOptions),
    ):
        shown = run(command, "--help")
        assert shown.status == 0
        text = " ".join(shown.stdout.split())
        for option in dataclasses.fields(kind):
            if kind is ConsolidateOptions and option.name in OF_MEGATRON:
                assert f"--{flag(option.name)}" not in text
                continue
            assert f"--{flag(option.name)}" in text
            assert " ".join(option.metadata["help"].split()) in text
        assert "{checkpoint,float32,bfloat16,float16}" in text
        assert "--no-verify" in text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["export", "--tensor-paralel", "2"],
            "unknown flag --tensor-paralel; did you mean --tensor-parallel?",
        ),
        (["export", "--over"], "unknown flag --over; did you mean --overwrite?"),
        (["plan", "--world-sizes=4"], "unknown flag --world-sizes=4; did you mean --world-size?"),
        (["verify", "--quik", "x"], "unknown flag --quik; did you mean --quick?"),
        (["inspect", "x", "--qqqqqqqq"], "unknown flag --qqqqqqqq\n"),
        (["exprt"], "invalid choice: 'exprt'"),
        ([], "required: COMMAND"),
        (["verify", "x", "--quick", "--subset", "1/2"], "not allowed with argument --quick"),
    ],
)
def test_wrong_flags_are_named_with_the_nearest(run: Run, arguments: list[str], told: str) -> None:
    """An unknown flag is refused with the nearest known one (none is guessed from afar), shortened ones
    too.
    """
    outcome = run(*arguments)
    assert outcome.status == 2
    assert told in outcome.stderr
    assert outcome.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["export"], ["options are missing", "--checkpoint", "--output"]),
        (["plan", "--checkpoint", "c"], ["neither --reference nor --architecture", "--reference DIR"]),
        (["export", *FOLDERS, "--set", "tensor_paralel=2"], ["did you mean 'tensor_parallel'?"]),
        (["export", *FOLDERS, "--set", "verify"], ["--set takes KEY=VALUE"]),
        (["export", *FOLDERS, "--dtype", "int8"], ["--dtype has no such value", "bfloat16", "int8"]),
        (
            ["export", *FOLDERS, "--iteration", "ten"],
            ["--iteration has a value of the wrong type", "a whole number", "'ten'"],
        ),
        (["plan", *FOLDERS, "--world-size", "four"], ["--world-size has a value of the wrong type"]),
        (["plan", *FOLDERS, "--storage-gbps", "3"], ["--storage-gbps can't be read", "R,W"]),
        (["plan", *FOLDERS, "--nodes", "2"], ["--nodes is more than --world-size"]),
        (["plan", *FOLDERS, "--world-size", "0"], ["--world-size must be positive"]),
        (
            ["export", *FOLDERS, "--iteration", "1,2"],
            ["several iterations need an output each"],
        ),
        (["export", *FOLDERS, "--watch"], ["several iterations need an output each", "{iteration}"]),
        (["plan", *FOLDERS[:-1], "o-{iteration}", "--iteration", "1,2"], ["a plan is of one export"]),
        (["plan", *FOLDERS[:-1], "o-{iteration}"], ["a plan is of one export"]),
        (["export", "absent.yaml"], ["the job file can't be read", "absent.yaml"]),
        (["verify", "x", "--subset", "1of2"], ["--subset can't be read", "I/N", "1of2"]),
        (["verify", "x", "--subset", "3/2"], ["there is no such subset", "1 to 2"]),
        (["inspect", "absent"], ["the checkpoint folder does not exist", "absent"]),
        (["diff", "absent", "absent"], ["absent"]),
        (["compare-logits", "absent", "gone"], ["the recording can't be read", "gone"]),
        (["compare-logits", "x", "y", "--max-memory", "much"], ["--max-memory can't be read", "much"]),
        (["compare-logits", "x", "y", "--tolerance", "-1"], ["--tolerance can't be used", "-1"]),
    ],
)
def test_wrong_values_are_errors_with_their_reason(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: list[str]
) -> None:
    """A wrong value ends with status 1 and one error on stderr that names it; nothing is made."""
    monkeypatch.chdir(tmp_path)
    outcome = run(*arguments)
    assert outcome.status == 1
    assert outcome.stdout == ""
    assert sum(line.startswith("error: ") for line in outcome.stderr.splitlines()) == 1
    assert all(text in outcome.stderr for text in told), outcome.stderr
    assert list(tmp_path.iterdir()) == []


def test_flags_go_before_settings_and_settings_before_the_job(tmp_path: Path) -> None:
    """Of a value given three times the flag's counts, then --set, then the job file's; the rest is kept."""
    job = tmp_path / "job.yaml"
    job.write_text(
        "checkpoint: from-job\nreference: from-job\noutput: from-job\n"
        "iteration: 1\nverify: false\ndtype: float16\n"
    )
    options = parsed(
        str(job), "--set", "output=from-set", "--set", "reference=from-set", "--reference", "from-flag",
        "--set", "iteration=2", "--iteration", "3", "--verify",
    )  # fmt: skip
    assert (options.checkpoint, options.output) == (Path("from-job"), Path("from-set"))
    assert options.reference == Path("from-flag")
    assert (options.iteration, options.verify, options.dtype) == (3, True, "float16")
    assert parsed(str(job), "--no-code").verify is False


def test_switches_have_both_forms() -> None:
    """Every yes-or-no option can be switched on and off; without a flag it has its default."""
    for option in dataclasses.fields(ExportOptions):
        if isinstance(option.default, bool):
            name = flag(option.name)
            assert getattr(parsed(*FOLDERS, f"--{name}"), option.name) is True
            assert getattr(parsed(*FOLDERS, f"--no-{name}"), option.name) is False
            assert getattr(parsed(*FOLDERS), option.name) is option.default


def test_unknown_keys_of_a_job_name_the_file_and_the_nearest(run: Run, tmp_path: Path) -> None:
    """A job file with a wrong key is refused with the file, the key and the nearest known key."""
    job = tmp_path / "job.yaml"
    job.write_text("chekpoint: x\nreference: r\n")
    outcome = run("plan", job)
    assert outcome.status == 1
    assert "unknown key 'chekpoint'; did you mean 'checkpoint'?" in outcome.stderr
    assert str(job) in outcome.stderr


@pytest.mark.parametrize("job", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_packaged_jobs_are_valid(job: Path) -> None:
    """The job files that people start from have known keys and possible values."""
    options_from(read_job(job), str(job), ExportOptions)


# --- commands


def test_plan_shows_and_makes_nothing(run: Run, folders: list[object], tmp_path: Path) -> None:
    """`plan` prints a table, or with --json a value, of what an export by so many ranks would do, and makes
    nothing.
    """
    shown = run("plan", *folders, "--world-size", 4)
    assert shown.status == 0
    assert "model-00008-of-00008.safetensors" in shown.stdout
    machine = ("--nodes", 2, "--cores", 8, "--storage-gbps", "40,20", "--network-gbps", 5)
    value = json.loads(run("plan", *folders, "--world-size", 4, *machine, "--json").stdout)
    found = value["prediction"]
    assert (found["nodes"], found["cores"], found["network_gbps"]) == (2, 8, 5)
    assert (found["read_gbps"], found["write_gbps"]) == (40, 20)
    assert [rank["rank"] for rank in value["ranks"]] == [0, 1, 2, 3]
    assert len(value["shards"]) == 8
    assert value["expected_from"] == "the table itself"
    assert list(tmp_path.iterdir()) == []


def test_plan_takes_a_job_file_like_flags(run: Run, folders: list[Any], tmp_path: Path) -> None:
    """The same values in a job file give the same plan as flags do."""
    job = tmp_path / "job.yaml"
    values = dict(zip(folders[::2], map(str, folders[1::2])))
    lines = [f"{flag.removeprefix('--')}: {value}\n" for flag, value in values.items()]
    job.write_text("".join([*lines, "max_shard_size: 60KB\n"]))
    by_flags = run("plan", *folders, "--max-shard-size", "60KB", "--json")
    by_job = run("plan", job, "--json")
    assert by_flags.status == by_job.status == 0
    assert json.loads(by_flags.stdout) == json.loads(by_job.stdout)


def test_plan_refuses_what_export_would(run: Run, folders: list[Any], tmp_path: Path) -> None:
    """An output that is there is refused, with the place of an iteration too; without an output the plan is
    for any place.
    """
    (tmp_path / "out-10").mkdir()
    (tmp_path / "out-10" / "config.json").touch()
    at = folders.index("--output")
    without = folders[:at] + folders[at + 2 :]
    for output in (tmp_path / "out-10", tmp_path / "out-{iteration}"):
        outcome = run("plan", *without, "--output", output, "--iteration", "10")
        assert outcome.status == 1
        assert "the output exists" in outcome.stderr
    assert run("plan", *without, "--json").status == 0


def test_plan_refuses_a_world_that_the_grid_does_not_divide(run: Run, folders: list[object]) -> None:
    """A world size that the asked parallel sizes don't divide is refused with both."""
    outcome = run("plan", *folders, "--world-size", 6, "--tensor-parallel", 4)
    assert outcome.status == 1
    assert "6 ranks" in outcome.stderr


def test_inspect_shows_the_checkpoint(run: Run, checkpoint: Checkpoint) -> None:
    """`inspect` takes the root or an iteration folder and prints a table, or with --json a value."""
    root = checkpoint("qwen2", "tp2pp2")
    value = json.loads(run("inspect", root, "--json").stdout)
    assert value["iteration"] == 10
    assert value == json.loads(run("inspect", root / "iter_0000010", "--json").stdout)
    assert value == json.loads(run("inspect", root, "--iteration", 10, "--json").stdout)
    assert run("inspect", root, "--iteration", 11).status == 1
    assert "embedding.word_embeddings.weight" in run("inspect", root).stdout


def test_inspect_reads_every_byte(run: Run, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """`inspect --deep` prints digests, what is suspicious and what is damaged; exit status 1 for damage."""
    root = checkpoint("qwen2", "tp2pp2")
    shown = run("inspect", root, "--deep", "--threads", 2)
    value = json.loads(run("inspect", root, "--deep", "--json").stdout)
    digests = [tensor["digest"] for tensor in value["examined"]["tensors"].values()]
    assert shown.status == 0
    assert all(digest in shown.stdout for digest in digests)
    assert "\nok: " in shown.stdout
    assert "CRC-32 of every record checked" in shown.stdout
    shutil.copytree(root, tmp_path / "run")
    file = max((tmp_path / "run").rglob("*.distcp"), key=lambda path: path.stat().st_size)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    broken = run("inspect", tmp_path / "run", "--deep")
    told = run("inspect", tmp_path / "run", "--deep", "--json")
    assert broken.status == told.status == 1
    assert f"FAULT missing: {file.name} is truncated" in broken.stdout
    assert f"FAULT unreadable ({file.name}, " in broken.stdout
    assert {fault["kind"] for fault in json.loads(told.stdout)["examined"]["faults"]} >= {"missing"}


def test_an_export_of_one_process_can_be_verified_and_compared(
    run: Run, folders: list[object], tmp_path: Path
) -> None:
    """`export` as one process makes a folder that `verify` proves and `diff` finds identical to another
    one's.
    """
    made = run("export", *folders, "--json", "--report", tmp_path / "report.json")
    assert made.status == 0
    value = json.loads(made.stdout)
    assert value == json.loads((tmp_path / "report.json").read_text())
    assert (value["status"], value["num_files"]) == ("ok", 8)
    out, other = tmp_path / "out", tmp_path / "other"
    summary = run("export", *folders, "--output", other, "--max-shard-size", "60KB", "--no-verify").stdout
    assert "NOT verified" in summary
    verified = run("verify", out, "--json")
    assert (verified.status, json.loads(verified.stdout)["ok"]) == (0, True)
    compared = run("diff", out, other, "--json")
    assert (compared.status, json.loads(compared.stdout)["identical"]) == (0, True)

    shard = sorted(out.glob("*.safetensors"))[3]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    damaged = run("verify", out)
    assert damaged.status == 1
    assert f"{shard.name}" in damaged.stdout
    assert run("verify", out, "--quick").status == 0
    different = run("diff", out, other)
    assert different.status == 1


def test_logits_are_compared_with_recorded_ones(run: Run, tmp_path: Path) -> None:
    """`compare-logits` exits with 0 only where the logits hold; it tells people and machines the same."""
    pytest.importorskip("transformers")
    folder, recording = tmp_path / "model", tmp_path / "r"
    write_tiny_model("qwen2", folder)
    token_ids = torch.arange(12).view(2, 6)
    pp_export.record_logits(recording, token_ids, ask(folder, token_ids))
    same = run("compare-logits", folder, recording, "--json")
    value = json.loads(same.stdout)
    assert (same.status, value["ok"], value["tolerance"]) == (0, True, 1e-4)
    assert value == pp_export.compare_logits(folder, recording).to_json()
    on_disk = run("compare-logits", folder, recording, "--json", "--max-memory", "300KB")
    assert (on_disk.status, json.loads(on_disk.stdout)["partly_on_disk"]) == (0, True)
    assert on_disk.stderr.splitlines() == [f"comparing the logits of {folder} with {recording}"]
    edit_json("config.json", lambda config: config.update(rms_norm_eps=1.0))(folder)
    other = run("compare-logits", folder, recording)
    assert other.status == 1
    assert "DIFFERENT" in other.stdout
    assert json.loads(run("compare-logits", folder, recording, "--json").stdout)["ok"] is False
    assert run("compare-logits", folder, recording, "--tolerance", "10").status == 0


def test_a_failed_export_reports_and_leaves_nothing(run: Run, folders: list[object], tmp_path: Path) -> None:
    """A failed export ends with status 1, the error on stderr and in the report, and no output."""
    report = tmp_path / "report.json"
    outcome = run("export", *folders, "--vocab-size", 5000, "--report", report)
    assert outcome.status == 1
    assert outcome.stdout == ""
    assert "the vocabulary size does not fit the embedding" in outcome.stderr
    written = json.loads(report.read_text())
    assert written["status"] == "failed"
    assert written["error"]["kind"] == "AccountingError"
    assert "vocab_size 5000" in written["error"]["got"]
    assert written["options"]["vocab_size"] == 5000
    assert os.listdir(tmp_path) == ["report.json"]


def test_a_backend_that_can_not_be_had_is_refused(run: Run, folders: list[object]) -> None:
    """`--backend nccl` without a GPU is refused by one rank as by many, though it has nobody to send to."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    outcome = run("export", *folders, "--backend", "nccl")
    assert (outcome.status, outcome.stdout) == (1, "")
    assert "--backend nccl needs a GPU" in outcome.stderr


def test_imports_that_fail_are_reported(tmp_path: Path) -> None:
    """What is missing in the environment of one rank is an error with a report, for people, machines and
    torchrun, and no traceback.
    """
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "torch.py").write_text("raise ImportError('libcudart.so.13 is missing')")
    report, told = tmp_path / "report.json", tmp_path / "error.json"
    ranks = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    env = ranks | {"TORCHELASTIC_ERROR_FILE": str(told), "PYTHONPATH": f"{tmp_path / 'broken'}:{ROOT}"}
    command = ["-m", "pp_export", "export", "--checkpoint", "absent", "--reference", "absent"]
    command += ["--output", str(tmp_path / "output"), "--report", str(report)]
    with started(command, tmp_path / "printed", env=env) as running:
        ended = running.wait(60)
    assert ended.status == 1
    what = "Python could not import what an export needs: libcudart.so.13 is missing"
    assert ended.stderr.count(f"[rank 1] error: {what}") == 1
    assert "Traceback" not in ended.stderr
    assert json.loads(report.read_text())["error"]["what"] == what
    assert json.loads(told.read_text())["message"]["message"] == what


@pytest.mark.parametrize("command", ["inspect", "verify", "diff", "plan", "export"])
def test_a_failure_is_json_where_that_was_asked_for(command: str, tmp_path: Path) -> None:
    """What fails says so on stdout as well, with the schema of failures; the exit status stays."""
    absent = str(tmp_path / "absent")
    arguments = {
        "diff": [absent, absent],
        "plan": [f"--checkpoint={absent}", "--architecture=qwen2"],
        "export": [f"--checkpoint={absent}", "--architecture=qwen2", f"--output={tmp_path / 'out'}"],
    }
    done = run_python(
        ["-m", "pp_export", command, *arguments.get(command, [absent]), "--json"], tmp_path / "run"
    )
    assert done.status == 1
    told = json.loads(done.stdout)
    schema = "report" if command == "export" else "failure"
    text = resources.files("pp_export.schemas").joinpath(f"{schema}.json").read_text()
    Draft202012Validator(json.loads(text)).validate(told)
    assert told["status"] == "failed"
    assert absent in str(told["error"]["where"])


def test_what_ranks_have_alike_is_printed_once(
    checkpoint: Checkpoint, reference: Reference, tmp_path: Path
) -> None:
    """Under torchrun, plan and verify print one result and one line of log, whatever the number of ranks;
    what a rank's process starts itself speaks for itself.
    """
    options = [f"--checkpoint={checkpoint('qwen2', 'tp2')}", f"--reference={reference('qwen2')}"]
    done = run_python(torchrun(2, "-m", "pp_export", "plan", *options, "--json"), tmp_path / "run").checked()
    json.loads(done.stdout)
    assert done.stderr.count("planning the export of") == 1
    environment = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    command = ["-m", "pp_export", "plan", *options, "--json"]
    with started(command, tmp_path / "other", env=environment) as other:
        json.loads(other.wait(120).checked().stdout)


def test_errors_of_a_first_try_say_what_to_do(
    checkpoint: Checkpoint, reference: Reference, tmp_path: Path
) -> None:
    """A hub's name as reference, files for folders, a parent that isn't there, a size without unit."""
    folder, model = str(checkpoint("qwen2", "tp2")), str(reference("qwen2"))
    file = tmp_path / "file"
    file.write_text("")
    usual = {"checkpoint": folder, "reference": model, "output": str(tmp_path / "out")}
    for changed, words in (
        ({"reference": "Qwen/Qwen2-1.5B"}, "hf download Qwen/Qwen2-1.5B"),
        ({"reference": str(file)}, "the reference is a file, not a folder"),
        ({"checkpoint": str(file)}, "the checkpoint is a file, not a folder"),
        ({"output": str(tmp_path / "absent" / "out")}, "--parents"),
        ({"max_shard_size": "5"}, "for example 5GB"),
    ):
        values: Any = {**usual, **changed}
        with pytest.raises(pp_export.ExportError) as caught:
            pp_export.export_checkpoint(**values)
        assert words in str(caught.value)
