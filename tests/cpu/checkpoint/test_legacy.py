"""Claims of `pp_export.checkpoint.legacy.catalog`: the files of all ranks give each parameter bit for bit,
or the fault is named.
"""

from __future__ import annotations

import io
import shutil
import zipfile
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pp_export.checkpoint.catalog import Catalog
from pp_export.checkpoint.legacy import catalog as legacy
from pp_export.core.errors import CheckpointError, UnsafePickleError
from pp_export.core.tensors import check_coverage
from pp_export.torch_file import archive
from tests.fixtures.element_types import bytes_of
from tests.fixtures.legacy import FILE, Run, Tensors, folder_name, toy_args, toy_tensors, write_ranks
from tests.fixtures.stored import read_all

ONE_STAGE = [[[0, 1]]]
TWO_STAGES = [[[0]], [[1]]]
VIRTUAL = [[[0], [2]], [[1], [3]]]
EXPERTS = {"num_experts": 4, "moe_ffn_hidden_size": 8, "moe_shared_expert_intermediate_size": 16}
MTP = {"mtp_num_layers": 2}
LATENT = {"multi_latent_attention": True, "q_lora_rank": 12, "kv_lora_rank": 6, "qk_pos_emb_head_dim": 2}
TIED = {"untie_embeddings_and_output_weights": False}
BIASES = {"add_bias_linear": True}
POSITIONS = {"position_embedding_type": "learned_absolute"}
STYLES = ["sequential", "te_grouped", "grouped", "single"]

DENSE: dict[str, tuple[Run, dict[str, Any]]] = {
    "tp1": (Run(ONE_STAGE), {}),
    "tp2": (Run(ONE_STAGE, tp=2), {}),
    "tp4": (Run(ONE_STAGE, tp=4), {}),
    "tp2pp2": (Run(TWO_STAGES, tp=2), {}),
    "vpp2": (Run(VIRTUAL, tp=2), {}),
    "vpp2_in_one_buffer": (Run(VIRTUAL, tp=2, flat=True), {}),
    "uneven": (
        Run([[[0]], [[1, 2, 3]], [[4, 5]]]),
        {"decoder_first_pipeline_num_layers": 1, "decoder_last_pipeline_num_layers": 2},
    ),
    "tied": (Run(TWO_STAGES, tp=2), TIED),
    "tied_on_one_stage": (Run(ONE_STAGE, tp=2), TIED),
    "tied_in_one_buffer": (Run(TWO_STAGES, tp=2, flat=True), TIED),
    "qkv_bias": (Run(ONE_STAGE, tp=2), {"add_qkv_bias": True}),
    "biases": (Run(ONE_STAGE, tp=2), BIASES),
    "biases_no_gate": (Run(ONE_STAGE, tp=2), BIASES | {"swiglu": False}),
    "positions": (Run(TWO_STAGES, tp=2), POSITIONS),
    "latent_cut": (Run(ONE_STAGE, tp=2), LATENT),
    "latent_copied": (Run(ONE_STAGE, tp=2, latent_is_cut=False), LATENT),
    "mtp": (Run(TWO_STAGES, tp=2), MTP | POSITIONS),
    "mtp_of_0.17_tied": (Run(TWO_STAGES, tp=2, mtp_attribute="mtp_model_layer"), MTP | TIED),
    "mtp_vpp2": (Run(VIRTUAL), MTP),
    "prefix": (Run(TWO_STAGES, prefix="module."), {}),
}
MOE: dict[str, tuple[Run, dict[str, Any]]] = {
    "ep2": (Run(ONE_STAGE, ep=2), EXPERTS),
    "ep4_biases": (Run(ONE_STAGE, ep=4), EXPERTS | BIASES),
    "tp2etp2": (Run(ONE_STAGE, tp=2, etp=2), EXPERTS),
    "tp2ep2etp1": (Run(ONE_STAGE, tp=2, ep=2), EXPERTS),
    "tp4ep2etp1": (Run(ONE_STAGE, tp=4, ep=2), EXPERTS),
    "tp4ep2etp2": (Run(ONE_STAGE, tp=4, ep=2, etp=2), EXPERTS),
    "tp2ep4etp1": (Run(ONE_STAGE, tp=2, ep=4), EXPERTS),
    "tp2pp2ep2etp2": (Run(TWO_STAGES, tp=2, ep=2, etp=2), EXPERTS),
    "vpp2ep2": (Run(VIRTUAL, ep=2), EXPERTS | {"moe_layer_freq": [0, 1, 1, 0]}),
    "no_gate": (Run(ONE_STAGE, tp=2, ep=2, etp=2), EXPERTS | {"swiglu": False}),
    "in_one_buffer": (Run(TWO_STAGES, tp=2, ep=2, etp=2, flat=True), EXPERTS),
    "interleave": (
        Run(ONE_STAGE, tp=2, ep=2, etp=2),
        EXPERTS | {"moe_mlp_glu_interleave_size": 2, "moe_shared_expert_glu_interleave_size": 4},
    ),
    "interleave_etp1": (Run(ONE_STAGE, tp=2, ep=2), EXPERTS | {"moe_mlp_glu_interleave_size": 4}),
}


