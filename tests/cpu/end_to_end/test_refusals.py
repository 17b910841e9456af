"""Claims: what can't be exported rightly is refused with one clear error, and nothing is written."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.distributed import HashStore  # type: ignore[attr-defined]

from pp_export.checkpoint.folder_source import CheckpointSource
from pp_export.core import errors
from pp_export.core.errors import ExportError
from pp_export.disk import folders
from pp_export.distributed.shared_keys import SharedKeys
from pp_export.distributed.world import World
from pp_export.export import export
from pp_export.options.cluster import ClusterOptions
from pp_export.options.kinds import ExportOptions
from pp_export.steps.plan_report import PlanReport, plan_checkpoint
from tests.cpu.conftest import Checkpoint, Reference
from tests.fixtures.exports import export_here, files_of, remembering
from tests.fixtures.stored import read_stored, write_stored

METADATA, COMMON, TRACKER = ".metadata", "common.pt", "latest_checkpointed_iteration.txt"
ITERATION = "iter_0000010"
INDEX = "model.safetensors.index.json"


class Inputs:
    """A checkpoint and a reference of one's own to damage, and the options to export them with."""

    def __init__(self, checkpoint: Path, reference: Path, root: Path) -> None:
        self.checkpoint, self.reference = root / "checkpoint", root / "reference"
        shutil.copytree(checkpoint, self.checkpoint)
        shutil.copytree(reference, self.reference)
        self.folder = self.checkpoint / ITERATION
        self.parent = root / "parent"
        self.parent.mkdir()
        (self.parent / "neighbour").write_text("not ours")
        self.marker = root / "the payload ran"
        self.options: dict[str, Any] = {
            "checkpoint": self.checkpoint,
            "reference": self.reference,
            "output": self.parent / "export",
        }

    def config(self, **changes: Any) -> None:
        """Change config.json; None takes a key out."""
        path = self.reference / "config.json"
        config = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))

    def store(self, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
        """Change the stored tensors: they are read and written again by torch."""
        tensors, args = read_stored(self.checkpoint)
        change(tensors)
        shutil.rmtree(self.folder)
        write_stored(self.folder, tensors, args)

    def table(self, change: Callable[[list[dict[str, Any]]], object]) -> None:
        """Use a table of one's own: that of Qwen2, with its rows changed."""
        rows: list[dict[str, Any]] = []
        change(rows)
        path = self.checkpoint / "table.yaml"
        path.write_text(yaml.safe_dump({"extends": "qwen2", "rules": rows}))
        self.options["architecture"] = str(path)

    def refused(self, kind: type[ExportError], *told: str) -> ExportError:
        """Export; asserts that `kind` is raised, tells all of `told`, that nothing is left, and that a plan
        is refused with the same words.
        """
        before = files_of(self.parent)
        with pytest.raises(ExportError) as caught:
            export_here(**self.options)
        assert type(caught.value) is kind, caught.value
        message = str(caught.value)
        assert not [text for text in told if text not in message], message
        assert files_of(self.parent) == before
        assert sorted(os.listdir(self.parent)) == sorted({Path(name).parts[0] for name in before})
        self.refused_by_plan(caught.value)
        assert files_of(self.parent) == before
        assert sorted(os.listdir(self.parent)) == sorted({Path(name).parts[0] for name in before})
        assert not self.marker.exists()
        return caught.value

    def refused_by_plan(self, error: ExportError) -> None:
        """A plan says what the export said, but for the rank."""
        with pytest.raises(ExportError) as caught:
            planned(self.options)
        said = error.to_json()
        where = {key: place for key, place in error.where.items() if key != "rank"}
        assert caught.value.to_json() == {**said, "where": where}


def planned(options: dict[str, Any]) -> PlanReport:
    with remembering():
        return plan_checkpoint(ExportOptions(**options), ClusterOptions(), here=True)


@pytest.fixture
def inputs(checkpoint: Checkpoint, reference: Reference, tmp_path: Path) -> Inputs:
    """Copies of a Qwen2 checkpoint (TP2, DP2) and its reference."""
    return Inputs(checkpoint("qwen2", "tp2"), reference("qwen2"), tmp_path)


def test_the_inputs_are_good_before_they_are_damaged(inputs: Inputs) -> None:
    """Every test below starts from an export that works, also after torch has stored the tensors again."""
    made = planned(inputs.options)
    assert planned(inputs.options | {"resume": True}) == made
    assert export_here(**inputs.options).plan_fingerprint == made.fingerprint
    assert sorted(os.listdir(inputs.parent)) == ["export", "neighbour"]
    inputs.store(lambda tensors: None)
    export_here(**inputs.options | {"output": inputs.parent / "again"})
    sums = {(inputs.parent / name / "SHA256SUMS").read_text() for name in ("export", "again")}
    assert len(sums) == 1


# --- the checkpoint


def test_a_missing_checkpoint(inputs: Inputs) -> None:
    """A checkpoint path that leads nowhere is named."""
    inputs.options["checkpoint"] = inputs.checkpoint / "absent"
    inputs.refused(errors.CheckpointError, "does not exist", str(inputs.checkpoint / "absent"))


def test_a_folder_without_metadata(inputs: Inputs) -> None:
    """A folder that holds no checkpoint is refused, naming what is missing."""
    for path in inputs.folder.iterdir():
        path.unlink()
    inputs.refused(errors.CheckpointError, METADATA, str(inputs.folder))


@pytest.mark.parametrize("gone", [(METADATA,), (METADATA, "metadata.json"), (METADATA, COMMON)])
@pytest.mark.parametrize("given", ["root", "iteration folder"])
def test_an_unfinished_save(inputs: Inputs, gone: tuple[str, ...], given: str) -> None:
    """Tensor files without .metadata, which is written last, are an unfinished save."""
    for name in gone:
        (inputs.folder / name).unlink()
    if given == "iteration folder":
        inputs.options["checkpoint"] = inputs.folder
    inputs.refused(errors.CheckpointError, "unfinished", METADATA, str(inputs.folder))


def test_a_save_without_metadata_json(inputs: Inputs) -> None:
    """Without metadata.json, which says the format, the folder is not taken for a finished save."""
    (inputs.folder / "metadata.json").unlink()
    inputs.refused(errors.CheckpointError, "metadata.json", str(inputs.folder))


def test_another_backend(inputs: Inputs) -> None:
    """A checkpoint of another backend is refused with both names."""
    path = inputs.folder / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sharded_backend": "fsdp_dtensor"}))
    inputs.refused(errors.CheckpointError, "torch_dist", "fsdp_dtensor")


@pytest.mark.parametrize("text", ["ten", "", "-3", "../../etc"])
def test_a_tracker_that_names_no_iteration(inputs: Inputs, text: str) -> None:
    """A tracker file with anything but an iteration is refused, quoting it."""
    (inputs.checkpoint / TRACKER).write_text(text)
    inputs.refused(errors.CheckpointError, TRACKER, repr(text))


def test_an_iteration_that_is_not_there(inputs: Inputs) -> None:
    """An iteration without a folder is refused, listing those that there are."""
    inputs.options["iteration"] = 20
    inputs.refused(errors.CheckpointError, "iter_0000020", ITERATION)


def test_a_missing_tensor_file(inputs: Inputs) -> None:
    """A missing .distcp file is named before anything is read."""
    victim = sorted(inputs.folder.glob("*.distcp"))[1]
    victim.unlink()
    inputs.refused(errors.CheckpointError, f"{victim.name} is missing")


def test_a_truncated_tensor_file(inputs: Inputs) -> None:
    """A .distcp file that is shorter than its metadata says is named with both sizes."""
    victim = sorted(inputs.folder.glob("*.distcp"))[1]
    size = victim.stat().st_size
    os.truncate(victim, size // 2)
    inputs.refused(errors.CheckpointError, f"{victim.name} is truncated", str(size // 2))


def test_a_damaged_pickle(inputs: Inputs) -> None:
    """A .metadata of which the end is lost is refused by name, not with a pickle's own exception."""
    path = inputs.folder / METADATA
    path.write_bytes(path.read_bytes()[:-200])
    inputs.refused(errors.CheckpointError, str(path))


class Payload:
    """Pickles to a call of any function, as a malicious checkpoint does."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[object, ...]]:
        return self.function, self.arguments


def payloads(marker: Path) -> dict[str, Payload]:
    """Payloads that make the marker file, by the global that they call."""
    code = f"open({str(marker)!r}, 'w').close()"
    return {
        "posix.system": Payload(os.system, f"touch '{marker}'"),
        "builtins.exec": Payload(exec, code),
        "builtins.eval": Payload(eval, f"[{code}]"),
        "pathlib.Path.touch": Payload(Path.touch, marker),
        "_io.open": Payload(open, str(marker), "w"),
        "torch.serialization.load": Payload(torch.load, str(marker)),
    }


NAMES = sorted(payloads(Path()))


@pytest.mark.parametrize("name", NAMES)
def test_a_pickle_payload_in_metadata_does_not_run(inputs: Inputs, name: str) -> None:
    """A .metadata that names a foreign global is refused; the global is named and not called."""
    payload = payloads(inputs.marker)[name]
    data = pickle.dumps({"state_dict_metadata": {}, "planner_data": payload}, protocol=4)
    (inputs.folder / METADATA).write_bytes(data)
    raised = inputs.refused(errors.UnsafePickleError, METADATA, "allow-list")
    assert raised.got is not None
    assert name.rpartition(".")[2] in raised.got


@pytest.mark.parametrize("name", NAMES)
def test_a_pickle_payload_in_common_pt_does_not_run(inputs: Inputs, name: str) -> None:
    """A common.pt that names a foreign global is refused; the global is named and not called."""
    common = {"args": payloads(inputs.marker)[name], "iteration": 10}
    torch.save(common, inputs.folder / COMMON)
    raised = inputs.refused(errors.UnsafePickleError, COMMON, "allow-list")
    # torch writes the older protocol 2, in which a method is reached through getattr.
    assert raised.got is not None
    assert raised.got.rpartition(".")[2] in (name.rpartition(".")[2], "getattr")


def test_the_payloads_would_run(tmp_path: Path) -> None:
    """Loaded by pickle itself the payload does make its marker, so the tests above prove something."""
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(payloads(marker)["posix.system"]))
    assert marker.exists()


def test_a_common_pt_that_is_no_archive(inputs: Inputs) -> None:
    """A common.pt that torch didn't write is refused by name."""
    with zipfile.ZipFile(inputs.folder / COMMON, "w") as archive:
        archive.writestr("nothing", b"")
    inputs.refused(errors.CheckpointError, COMMON)


# --- accounting


def test_a_tensor_without_a_rule(inputs: Inputs) -> None:
    """Megatron tensors that no row of the table takes are all listed."""
    extra = {
        "decoder.layers.mlp.gate_norm.weight": torch.zeros(6, 64),
        "embedding.extra.weight": torch.ones(3),
    }
    inputs.store(lambda tensors: tensors.update(extra))
    inputs.refused(
        errors.AccountingError,
        "no rule for the Megatron tensor decoder.layers.0.mlp.gate_norm.weight",
        "no rule for the Megatron tensor decoder.layers.5.mlp.gate_norm.weight",
        "no rule for the Megatron tensor embedding.extra.weight",
    )


@pytest.mark.parametrize(
    "key",
    [
        "decoder.layers.self_attention.linear_qkv.adapter.linear_in.weight",
        "decoder.layers.mlp.linear_fc1.lora_A.weight",
    ],
)
def test_lora_keys(inputs: Inputs, key: str) -> None:
    """The keys of an adapter are called that, and merging it is advised."""
    inputs.store(lambda tensors: tensors.update({key: torch.zeros(6, 8, 64)}))
    name = key.replace("layers.", "layers.0.", 1).replace(".lora_A.", ".adapter.linear_in.")
    inputs.refused(errors.AccountingError, f"{name} belongs to an adapter (LoRA)", "--lora merge")


def test_a_name_that_is_produced_twice(inputs: Inputs) -> None:
    """A table that makes one Hugging Face tensor of two Megatron tensors is refused with both."""
    inputs.table(
        lambda rows: rows.append(
            {"megatron": "decoder.final_layernorm.weight", "hf": "model.embed_tokens.weight"}
        )
    )
    inputs.refused(
        errors.AccountingError,
        "model.embed_tokens.weight is made twice",
        "decoder.final_layernorm.weight",
        "embedding.word_embeddings.weight",
    )


def test_a_name_that_is_not_produced(inputs: Inputs) -> None:
    """Tensors that the model expects and nothing makes are listed; a drop row isn't a way around it."""
    reason = "nobody will miss it"
    inputs.table(lambda rows: rows.append({"megatron": "decoder.final_layernorm.weight", "drop": reason}))
    inputs.refused(
        errors.AccountingError,
        "model.norm.weight is expected, and no rule makes it",
        "dropped by a rule: decoder.final_layernorm.weight",
    )


def test_a_tensor_that_the_checkpoint_lacks(inputs: Inputs) -> None:
    """A weight missing in the checkpoint is named as the Hugging Face tensor that nothing makes."""
    inputs.store(lambda tensors: tensors.pop("decoder.final_layernorm.weight"))
    inputs.refused(errors.AccountingError, "model.norm.weight is expected, and no rule makes it")


def test_a_name_that_the_model_does_not_have(inputs: Inputs) -> None:
    """A table that makes a tensor the model doesn't know is refused with its name."""
    row = {"megatron": "decoder.final_layernorm.weight", "hf": "model.norm.gain"}
    inputs.table(lambda rows: rows.append(row))
    inputs.refused(errors.AccountingError, "model.norm.gain", "the model does not have it")


@pytest.mark.parametrize(
    ("changes", "size", "trained", "stated"),
    [
        ({"num_hidden_layers": 5}, "num_layers", "6", "5"),
        ({"hidden_size": 128}, "hidden_size", "64", "128"),
        ({"intermediate_size": 100}, "ffn_hidden_size", "96", "100"),
        ({"num_attention_heads": 4}, "num_attention_heads", "8", "4"),
        ({"num_key_value_heads": 2}, "num_query_groups", "4", "2"),
        ({"rms_norm_eps": 1e-6}, "norm_epsilon", "0.003", "1e-06"),
        ({"rope_parameters": {"rope_theta": 10000.0}}, "rotary_base", "54000", "10000.0"),
        ({"tie_word_embeddings": True}, "tied", "False (untie_embeddings_and_output_weights True)", "True"),
    ],
)
def test_sizes_that_disagree_with_the_reference(
    inputs: Inputs, changes: dict[str, Any], size: str, trained: str, stated: str
) -> None:
    """A size that config.json and the training args state differently is named with both values."""
    inputs.config(**changes)
    told = f"{size}: the checkpoint was trained with {trained}, config.json says {stated}"
    inputs.refused(errors.AccountingError, told)


def test_experts_that_disagree_with_the_reference(
    checkpoint: Checkpoint, reference: Reference, tmp_path: Path
) -> None:
    """So are the numbers of experts and of experts per token."""
    inputs = Inputs(checkpoint("qwen3_moe", "ep4"), reference("qwen3_moe"), tmp_path)
    inputs.config(num_experts=4, num_local_experts=4, num_experts_per_tok=1)
    inputs.refused(
        errors.AccountingError,
        "num_experts: the checkpoint was trained with 8, config.json says 4",
        "moe_router_topk: the checkpoint was trained with 2, config.json says 1",
    )


def test_a_padded_vocabulary_of_unknown_size(inputs: Inputs) -> None:
    """Where nothing says how many rows are tokens, the padding isn't guessed; --vocab-size is asked for."""
    inputs.config(vocab_size=None)
    inputs.refused(errors.AccountingError, "vocabulary size is not known", "256 rows", "--vocab-size")


@pytest.mark.parametrize("size", [300, 120])
def test_a_vocabulary_that_does_not_fit(inputs: Inputs, size: int) -> None:
    """A vocabulary above the stored rows, or below the tokens that are known, is refused with all numbers."""
    inputs.config(vocab_size=size)
    inputs.refused(errors.AccountingError, "rows of the embedding: 256", f"vocab_size {size}")


# --- the reference


def test_a_missing_reference(inputs: Inputs) -> None:
    """A reference path that leads nowhere is named."""
    inputs.options["reference"] = inputs.reference / "absent"
    inputs.refused(errors.ReferenceFolderError, str(inputs.reference / "absent"))


@pytest.mark.parametrize(
    "name", ["../model-00001-of-00001.safetensors", "/etc/passwd", "sub/model.safetensors", "..", ".hidden"]
)
def test_a_shard_name_that_leaves_the_reference(inputs: Inputs, name: str) -> None:
    """A file name in the reference's index that is not one of the folder's is refused, quoting it."""
    (inputs.reference / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    inputs.refused(errors.ReferenceFolderError, repr(name), INDEX)


def test_code_that_auto_map_names_and_that_is_missing(inputs: Inputs) -> None:
    """A module that config.json refers to and that isn't there is named."""
    inputs.config(auto_map={"AutoModelForCausalLM": "modeling_qwen.QwenForCausalLM"})
    inputs.refused(errors.ReferenceFolderError, "modeling_qwen.py is missing", "--no-code")


def test_a_class_without_a_table(inputs: Inputs) -> None:
    """A model class that no table serves is named, with those that are served."""
    inputs.config(architectures=["BloomForCausalLM"], model_type="bloom")
    inputs.refused(errors.RuleError, "BloomForCausalLM", "classes that `pp_export families` lists")


# --- the target and the ranks


def test_an_existing_target(inputs: Inputs) -> None:
    """An existing folder is left as it is unless --overwrite is given."""
    target = inputs.parent / "export"
    target.mkdir()
    (target / "config.json").write_text("{}")
    inputs.refused(errors.TargetError, "the output exists", str(target), "--overwrite")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["file", "link to a folder", "dangling link"])
def test_a_target_that_is_no_folder(inputs: Inputs, kind: str, overwrite: bool) -> None:
    """A file or a link in the target's place is never replaced."""
    target = inputs.parent / "export"
    if kind == "file":
        target.write_text("mine")
    else:
        target.symlink_to(inputs.reference if "folder" in kind else inputs.parent / "nowhere")
    inputs.options["overwrite"] = overwrite
    with pytest.raises(errors.TargetError, match="not a folder") as caught:
        export_here(**inputs.options)
    inputs.refused_by_plan(caught.value)
    assert sorted(os.listdir(inputs.parent)) == ["export", "neighbour"]
    assert target.is_symlink() == ("link" in kind)


def test_a_target_without_a_parent(inputs: Inputs) -> None:
    """The parent folder of the output is not made by the way."""
    inputs.options["output"] = inputs.parent / "no" / "export"
    inputs.refused(errors.TargetError, str(inputs.parent / "no"))


@pytest.mark.asks_elsewhere
def test_a_target_where_nothing_can_be_made(inputs: Inputs) -> None:
    """Whether a folder can be made is tried, not guessed: nobody, root neither, makes one in /sys."""
    inputs.options["output"] = Path("/sys/export")
    inputs.refused(errors.TargetError, "make a folder failed: Operation not permitted", "file /sys\n")
    inputs.options |= {"output": Path("/sys/none/export"), "parents": True}
    for refuse in (lambda: export_here(**inputs.options), lambda: planned(inputs.options)):
        with pytest.raises(errors.TargetError, match=r"make .*folder.* failed: Operation not permitted"):
            refuse()


@pytest.mark.parametrize("what", ["bytes", "inodes"])
def test_a_filesystem_that_is_full(inputs: Inputs, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Too little space, or too few inodes, for what is planned is said before anything is read."""
    found = os.statvfs(inputs.parent)
    fields = list(found[:10])
    fields[4 if what == "bytes" else 7] = 1  # f_bavail, f_favail
    full = os.statvfs_result([*fields, found.f_fsid])
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    inputs.refused(errors.TargetError, "too little space" if what == "bytes" else "too few free inodes")


def test_everything_that_is_wrong_is_said_at_once(inputs: Inputs) -> None:
    """A checkpoint, a reference and a target that are all wrong are one error, with advice for each."""
    (inputs.parent / "export").mkdir()
    (inputs.parent / "export" / "config.json").touch()
    inputs.options |= {"checkpoint": inputs.checkpoint / "absent", "reference": inputs.reference / "absent"}
    raised = inputs.refused(errors.ReferenceFolderError, "the reference folder does not exist")
    assert [finding.partition(";")[0] for finding in raised.findings] == [
        "the output exists",
        "the checkpoint folder does not exist",
    ]
    assert "--overwrite" in raised.findings[0]


def test_a_target_that_holds_an_input(inputs: Inputs) -> None:
    """An output above what is read is refused, also with --overwrite."""
    inputs.options |= {"output": inputs.parent, "overwrite": True, "reference": inputs.parent / "model"}
    shutil.copytree(inputs.reference, inputs.parent / "model")
    inputs.refused(errors.TargetError, "contains, a folder that the export reads")


@pytest.mark.parametrize(
    ("grid", "told"),
    [
        ({"pipeline_parallel": 2}, ["at least 2 ranks for 2 pipeline stages", "1 rank\n"]),
        ({"tensor_parallel": 3}, ["tensor 3", "1 rank\n"]),
        ({"pipeline_parallel": 1, "expert_parallel": 4}, ["expert 4", "1 rank\n"]),
    ],
)
def test_a_world_that_the_grid_does_not_divide(inputs: Inputs, grid: dict[str, int], told: list[str]) -> None:
    """A number of ranks that the asked grid doesn't divide is refused with both."""
    inputs.options |= grid
    inputs.refused(errors.OptionError, *told)


def test_ranks_with_other_options_stop(inputs: Inputs) -> None:
    """Ranks that were started with different options find out before anything is read, and both are named."""
    store = SharedKeys(HashStore())
    raised: dict[int, ExportError] = {}

    def rank(number: int) -> None:
        world = World(number, 2, store, stall_seconds=60)
        try:
            options = ExportOptions(**inputs.options | {"verify": number == 0})
            export(
                CheckpointSource(options.checkpoint, options.iteration, options.check_source), options, world
            )
        except ExportError as error:
            raised[number] = error
        world.close()

    threads = [threading.Thread(target=rank, args=(n,)) for n in (0, 1)]
    with remembering():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert raised[0].to_json() == raised[1].to_json()
    assert "disagree on the options" in raised[0].what
    assert os.listdir(inputs.parent) == ["neighbour"]


def test_ranks_that_do_not_share_the_filesystem(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank that doesn't see the folder which rank 0 made stops all ranks; both folders stay as they were.

    Two threads are the ranks here, with one target path that leads to different places, as on two nodes
    without a common mount.
    """
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    store = SharedKeys(HashStore())
    raised: dict[int, ExportError] = {}

    staging_path = folders.staging_path

    def staged(target: Path, run_id: str) -> Path:
        is_away = threading.current_thread().name == "rank 1"
        return staging_path(elsewhere / target.name if is_away else target, run_id)

    monkeypatch.setattr(folders, "staging_path", staged)

    def rank(number: int) -> None:
        world = World(number, 2, store, stall_seconds=60)
        try:
            options = ExportOptions(**inputs.options)
            export(
                CheckpointSource(options.checkpoint, options.iteration, options.check_source), options, world
            )
        except ExportError as error:
            raised[number] = error
        world.abort.leave_after_failure()
        world.close()

    threads = [threading.Thread(target=rank, args=(n,), name=f"rank {n}") for n in (0, 1)]
    with remembering():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert set(raised) == {0, 1}
    assert all("do not share a filesystem" in str(error) for error in raised.values())
    assert raised[0].to_json() == raised[1].to_json()
    assert isinstance(raised[0], errors.TargetError)
    assert raised[0].where["rank"] == "1"
    assert raised[0].where["folder"].startswith(str(elsewhere))
    assert os.listdir(elsewhere) == []
    assert os.listdir(inputs.parent) == ["neighbour"]
