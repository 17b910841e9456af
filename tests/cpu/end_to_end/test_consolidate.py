"""Claims of `consolidate`: whatever ranks have saved under Hugging Face names becomes the model that they
had, the same bytes by any number of ranks, or is refused before anything is written.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import pp_export
from pp_export import cli
from pp_export.checkpoint.hf_shards.source import RankSavedSource
from pp_export.core import file_names
from pp_export.core.errors import AccountingError, CheckpointError, ExportError, OptionError
from pp_export.distributed.alone import alone
from pp_export.export import export
from pp_export.options.consolidation import ConsolidateOptions
from pp_export.options.values import options_from
from pp_export.steps.report import ExportReport
from tests.cpu.conftest import RANK_SAVES, RankSaves
from tests.fixtures.exports import files_of, remembering
from tests.fixtures.hf_folders import header_of
from tests.fixtures.naive_merge import edit_header, naive_merge
from tests.fixtures.processes import run_python, torchrun
from tests.fixtures.releases import transformers_5
from tests.fixtures.tiny_models import ask
from tests.fixtures.write_rank_shards import tensors_of

pytestmark = transformers_5

TOKENS = torch.arange(24).reshape(2, 12) * 7
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
OF_MODELS = [(model, kind) for model, kinds in RANK_SAVES.items() for kind in kinds if kind != "hf_odd"]


def consolidate_here(source: Path, output: Path, **options: Any) -> ExportReport:
    """Consolidate in a world of one: this process."""
    chosen = options_from({"input": source, "output": output, **options}, "test", ConsolidateOptions)
    world = alone(stall_seconds=60)
    try:
        with remembering():
            return export(
                RankSavedSource(chosen.input, chosen.check_source, chosen.input_ranks), chosen, world
            )
    finally:
        world.close()


def check_same(folder: Path, expected: dict[str, torch.Tensor]) -> None:
    """The tensors of a folder, as the safetensors library reads them, bit by bit."""
    found = tensors_of(folder)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


def weights(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in files_of(folder).items() if name.endswith((".safetensors", ".json"))}


@pytest.mark.parametrize(("model", "kind"), OF_MODELS, ids=["-".join(each) for each in OF_MODELS])
def test_the_model_comes_back(rank_saves: RankSaves, model: str, kind: str, tmp_path: Path) -> None:
    """Of every kind of save: the tensors that transformers had saved before, bit by bit, a folder that
    verifies against the definition of the class, and equal logits in transformers.
    """
    source, output = rank_saves.source(model), tmp_path / "out"
    has_own = kind.startswith("verl") or kind == "hf_tied"
    options = {} if has_own else {"reference": source}
    report = consolidate_here(rank_saves.save(model, kind), output, **options)
    check_same(output, tensors_of(source))
    verified = pp_export.verify(output)
    assert verified.ok, verified.faults
    assert torch.equal(ask(output, TOKENS), ask(source, TOKENS))
    assert report.expected_from == "the model's own definition (transformers)"
    assert report.num_tensors == len(tensors_of(source))
    told = " ".join(report.notes)
    assert ("which lies with the input" in told) == has_own
    assert ("optimizer" in told) == (kind in ("dcp_app", "verl"))
    assert ("No checksums" in told) == kind.startswith("hf")
    assert report.source_checked is not kind.startswith("hf")
    is_twice = model == "qwen2_tied" and kind != "hf"
    assert report.dropped == ({HEAD: f"equal to {EMBEDDING}, to which the class ties it"} if is_twice else {})


@pytest.mark.parametrize("layout", ["auto", "layers", "size"])
def test_every_number_of_ranks_makes_the_same_bytes(
    rank_saves: RankSaves, layout: str, tmp_path: Path
) -> None:
    """Two and three ranks by torchrun, each with threads, and one in this process make equal files, however
    these are cut; the command line says so too.
    """
    source, saved = rank_saves.source("qwen2"), rank_saves.save("qwen2", "hf")
    consolidate_here(saved, tmp_path / "one", reference=source, layout=layout, max_shard_size="60KB")
    for count in (2, 3) if layout == "auto" else (2,):
        output = tmp_path / f"by-{count}"
        flags = ["--input", saved, "--reference", source, "--output", output, "--layout", layout]
        command = torchrun(count, "-m", "pp_export", "consolidate", *map(str, flags), "--threads", "2",
                           "--max-shard-size", "60KB", "--json")  # fmt: skip
        ended = run_python(command, tmp_path / f"log-{count}", timeout_s=120).checked()
        assert json.loads(ended.stdout)["num_tensors"] == 27
        ours, theirs = weights(output), weights(tmp_path / "one")
        del ours[file_names.MANIFEST], theirs[file_names.MANIFEST]
        assert ours == theirs


def test_odd_tensors_stay_what_they_are(rank_saves: RankSaves, tmp_path: Path) -> None:
    """Tensors without dims, integers, booleans, float64, cut along any dim, unevenly or into nothing. torch's
    own merge stumbles over integers, and makes 0 of a scalar. Without a reference the folder has weights and
    index, and says so; a cast touches floating-point tensors only.
    """
    saved = rank_saves.save("qwen2", "hf_odd")
    whole = torch.load(saved / "whole.pt")
    report = consolidate_here(saved, tmp_path / "out", input_ranks=4)
    check_same(tmp_path / "out", whole)
    assert sorted(files_of(tmp_path / "out")) == [
        *("SHA256SUMS", "export_manifest.json", "model.safetensors", file_names.INDEX)
    ]
    assert any("weights and index only" in note for note in report.notes)
    assert pp_export.verify(tmp_path / "out").ok
    consolidate_here(saved, tmp_path / "cast", input_ranks=4, dtype="float16")
    check_same(
        tmp_path / "cast",
        {name: value.half() if value.is_floating_point() else value for name, value in whole.items()},
    )
    with pytest.raises(TypeError):
        naive_merge(saved, tmp_path / "naive", list(whole))
    floating = [name for name, value in whole.items() if value.is_floating_point()]
    for path in sorted(saved.glob("*.safetensors")):  # without the integers it goes on, and loses the scalar
        keep(path, tmp_path / "floating" / path.name, floating)
    found = naive_merge(tmp_path / "floating", tmp_path / "naive-too", floating)
    assert found["layers.0.input_scale"].item() == 0
    assert whole["layers.0.input_scale"].item() != 0


def keep(path: Path, to: Path, names: list[str]) -> None:
    """The file with these of its tensors alone, as torch would have written it."""
    to.parent.mkdir(exist_ok=True)
    with safe_open(path, framework="pt") as file:
        kept = {name: file.get_tensor(name) for name in file.keys() if name in names}  # noqa: SIM118
        info = json.loads(file.metadata()["DCP_SHARDING_INFO"])
        metadata = {
            "DCP_SHARDING_INFO": json.dumps({name: info[name] for name in kept}),
            "DCP_VERSION": "1.0",
            "format": "pt",
        }
    save_file(kept, to, metadata=metadata)


# --- what the naive merge gets wrong


@pytest.fixture
def damaged(rank_saves: RankSaves, tmp_path: Path) -> Path:
    """A copy of a save, to be damaged."""
    return Path(shutil.copytree(rank_saves.save("qwen2_tied", "hf_tied") / "model", tmp_path / "model"))


def refused(folder: Path, tmp_path: Path, **options: Any) -> ExportError:
    """The one error with which it ends, before anything is written."""
    with pytest.raises(ExportError) as caught:
        consolidate_here(folder, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))
    return caught.value


def shard(folder: Path, rank: int) -> Path:
    return folder / f"shard-{rank + 1:05d}-model-00001-of-00001.safetensors"


@pytest.mark.parametrize("rank", [0, 2, 3])
def test_a_missing_shard_is_refused(rank_saves: RankSaves, damaged: Path, rank: int, tmp_path: Path) -> None:
    """torch makes zeros of what the first or a middle rank had, and a smaller tensor without the last. Every
    tensor that suffers is named, with the model's definition, or by the number of ranks.
    """
    true = tensors_of(rank_saves.source("qwen2_tied"))
    shard(damaged, rank).unlink()
    found = naive_merge(damaged, tmp_path / "naive", list(true))
    assert any(value.shape != true[name].shape or not torch.equal(value, true[name])
               for name, value in found.items())  # fmt: skip
    error = refused(damaged, tmp_path)
    assert type(error) is (AccountingError if rank == 3 else CheckpointError)
    assert len(error.findings) >= 20
    if rank == 3:
        assert "the files of the last ranks are missing" in error.findings[0]
    told = refused(damaged, tmp_path, input_ranks=4)
    assert told.findings == (f"shard-{rank + 1:05d}-*: rank {rank} of 4 has no file here",)


def test_a_shard_of_an_older_save_is_refused(rank_saves: RankSaves, damaged: Path, tmp_path: Path) -> None:
    """A run of more ranks has left a file, with other values: torch takes them, where they come last."""
    true = tensors_of(rank_saves.source("qwen2_tied"))
    stale = shard(damaged, 8)
    data = shard(damaged, 1).read_bytes()
    stale.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    found = naive_merge(damaged, tmp_path / "naive", list(true))
    assert any(not torch.equal(found[name], value) for name, value in true.items())
    error = refused(damaged, tmp_path)
    assert isinstance(error, CheckpointError)
    assert "some twice" in error.findings[0]
    assert stale.name in error.findings[0]
    told = refused(damaged, tmp_path, input_ranks=4)
    assert told.findings == ("shard-00009-*: 4 ranks have no rank 8",)


def test_shards_of_two_types_are_refused(rank_saves: RankSaves, tmp_path: Path) -> None:
    """torch reads the bytes of one type as those of the other."""
    saved, name = rank_saves.save("qwen2", "hf_odd"), "layers.0.weight"
    for path in sorted(saved.glob("*.safetensors")):
        keep(path, tmp_path / "model" / path.name, [name])
    path = shard(tmp_path / "model", 2)
    header = header_of(path)[0]
    edit_header(path, {name: header[name] | {"dtype": "F16"}})
    found = naive_merge(tmp_path / "model", tmp_path / "naive", [name])
    assert found[name].dtype == torch.bfloat16
    error = refused(tmp_path / "model", tmp_path, input_ranks=4)
    first = shard(tmp_path / "model", 0).name
    assert error.findings == (
        f"{name}: its pieces are of several types: bfloat16 in {first}, float16 in {path.name}",
    )


def test_names_that_only_one_side_has_are_refused(
    rank_saves: RankSaves, damaged: Path, tmp_path: Path
) -> None:
    """A tensor that the model doesn't have: torch leaves it out in silence. One that nobody has saved: torch
    writes a file that nobody can read. Both are listed.
    """
    true = tensors_of(rank_saves.source("qwen2_tied"))
    lost, new = "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.other_proj.weight"
    for rank in range(4):
        data = shard(damaged, rank).read_bytes().replace(lost.encode(), new.encode()[: len(lost)])
        shard(damaged, rank).write_bytes(data)
    new = new[: len(lost)]
    found = naive_merge(damaged, tmp_path / "naive", [name for name in true if name != lost])
    assert new not in found
    with pytest.raises(Exception, match=r"dtype|header|variant"):
        naive_merge(damaged, tmp_path / "naive-too", list(true))
    error = refused(damaged, tmp_path)
    assert isinstance(error, AccountingError)
    assert error.findings == (
        f"{lost} is expected, and the input does not have it",
        f"{new} float32[96, 64] is in the input, and the model does not have it",
    )


def test_a_tied_head_that_differs_is_refused(damaged: Path, tmp_path: Path) -> None:
    """The class ties the head; one that was trained apart is another model, so it is not dropped."""
    path = shard(damaged, 1)
    header, data_begin = header_of(path)
    data = bytearray(path.read_bytes())
    data[data_begin + header[HEAD]["data_offsets"][0] + 5] ^= 1
    path.write_bytes(data)
    error = refused(damaged, tmp_path)
    assert error.what == "tensors that the class ties to each other differ in the input"
    assert error.where["tensor"] == HEAD


def test_truncated_and_foreign_files_are_refused(
    rank_saves: RankSaves, damaged: Path, tmp_path: Path
) -> None:
    """A file cut short, one without torch's sharding info, and files of two ways to cut the model."""
    path = shard(damaged, 1)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    assert refused(damaged, tmp_path).what == "the file is truncated"
    path.write_bytes(whole[:6])
    assert "truncated" in refused(damaged, tmp_path).what
    shutil.copy(rank_saves.source("qwen2") / "model-00001-of-00004.safetensors", path)
    assert "which part of its tensors" in refused(damaged, tmp_path).what
    path.write_bytes(whole)
    shutil.copy(path, path.with_name("shard-00002-model-00001-of-00004.safetensors"))
    error = refused(damaged, tmp_path)
    assert error.findings == ("files of saves in 1 and in 4 parts lie together",)