@dataclass(frozen=True)
class Written:
    """A checkpoint, and the tensors that were cut for it."""

    folder: Path
    tensors: Tensors

    def file(self, rank: str) -> Path:
        return self.folder / rank / FILE


def written(folder: Path, run: Run, changes: dict[str, Any]) -> Written:
    args = toy_args(run, **changes)
    tensors = toy_tensors(args)
    if "moe_layer_freq" in changes:
        args["moe_layer_freq"] = list(changes["moe_layer_freq"])
    return Written(write_ranks(folder / "iter_0000010", run, args, tensors), tensors)


@pytest.fixture
def dense(tmp_path: Path) -> Written:
    """Two stages of two tensor parallel ranks."""
    return written(tmp_path, *DENSE["tp2pp2"])


@pytest.fixture
def moe(tmp_path: Path) -> Written:
    """Two tensor parallel ranks, of which each has half of the experts."""
    return written(tmp_path, *MOE["tp2ep2etp1"])


def assert_reads(source: Written) -> Catalog:
    """Check that every parameter comes out bit for bit, and nothing else."""
    catalog = legacy.read_catalog(source.folder)
    found = read_all(catalog)
    assert sorted(found) == sorted(source.tensors)
    for name, values in source.tensors.items():
        assert (found[name].shape, found[name].dtype) == (values.shape, values.dtype), name
        assert bytes_of(found[name]) == bytes_of(values), name
    for tensor in catalog.tensors:
        check_coverage(tensor.key, tensor.shape, [stored.box for stored in tensor.boxes])
    return catalog