def test_without_shapes_the_number_of_ranks_is_needed(damaged: Path, tmp_path: Path) -> None:
    """safetensors of ranks don't say how large a tensor is. Without a model that does, the number of ranks
    must be said; else the last ones could be missing.
    """
    shutil.rmtree(damaged / ".hf_metadata")
    assert "the shapes of the tensors are not known" in refused(damaged, tmp_path).what
    assert refused(damaged, tmp_path, input_ranks=5).findings == (
        "shard-00005-*: rank 4 of 5 has no file here",
    )
    consolidate_here(damaged, tmp_path / "out", input_ranks=4)
    assert HEAD in tensors_of(tmp_path / "out")  # nobody says that it is tied


# --- files of ranks (verl)


def test_files_of_ranks_must_be_those_of_one_save(rank_saves: RankSaves, tmp_path: Path) -> None:
    """A missing rank, a file of a run of another size, and a config that tells of others are named."""
    folder = Path(shutil.copytree(rank_saves.save("qwen2", "verl"), tmp_path / "actor"))
    name = "model_world_size_4_rank_{}.pt"
    (folder / name.format(2)).rename(tmp_path / "aside")
    assert refused(folder, tmp_path).findings == (f"{name.format(2)} is missing",)
    (tmp_path / "aside").rename(folder / name.format(2))
    shutil.copy(folder / name.format(0), folder / "model_world_size_2_rank_0.pt")
    assert refused(folder, tmp_path).findings == ("model_world_size_2_rank_0.pt is of another save",)
    (folder / "model_world_size_2_rank_0.pt").unlink()
    (folder / "fsdp_config.json").write_text('{"FSDP_version": 2, "world_size": 8}')
    assert "is missing" in refused(folder, tmp_path).findings[0]
    (folder / "fsdp_config.json").unlink()
    consolidate_here(folder, tmp_path / "out")


@pytest.mark.parametrize(("kind", "rank", "first"), [("verl_hsdp", 3, 1), ("verl_replicated", 2, 0)])
def test_copies_that_differ_are_refused(
    rank_saves: RankSaves, kind: str, rank: int, first: int, tmp_path: Path
) -> None:
    """What ranks hold in common must be the same: another replica's values tell of another save."""
    folder = Path(shutil.copytree(rank_saves.save("qwen2", kind), tmp_path / "actor"))
    name = "model_world_size_4_rank_{}.pt"
    with_another_value(folder / name.format(rank))
    error = refused(folder, tmp_path)
    assert error.what.startswith("copies of tensors differ between ranks")
    (finding,) = error.findings
    assert finding.endswith(f": {name.format(first)} and {name.format(rank)}")


def with_another_value(path: Path) -> None:
    """Change a value of the first storage of a file by torch.save, and its CRC with it."""
    with zipfile.ZipFile(path) as file:
        members = {name: bytearray(file.read(name)) for name in file.namelist()}
    next(data for name, data in members.items() if name.endswith("/data/0"))[1] ^= 1
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for name, data in members.items():
            file.writestr(name, bytes(data))


def test_a_damaged_record_is_named(rank_saves: RankSaves, tmp_path: Path) -> None:
    """torch.save keeps a CRC-32 of every storage: a flipped bit ends the consolidation, with nothing left."""
    folder = Path(shutil.copytree(rank_saves.save("qwen2", "verl"), tmp_path / "actor"))
    path = folder / "model_world_size_4_rank_1.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    error = refused(folder, tmp_path)
    assert "CRC-32" in error.what
    assert error.where["file"] == str(path)