def edited(file: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Store what a rank's file holds once more, changed."""
    state = torch.load(file, weights_only=False)
    edit(state)
    torch.save(state, file)


def refused(folder: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        legacy.read_catalog(folder)
    assert caught.value.where["folder"] == str(folder)
    return caught.value


@pytest.mark.parametrize("case", DENSE)
def test_dense_models_come_out_bit_for_bit(case: str, tmp_path: Path) -> None:
    """Tensor, pipeline and virtual stages, uneven ones, ties, biases, positions, latent attention, MTP."""
    assert_reads(written(tmp_path, *DENSE[case]))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("case", MOE)
def test_experts_come_out_bit_for_bit(case: str, style: str, tmp_path: Path) -> None:
    """Expert and expert tensor parallelism, shared experts, interleaved gates, in all modules for experts."""
    run, args = MOE[case]
    if style == "grouped" and args.get("add_bias_linear"):
        pytest.skip("GroupedMLP has no biases")
    assert_reads(written(tmp_path, replace(run, experts=style), args))


def test_files_are_in_the_order_of_the_ranks(tmp_path: Path) -> None:
    """Files go by pipeline, expert and tensor parallel rank, and every one that holds a weight is there."""
    catalog = assert_reads(written(tmp_path, *MOE["tp2pp2ep2etp2"]))
    ranks = [folder_name(2, 2, pp, ep, tp) for pp in range(2) for ep in range(2) for tp in range(2)]
    assert catalog.files == tuple(f"{rank}/{FILE}" for rank in ranks)


def test_the_catalog_survives_the_way_to_other_ranks(tmp_path: Path) -> None:
    """Strides and CRCs are among what is sent to other ranks."""
    run, args = MOE["ep2"]
    catalog = legacy.read_catalog(written(tmp_path, replace(run, experts="grouped"), args).folder)
    again = Catalog.from_bytes(catalog.image_of(range(len(catalog.stored_items))))
    assert again.slices == catalog.slices
    there, here = (
        [(one.files[item.file], *item[1:]) for item in one.stored_items] for one in (again, catalog)
    )
    assert there == here
    assert any(stored.strides for tensor in again.tensors for stored in tensor.boxes)
    assert all(record.crc is not None for record in again.stored_items)


def test_parameters_of_one_buffer_are_one_record(tmp_path: Path) -> None:
    """Views of a shared storage are slices of one record, not copies of it."""
    catalog = legacy.read_catalog(written(tmp_path, *DENSE["vpp2_in_one_buffer"]).folder)
    assert len(catalog.files) == 4
    assert len(catalog.stored_items) == 8  # one model object per virtual stage


def test_a_transposed_weight_is_read_through_its_strides(dense: Written) -> None:
    """torch stores a transposed tensor as it lies in memory; the values come out in their order."""
    name = "decoder.layers.0.self_attention.linear_qkv.weight"
    for rank in ("mp_rank_00_000", "mp_rank_01_000"):
        edited(
            dense.file(rank),
            lambda state: state["model"].update({name: state["model"][name].t().contiguous().t()}),
        )
    catalog = assert_reads(dense)
    assert {slice_.strides for slice_ in catalog.slices[name]} == {(1, 12)}


def test_a_gated_part_is_two_boxes(tmp_path: Path) -> None:
    """Gate and up rows of a rank are stored together and lie apart in the model, as in torch_dist."""
    catalog = legacy.read_catalog(written(tmp_path, *DENSE["tp2"]).folder)
    fc1 = next(t for t in catalog.tensors if t.key == "decoder.layers.0.mlp.linear_fc1.weight")
    assert [stored.box.offset[0] for stored in fc1.boxes] == [0, 16, 8, 24]
    assert len({stored.item for stored in fc1.boxes}) == 2


def test_what_is_no_weight_is_counted(dense: Written) -> None:
    """The description tells of args, layout and iteration, and counts optimizer and random generators."""
    described = legacy.read_catalog(dense.folder).description
    assert (described.format, described.iteration, described.folder) == ("torch", 10, str(dense.folder))
    assert described.args is not None
    assert described.args["hidden_size"] == 8
    assert described.layout["tensor_model_parallel_size"] == 2
    assert described.other["optimizer"] == (8, 4 * (160 + 100))
    assert described.other["rng_state"][0] == 8


def test_optimizer_values_are_never_read(dense: Written) -> None:
    """Damage in the optimizer's storages goes unnoticed: they are not read."""
    for file in dense.folder.glob(f"*/{FILE}"):
        stored = archive.read(file)
        (key,) = archive.storages_in(stored.value["optimizer"])
        flip(file, stored.begins([key])[key])
    assert_reads(dense)


def test_a_damaged_weight_is_named(dense: Written) -> None:
    """One flipped bit of a weight ends the reading, and the error names tensor and file."""
    catalog = legacy.read_catalog(dense.folder)
    name = "decoder.layers.1.self_attention.linear_qkv.weight"
    record = catalog.stored_items[catalog.slices[name][1].item]
    flip(dense.folder / catalog.files[record.file], record.offset + record.length - 1)
    with pytest.raises(CheckpointError, match="CRC-32") as caught:
        read_all(catalog)
    assert caught.value.where["tensor"] == name
    assert caught.value.where["file"].endswith(f"mp_rank_01_001/{FILE}")


def flip(file: Path, offset: int) -> None:
    with file.open("r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)[0]
        stream.seek(offset)
        stream.write(bytes([byte ^ 4]))


def test_extra_state_of_old_transformer_engines_is_skipped(dense: Written) -> None:
    """Older releases of Transformer Engine store their own state in a BytesIO, which is no weight."""
    name = "decoder.layers.0.mlp.linear_fc1._extra_state"
    edited(dense.file("mp_rank_00_000"), lambda state: state["model"].update({name: io.BytesIO(b"fp8")}))
    assert_reads(dense)


def test_tensors_with_attributes_are_read(dense: Written) -> None:
    """Megatron gives fp32 masters attributes, and torch stores such tensors differently; weights may too."""

    def edit(state: dict[str, Any]) -> None:
        masters = [torch.zeros(5), torch.nn.Parameter(torch.zeros(7))]
        for tensor in (*masters, *state["model"].values()):
            if isinstance(tensor, torch.Tensor):
                tensor.tensor_model_parallel = True  # type: ignore[attr-defined]
        state["optimizer"] = {"fp32_from_fp16_params": [masters]}

    edited(dense.file("mp_rank_00_000"), edit)
    catalog = assert_reads(dense)
    assert catalog.description.other["optimizer"] == (4 + 3 + 2, 4 * 100 + 3 * 160 + 4 * 12)


def test_a_middle_number_is_what_the_args_say(tmp_path: Path) -> None:
    """`mp_rank_00_001` is a pipeline stage in one run and an expert parallel rank in another."""
    for name, (run, args) in {"pp": DENSE["tp2pp2"], "ep": MOE["tp2ep2etp1"]}.items():
        source = written(tmp_path / name, run, args)
        assert (source.folder / "mp_rank_01_001").is_dir()
        assert_reads(source)


@pytest.mark.parametrize("rank", ["mp_rank_00_001", "mp_rank_01_000"])
def test_a_missing_rank_is_named(rank: str, dense: Written) -> None:
    """A folder of the grid that is gone is named, though the rest is whole."""
    shutil.rmtree(dense.folder / rank)
    assert refused(dense.folder).findings == (f"{rank} is missing",)


def test_holes_that_must_be_are_no_fault(moe: Written) -> None:
    """With two tensor ranks that are two expert ranks, only two of four folders are ever written."""
    assert sorted(path.name for path in moe.folder.iterdir()) == ["mp_rank_00_000", "mp_rank_01_001"]
    shutil.rmtree(moe.folder / "mp_rank_01_001")
    assert refused(moe.folder).findings == ("mp_rank_01_001 is missing",)


def test_a_folder_of_no_rank_is_named(dense: Written) -> None:
    """A folder that fits the form but not the run is refused: it is of another save."""
    shutil.copytree(dense.folder / "mp_rank_00_000", dense.folder / "mp_rank_02_000")
    assert refused(dense.folder).findings == ("mp_rank_02_000 is of no rank of this run",)


@pytest.mark.parametrize("name", ["mp_rank_0_000", "mp_rank_00_000_000_000", "mp_rank_00-old"])
def test_an_unknown_folder_name_is_refused(name: str, dense: Written) -> None:
    """A name that Megatron never gives stops the reading."""
    shutil.copytree(dense.folder / "mp_rank_00_000", dense.folder / name)
    assert refused(dense.folder).findings == (name,)


def test_a_folder_without_its_file_is_refused(dense: Written) -> None:
    """A rank's folder without the file is named."""
    dense.file("mp_rank_01_000").unlink()
    assert refused(dense.folder).findings == (f"mp_rank_01_000 has no {FILE}",)


def test_deepspeed_is_refused(tmp_path: Path) -> None:
    """What DeepSpeed writes is called by its name."""
    (tmp_path / "mp_rank_00_model_states.pt").write_bytes(b"PK")
    assert "DeepSpeed" in refused(tmp_path).what


@pytest.mark.parametrize("version", [None, 0, 1.0])
def test_old_versions_are_refused(version: float | None, dense: Written) -> None:
    """Before version 2.0 the rows of attention were in another order, which nothing else tells."""
    edited(
        dense.file("mp_rank_00_000"),
        lambda state: (
            state.pop("checkpoint_version") if version is None else state.update(checkpoint_version=version)
        ),
    )
    error = refused(dense.folder)
    assert "too old" in error.what
    assert error.where["file"].endswith(f"mp_rank_00_000/{FILE}")


def test_models_before_megatron_core_are_refused(dense: Written) -> None:
    """Their names and nesting are others."""
    edited(dense.file("mp_rank_00_000"), lambda state: state.update(model={"language_model": {}}))
    assert "before megatron-core" in refused(dense.folder).what


def test_missing_args_are_refused(dense: Written) -> None:
    """Without args nobody knows the layers of a stage."""
    edited(dense.file("mp_rank_01_001"), lambda state: state.pop("args"))
    assert "no training args" in refused(dense.folder).what


def test_args_that_disagree_are_listed(dense: Written) -> None:
    """Each size that differs between files is named with both values; ranks' own numbers are not."""

    def edit(state: dict[str, Any]) -> None:
        state["args"].hidden_size, state["args"].rotary_base, state["args"].rank = 16, 7, 99

    edited(dense.file("mp_rank_01_001"), edit)
    findings = refused(dense.folder).findings
    assert "hidden_size: 8 in mp_rank_00_000, 16 in mp_rank_01_001" in findings
    assert len(findings) == 2


def test_mixed_iterations_are_refused(dense: Written) -> None:
    """Files of two iterations are not one checkpoint."""
    edited(dense.file("mp_rank_00_001"), lambda state: state.update(iteration=20))
    assert refused(dense.folder).findings == ("iteration: 10 in mp_rank_00_000, 20 in mp_rank_00_001",)


def test_quantized_models_are_refused(dense: Written) -> None:
    """ModelOpt's state says that the weights are not the model's own."""
    edited(dense.file("mp_rank_01_001"), lambda state: state.update(modelopt_state={"mode": "int8"}))
    assert "ModelOpt" in refused(dense.folder).what


def test_experts_of_which_a_part_is_lost_are_refused(tmp_path: Path) -> None:
    """With more expert tensor ranks than tensor ranks, two ranks wrote each file."""
    run = Run(ONE_STAGE, tp=1, ep=1, etp=2)
    assert "lost" in refused(written(tmp_path, run, EXPERTS).folder).what


def test_parts_of_unequal_size_are_refused(dense: Written) -> None:
    """Parts that do not add up to a tensor cut evenly are named with their shapes."""
    name = "decoder.layers.0.mlp.linear_fc2.weight"
    edited(dense.file("mp_rank_01_000"), lambda state: state["model"].update({name: torch.zeros(8, 6)}))
    error = refused(dense.folder)
    assert error.where["tensor"] == name
    assert error.got == "rank 0: bfloat16[8, 8], rank 1: float32[8, 6]"


def test_a_missing_part_is_named(dense: Written) -> None:
    """A parameter that one of two tensor ranks lacks is no parameter of half the size."""
    edited(dense.file("mp_rank_01_001"), lambda state: state["model"].pop("output_layer.weight"))
    error = refused(dense.folder)
    assert (error.where["tensor"], error.got) == ("output_layer.weight", "rank 0: bfloat16[8, 8]")


def test_unknown_parameters_are_listed(dense: Written) -> None:
    """Names without a rule are all listed, with their shapes, and nothing is guessed."""
    new = {f"decoder.layers.0.mixer.{name}.weight": torch.zeros(4, 8) for name in ("x_proj", "dt_proj")}
    edited(dense.file("mp_rank_00_001"), lambda state: state["model"].update(new))
    assert sorted(refused(dense.folder).findings) == [
        f"decoder.layers.1.mixer.{name}.weight [4, 8] in mp_rank_00_001/{FILE}"
        for name in ("dt_proj", "x_proj")
    ]


def test_copies_that_drifted_apart_are_noted(dense: Written) -> None:
    """A norm that is not the same on both tensor ranks is taken from the first, as Megatron does, and
    noted.
    """
    name = "decoder.layers.0.self_attention.linear_qkv.layer_norm_weight"
    edited(dense.file("mp_rank_01_000"), lambda state: state["model"][name].mul_(2))
    (note,) = assert_reads(dense).description.notes
    assert "the first counts" in note
    assert name in note
    assert f"mp_rank_00_000/{FILE}" in note
    assert f"mp_rank_01_000/{FILE}" in note


@pytest.mark.parametrize("case", ["tied", "mtp"])
def test_a_copied_embedding_that_differs_is_listed(case: str, tmp_path: Path) -> None:
    """The last stage's copy of the embedding is left out, but not when it is another."""
    source = written(tmp_path, *DENSE[case])
    name = "output_layer.weight" if case == "tied" else "embedding.word_embeddings.weight"
    edited(
        source.file("mp_rank_01_001"),
        lambda state: state["model"].update({name: torch.zeros(8, 8).bfloat16()}),
    )
    (finding,) = refused(source.folder).findings
    assert finding.startswith("embedding.word_embeddings.weight")


def test_dense_copies_of_expert_ranks_are_compared(tmp_path: Path) -> None:
    """Every expert parallel rank has the dense parameters again, and they must agree."""
    source = written(tmp_path, *MOE["ep2"])
    name = "decoder.layers.1.self_attention.linear_qkv.weight"
    edited(source.file("mp_rank_00_001"), lambda state: state["model"][name].zero_())
    (finding,) = refused(source.folder).findings
    assert finding.startswith(name)


def test_other_layers_than_told_are_refused(dense: Written) -> None:
    """A stage that lacks a layer, or has one more, is not the stage that the args tell of."""
    for file in dense.folder.glob(f"*/{FILE}"):
        edited(file, lambda state: setattr(state["args"], "num_layers", 4))
    error = refused(dense.folder)
    assert (error.expected, error.got) == ("decoder 0, decoder 1", "decoder 0")


def test_missing_virtual_stages_are_refused(tmp_path: Path) -> None:
    """One model where the args tell of two virtual stages is not enough."""
    source = written(tmp_path, *DENSE["vpp2"])
    edited(source.file("mp_rank_00_000"), lambda state: state.pop("model1"))
    error = refused(source.folder)
    assert (error.expected, error.got) == ("model0, model1", "model0")


def test_a_doubled_name_is_refused(dense: Written) -> None:
    """Two stages can't both have the output layer."""
    extra = {"output_layer.weight": torch.zeros(8, 8)}
    edited(dense.file("mp_rank_00_000"), lambda state: state["model"].update(extra))
    assert refused(dense.folder).findings == ("output_layer.weight in pipeline stages [0, 1]",)


def test_an_expert_stored_in_two_ways_is_refused(tmp_path: Path) -> None:
    """The same expert under two spellings would be in the model twice."""
    source = written(tmp_path, *MOE["ep2"])
    name = "decoder.layers.0.mlp.experts.linear_fc2.weight0"
    edited(source.file("mp_rank_00_001"), lambda state: state["model"].update({name: torch.zeros(8, 8)}))
    findings = refused(source.folder).findings
    assert findings == ("decoder.layers.0.mlp.experts.2.linear_fc2.weight twice in one file",)


@pytest.mark.parametrize("swiglu", [True, False])
def test_a_gate_that_the_args_deny_is_refused(swiglu: bool, tmp_path: Path) -> None:
    """Whether there is a gate shows in the shapes; args that say otherwise are not of this model."""
    source = written(tmp_path, Run(ONE_STAGE), {"swiglu": swiglu})
    edited(source.file("mp_rank_00"), lambda state: setattr(state["args"], "swiglu", not swiglu))
    assert "don't fit together" in refused(source.folder).what


def test_a_latent_projection_of_another_size_is_refused(tmp_path: Path) -> None:
    """Neither the whole nor an equal part: the args are not of this model."""
    source = written(tmp_path, Run(ONE_STAGE), LATENT)
    edited(source.file("mp_rank_00"), lambda state: setattr(state["args"], "q_lora_rank", 20))
    assert refused(source.folder).expected == "20 rows, whole or in 1 parts"


def test_too_many_experts_are_refused(tmp_path: Path) -> None:
    """An expert beyond those of its rank would take the number of another."""
    source = written(tmp_path, *MOE["ep2"])
    name = "decoder.layers.0.mlp.experts.local_experts.2.linear_fc2.weight"
    edited(source.file("mp_rank_00_000"), lambda state: state["model"].update({name: torch.zeros(8, 8)}))
    assert refused(source.folder).got == "expert 2"


def test_an_entry_that_is_no_tensor_is_refused(dense: Written) -> None:
    """A parameter's name with something else under it is named."""
    edited(dense.file("mp_rank_00_000"), lambda state: state["model"].update({"output_layer.bias": [1, 2]}))
    error = refused(dense.folder)
    assert (error.what, error.where["tensor"]) == ("an entry of the model is no tensor", "output_layer.bias")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_named(share: float, dense: Written) -> None:
    """Wherever a file ends too early, one error says which."""
    file = dense.file("mp_rank_01_000")
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    error = refused(dense.folder)
    assert error.where["file"] == str(file)
    assert "empty" in error.what if share == 0.0 else "truncated" in error.what


def test_a_file_with_a_hole_is_refused(dense: Written) -> None:
    """Bytes that are missing in the middle move the rest; it is noticed before anything is read."""
    file = dense.file("mp_rank_01_000")
    data = file.read_bytes()
    file.write_bytes(data[:5000] + data[5064:])
    assert refused(dense.folder).where["file"] == str(file)


def test_a_file_that_is_no_zip_is_refused(dense: Written) -> None:
    """What torch wrote before 1.6 is no archive; the advice says how to make it one."""
    file = dense.file("mp_rank_00_000")
    torch.save({"model": {}}, file, _use_new_zipfile_serialization=False)
    error = refused(dense.folder)
    assert "1.6" in error.what
    assert "torch.save" in str(error.advice)


def test_a_packed_archive_is_refused(dense: Written) -> None:
    """torch stores members as they are; a zip that was packed again has no bytes to read in place."""
    file = dense.file("mp_rank_00_000")
    with zipfile.ZipFile(file) as source:
        members = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as target:
        for name, data in members.items():
            target.writestr(name, data)
    assert "compressed" in refused(dense.folder).what


def test_a_pickle_that_names_a_function_is_refused(dense: Written) -> None:
    """Nothing that a file names is run."""
    torch.save({"args": Namespace(), "model": {}, "run": print}, dense.file("mp_rank_00_000"))
    with pytest.raises(UnsafePickleError):
        legacy.read_catalog(dense.folder)


def test_something_else_in_a_file_is_refused(dense: Written) -> None:
    """A file that holds no dict is no checkpoint."""
    torch.save([1, 2], dense.file("mp_rank_00_000"))
    assert "holds no checkpoint" in refused(dense.folder).what