# --- DCP


def test_saves_that_are_others_are_told(rank_saves: RankSaves, tmp_path: Path) -> None:
    """No save at all, several, an unfinished one, one of the optimizer alone, and Megatron's."""
    assert "nothing that ranks have saved" in refused(rank_saves.source("qwen2"), tmp_path).what
    assert "several saves" in refused(rank_saves.save("qwen2", "hf").parent, tmp_path).what
    folder = Path(shutil.copytree(rank_saves.save("qwen2", "dcp_plain"), tmp_path / "dcp"))
    (folder / ".metadata").rename(tmp_path / "metadata")
    assert "unfinished" in refused(folder, tmp_path).what
    (tmp_path / "metadata").rename(folder / ".metadata")
    (folder / "__2_0.distcp").unlink()
    assert refused(folder, tmp_path).findings == ("__2_0.distcp is missing",)
    optimizer = rank_saves.save("qwen2_tied", "hf_tied") / "optim"
    assert "no weights" in refused(optimizer, tmp_path).what


def test_a_checkpoint_of_megatron_is_told_from_these(checkpoint: Any, tmp_path: Path) -> None:
    """Its own format, and its names in plain DCP, are pointed to `export`."""
    iteration = next(checkpoint("qwen2", "tp2").glob("iter_*"))
    assert "is a Megatron checkpoint" in refused(iteration, tmp_path).what
    folder = Path(shutil.copytree(iteration, tmp_path / "plain"))
    for name in ("metadata.json", "common.pt"):
        (folder / name).unlink(missing_ok=True)
    assert "Megatron's names" in refused(folder, tmp_path).what


# --- files of the result


def with_files(source: Path, folder: Path, names: dict[str, str]) -> Path:
    """A reference without weights whose index names the files otherwise."""
    folder.mkdir()
    for path in source.iterdir():
        if path.suffix == ".json":
            shutil.copy(path, folder)
    index = json.loads((source / file_names.INDEX).read_text())
    index["weight_map"] = {
        tensor: names[file] for tensor, file in index["weight_map"].items() if names.get(file)
    }
    (folder / file_names.INDEX).write_text(json.dumps(index))
    return folder


USUAL = [f"model-{number:05d}-of-00004.safetensors" for number in range(1, 5)]
ODD = ("model.safetensors-00001-of-00014.safetensors", "model.safetensors-00007-of-00014.safetensors",
       "extra-weights.safetensors", "model-00009-of-00014.safetensors")  # fmt: skip


def test_the_files_of_the_reference_stay(rank_saves: RankSaves, tmp_path: Path) -> None:
    """Whatever they are called: N files stay N with the same tensors, gaps in other names stay, and those in
    the usual names are closed, as loaders and `verify` expect. The weights themselves aren't needed.
    """
    source = rank_saves.source("qwen2")
    reference = with_files(source, tmp_path / "odd", dict(zip(USUAL, ODD)))
    consolidate_here(rank_saves.save("qwen2", "dcp_plain"), tmp_path / "out", reference=reference)
    assert pp_export.verify(tmp_path / "out").ok
    check_same(tmp_path / "out", tensors_of(source))
    made, asked = (
        json.loads((folder / file_names.INDEX).read_text())["weight_map"]
        for folder in (tmp_path / "out", reference)
    )
    renamed = dict(zip(ODD, (*ODD[:3], "model-00001-of-00001.safetensors")))
    assert made == {name: renamed[file] for name, file in asked.items()}


def test_tensors_that_the_index_lacks_lie_with_their_neighbours(
    rank_saves: RankSaves, tmp_path: Path
) -> None:
    """An index without some names: they are in the files of the names before them, and are listed."""
    source = rank_saves.source("qwen2")
    names = {USUAL[0]: "a.safetensors", USUAL[3]: "b.safetensors"}
    reference = with_files(source, tmp_path / "few", names)
    report = consolidate_here(rank_saves.save("qwen2", "hf"), tmp_path / "out", reference=reference)
    assert {path.name for path in (tmp_path / "out").glob("*.safetensors")} == {*names.values()}
    check_same(tmp_path / "out", tensors_of(source))
    whole = json.loads((source / file_names.INDEX).read_text())["weight_map"]
    count = sum(file not in names for file in whole.values())
    assert any(note.startswith(f"{count} tensors are not in the reference's") for note in report.notes)


def test_one_file_stays_one(rank_saves: RankSaves, tmp_path: Path) -> None:
    """A reference with a single model.safetensors gives one, which transformers loads."""
    source = rank_saves.source("qwen2")
    reference = tmp_path / "single"
    shutil.copytree(source, reference, ignore=shutil.ignore_patterns("model*"))
    save_file(tensors_of(source), reference / file_names.SINGLE_WEIGHTS, metadata={"format": "pt"})
    consolidate_here(rank_saves.save("qwen2", "verl"), tmp_path / "out", reference=reference)
    assert [path.name for path in (tmp_path / "out").glob("*.safetensors")] == ["model.safetensors"]
    assert torch.equal(ask(tmp_path / "out", TOKENS), ask(source, TOKENS))


# --- how it is made


def test_a_consolidation_that_failed_goes_on(
    rank_saves: RankSaves, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --resume, what was committed stays, is read again, and isn't made anew."""
    saved, source = rank_saves.save("qwen2", "hf"), rank_saves.source("qwen2")
    with monkeypatch.context() as patch:

        def fail(*_: object) -> None:
            raise OSError("no more")

        patch.setattr("pp_export.shards.index.merge_shards", fail)
        with pytest.raises(ExportError):
            consolidate_here(saved, tmp_path / "out", reference=source, resume=True)
    report = consolidate_here(saved, tmp_path / "out", reference=source, resume=True)
    assert report.kept_bytes > 0
    check_same(tmp_path / "out", tensors_of(source))
    assert not list(tmp_path.glob(".out*"))


def test_a_program_calls_it(rank_saves: RankSaves, tmp_path: Path) -> None:
    """The function takes what the flags take, and gives the report; what is Megatron's is none of it."""
    with remembering():
        report = pp_export.consolidate(
            rank_saves.save("qwen2", "verl"), output=tmp_path / "out", report=tmp_path / "r.json"
        )
    assert report == pp_export.ExportReport.from_json(json.loads((tmp_path / "r.json").read_text()))
    with pytest.raises(OptionError):
        pp_export.consolidate("x", output=tmp_path / "y", checkpoint="c")  # type: ignore[call-arg]


def test_a_job_file_says_what_flags_say(rank_saves: RankSaves, tmp_path: Path) -> None:
    """The keys are the flags; Megatron's are refused."""
    job = tmp_path / "job.yaml"
    job.write_text(f"input: {rank_saves.save('qwen2', 'verl')}\noutput: {tmp_path / 'out'}\nlayout: layers\n")
    run_python(["-m", "pp_export", "consolidate", str(job)], tmp_path / "log").checked()
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 4
    job.write_text("input: a\noutput: b\nmtp: drop\n")
    ended = run_python(["-m", "pp_export", "consolidate", str(job)], tmp_path / "log-too")
    assert ended.status == 1
    assert "unknown key 'mtp'" in ended.stderr


@pytest.mark.parametrize("kind", ["hf", "dcp_plain", "verl"])
def test_a_plan_is_what_is_done(
    kind: str, rank_saves: RankSaves, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`plan --input` gives the files of the consolidation, with their tensors and sizes in bytes, and each
    rank's share of them; nothing is written, and flags that are of exports alone are refused.
    """
    source, reference = rank_saves.save("qwen2", kind), rank_saves.source("qwen2")
    output, flags = tmp_path / "out", ["--layout", "size", "--max-shard-size", "60KB", "--json"]
    command = ["plan", "--input", str(source), "--reference", str(reference), "--world-size", "2", *flags]
    before = files_of(source)
    with remembering():
        assert cli.main([*command, "--output", str(output)]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert list(tmp_path.iterdir()) == []
    consolidate_here(source, output, reference=reference, layout="size", max_shard_size="60KB")
    assert files_of(source) == before
    sizes = {path.name: path.stat().st_size for path in output.glob("*.safetensors")}
    assert {shard["file"]: shard["bytes"] for shard in planned["shards"]} == sizes
    named = {shard["file"]: set(shard["tensors"]) for shard in planned["shards"]}
    assert named == {file: header_of(output / file)[0].keys() - {"__metadata__"} for file in sizes}
    assert sum(rank["written_bytes"] for rank in planned["ranks"]) == sum(sizes.values())
    assert len(planned["ranks"]) == 2
    assert cli.main([*command, "--iteration", "1"]) == 1
    assert cli.main([*command, "--mtp", "drop"]) == 1
    assert cli.main(["plan", "--input-ranks", "4"]) == 1
