"""Claims: with --quantize, transformers computes with the values that are stored, which are those that were
trained to within the format; the same bytes come from every layout, and the report tells the largest errors.

The truth is a model in transformers, and what it saves; values are unpacked here, by the formats' own rules.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import save_file

import pp_export
from pp_export.architecture.accounting import INDEX
from pp_export.architecture.quantization import FP8_BLOCK, FP8_CHANNEL, INT8_CHANNEL, SCHEMES
from pp_export.core import file_names
from pp_export.core.errors import ExportError, OptionError
from pp_export.core.file_names import SUMS
from pp_export.options.kinds import ExportOptions
from pp_export.planning.export_plan import ExportPlan
from pp_export.shards import write
from pp_export.steps.inputs import checkpoint_source, plan_export, read_inputs
from pp_export.steps.pending import PendingInputs
from pp_export.verification.loading import load_faults, load_model
from tests.fixtures.exports import RememberedDefinition, export_here, files_of, remembering
from tests.fixtures.families import FAMILIES
from tests.fixtures.family_proofs import random_model, write_model
from tests.fixtures.index_families import INDEX_FAMILIES
from tests.fixtures.legacy import Run, write_ranks
from tests.fixtures.processes import run_python, torchrun
from tests.fixtures.ranges import cut_finely
from tests.fixtures.releases import transformers_5
from tests.fixtures.stored import canonical_values, on_disk, write_stored
from tests.fixtures.wide_families import WIDE

pytestmark = transformers_5
Options = dict[str, Any]
Made = Callable[[str], Path]
BOUNDS = {FP8_BLOCK: 16 / 448, FP8_CHANNEL: 16 / 448, INT8_CHANNEL: 0.5 / 127}
MOE = "qwen2_moe"
DOWN = "model.layers.1.mlp.experts.3.down_proj.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The model, reference and checkpoint of a family, made once."""
    root = tmp_path_factory.mktemp("wide")

    def make(name: str) -> Path:
        if not (root / name).exists():
            write_model(WIDE[name], root / name)
        return root / name

    return make


def inputs_of(folder: Path) -> Options:
    return {kind: folder / kind for kind in ("checkpoint", "reference")}


def unpacked(folder: Path) -> dict[str, torch.Tensor]:
    """The values that the stored tensors of a folder stand for, in float32, by the model's names."""
    stored = on_disk(folder)

    def value_of(name: str, value: torch.Tensor) -> torch.Tensor:
        if (scales := stored.get(f"{name}_scale_inv")) is not None:
            return value.float() * scales.repeat_interleave(128, 0).repeat_interleave(128, 1)
        if (scales := stored.get(f"{name}_scale")) is None:
            return value.float()
        if value.dtype == torch.int32:
            assert stored[f"{name}_shape"].tolist() == [value.shape[0], 4 * value.shape[1]]
            value = value.view(torch.uint8).int() - 128
        return value.float() * scales.float()

    ends = (".weight_scale", ".weight_scale_inv", ".weight_shape")
    named = {name.removesuffix("_packed"): value for name, value in stored.items() if not name.endswith(ends)}
    return {name: value_of(name, value) for name, value in named.items()}


def logits_of(folder: Path) -> torch.Tensor:
    """What the library answers with dequantized weights; with others it rounds activations too."""
    said = json.loads((folder / "config.json").read_text()).get("quantization_config", {})
    how: Options = {}
    if said.get("quant_method") == "compressed-tensors":
        from transformers import CompressedTensorsConfig

        how["quantization_config"] = CompressedTensorsConfig(dequantize=True)
    model, faults = load_model(folder, dtype=torch.float32, **how)
    assert faults == []
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(torch.arange(3, 40)[None]).logits
    return logits


def needs_library(scheme: str) -> None:
    if scheme != FP8_BLOCK:
        pytest.importorskip("compressed_tensors")


@pytest.mark.parametrize(
    ("name", "scheme"),
    [("gpt_oss", FP8_BLOCK)]
    + [(name, scheme) for name in ("seed_oss", MOE, "deepseek_v3_mtp") for scheme in SCHEMES],
)
def test_transformers_computes_with_the_values_that_are_stored(
    made: Made, tmp_path: Path, name: str, scheme: str
) -> None:
    """Every tensor is there, in the names that loaders know; the logits are those of the model with the
    values that the stored ones stand for, which are the trained ones within the format; `verify` holds the
    folder against the class, and loads it.
    """
    report = export_here(**inputs_of(made(name)), output=tmp_path / "export", quantize=scheme)
    trained, values = on_disk(made(name) / "model"), unpacked(tmp_path / "export")
    assert values.keys() == trained.keys()
    for tensor, value in trained.items():
        error = (values[tensor] - value).abs()
        if tensor in report.quantized:
            assert float(error.max()) == pytest.approx(report.quantized[tensor]["absolute"], rel=1e-4)
            assert 0 < report.quantized[tensor]["relative"] <= BOUNDS[scheme] * 1.0001
            assert float(error.max()) <= BOUNDS[scheme] * 1.0001 * float(value.abs().max())
        else:
            assert not error.any(), tensor
    verification = pp_export.verify(tmp_path / "export")
    assert verification.ok, verification.faults
    assert verification.definition == WIDE[name].hf_class
    needs_library(scheme)
    plain = tmp_path / "plain"
    plain.mkdir()
    save_file(values, plain / "model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    del config["quantization_config"]
    (plain / "config.json").write_text(json.dumps(config))
    expected, found = logits_of(plain), logits_of(tmp_path / "export")
    assert float(expected.std()) > 0.1
    assert torch.allclose(found, expected, atol=2e-4 * float(expected.abs().max()))
    assert load_faults(tmp_path / "export") == []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_answers_are_near_those_of_the_trained_model(made: Made, tmp_path: Path, scheme: str) -> None:
    """Of a dense model, without routers that may decide otherwise."""
    needs_library(scheme)
    export_here(**inputs_of(made("seed_oss")), output=tmp_path / "export", quantize=scheme)
    with torch.no_grad():
        trained = random_model(WIDE["seed_oss"])(torch.arange(3, 40)[None]).logits
    found = logits_of(tmp_path / "export")
    assert float((found - trained).std() / trained.std()) < 10 * BOUNDS[scheme]
    assert float((found.argmax(-1) == trained.argmax(-1)).float().mean()) > 0.8


def legacy(folder: Path, name: str, run: Run, out: Path) -> Path:
    """The checkpoint of a folder as ranks of `run` write it."""
    family = WIDE[name]
    stored = family.stored(on_disk(folder / "model"), family.whole_config())
    args = {
        "padded_vocab_size": 256,
        "virtual_pipeline_model_parallel_size": None,
        **family.whole_args(),
        "tensor_model_parallel_size": run.tp,
        "pipeline_model_parallel_size": len(run.layers),
        "expert_model_parallel_size": run.ep,
        "expert_tensor_parallel_size": run.etp,
        "params_dtype": torch.float32,
    }
    return write_ranks(out, run, args, canonical_values(stored))


RUNS = {
    "tp1": Run([[[0, 1, 2]]]),
    "tp2pp3": Run([[[0]], [[1]], [[2]]], tp=2, etp=2),
    "tp2ep2": Run([[[0, 1, 2]]], tp=2, ep=2),
    "pp3ep4": Run([[[0]], [[1]], [[2]]], ep=4),
}
GRIDS: dict[int, tuple[Options, ...]] = {
    2: ({}, {"pipeline_parallel": 1, "tensor_parallel": 2}),
    4: (
        {"pipeline_parallel": 1, "tensor_parallel": 2, "expert_parallel": 2, "leaders_per_stage": "3"},
        {"pipeline_parallel": 2, "tensor_parallel": 2, "leaders_per_stage": "all"},
    ),
}


@pytest.fixture(scope="module")
def exported(made: Made, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """By scheme, exports of one model from every layout by one rank, and by two and four, which cut files as
    finely as they can.
    """
    root = tmp_path_factory.mktemp("layouts")
    folders = {name: legacy(made(MOE), MOE, run, root / name) for name, run in RUNS.items()}
    folders["torch_dist"] = made(MOE) / "checkpoint"
    found: dict[str, dict[str, Path]] = {scheme: {} for scheme in SCHEMES}
    jobs: dict[int, list[Options]] = {2: [], 4: []}
    for scheme in SCHEMES:
        given = {"reference": made(MOE) / "reference", "quantize": scheme, "max_shard_size": "1MB"}
        for name, checkpoint in folders.items():
            found[scheme][name] = root / f"{scheme} {name}"
            export_here(**given, checkpoint=checkpoint, output=found[scheme][name])
        for num_ranks, grids in GRIDS.items():
            for number, grid in enumerate(grids):
                name = ("tp2ep2", "torch_dist")[number]
                output = found[scheme][f"{num_ranks} ranks {number}"] = (
                    root / f"{scheme} {num_ranks} {number}"
                )
                job = {**given, **grid, "checkpoint": folders[name], "output": output}
                jobs[num_ranks].append({k: str(v) if isinstance(v, Path) else v for k, v in job.items()})
    RememberedDefinition.write(root / "answers.json")
    for num_ranks, todo in jobs.items():
        (root / f"{num_ranks}.json").write_text(json.dumps(todo))
        command = torchrun(num_ranks, "-m", "tests.fixtures.ranges", "tests.fixtures.many_exports")
        where = [str(root / f"{num_ranks}.json"), str(root / "answers.json")]
        run_python([*command, *where], root / f"output-{num_ranks}", timeout_s=300).checked()
    return found


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_same_bytes_from_every_layout(exported: dict[str, dict[str, Path]], scheme: str) -> None:
    """Whatever the layout of the checkpoint and of the ranks that export it: all files but the manifest,
    and in that one the errors of each tensor.
    """
    truth, *others = exported[scheme].values()
    expected = {name: data for name, data in files_of(truth).items() if name != file_names.MANIFEST}
    shards = shards_of(truth)
    assert sum(len(shard.get("quantized", {})) for shard in shards) > 80
    for folder in others:
        found = files_of(folder)
        found.pop(file_names.MANIFEST)
        assert found == expected, folder.name
        assert shards_of(folder) == shards


def shards_of(folder: Path) -> Any:
    return json.loads((folder / file_names.MANIFEST).read_text())["shards"]


def plan_of(options: Options, num_ranks: int = 4) -> ExportPlan:
    chosen = ExportOptions(**options, output=Path("unused"))
    with remembering():
        return plan_export(
            read_inputs(checkpoint_source(chosen), chosen, PendingInputs.start(chosen)), chosen, num_ranks
        )


@pytest.mark.parametrize("layout", ["layers", "size", "reference"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_a_weight_becomes_has_one_leader(made: Made, tmp_path: Path, scheme: str, layout: str) -> None:
    """However finely files are cut, values and scales of a weight lie in one range of one file, where the
    reference has the weight, if it is to be as the reference.
    """
    options = {**inputs_of(made("seed_oss")), "quantize": scheme, "layout": layout, "max_shard_size": "300KB"}
    names = sorted(on_disk(made("seed_oss") / "model"))
    files = {name: f"model-{1 + number % 3:05d}-of-00003.safetensors" for number, name in enumerate(names)}
    if layout == "reference":
        options["reference"] = tmp_path / "reference"
        options["reference"].mkdir()
        config = (made("seed_oss") / "reference" / "config.json").read_text()
        (tmp_path / "reference" / "config.json").write_text(config)
        (tmp_path / "reference" / file_names.INDEX).write_text(json.dumps({"weight_map": files}))
    with cut_finely():
        plan = plan_of(options)
    for shard in plan.shards:
        held = {place.name for place in shard.tensors}
        for encoding in shard.encodings:
            assert encoding.outputs.keys() <= held
            if layout == "reference":
                assert {files[name] for name in encoding.inputs} == {shard.file}
    assert sum(len(shard.encodings) for shard in plan.shards) == 3 * 7


def test_plan_knows_bytes_and_memory(made: Made, tmp_path: Path) -> None:
    """The plan's bytes are those of the export; values wait for their scales in memory that is planned."""
    options = {**inputs_of(made("seed_oss")), "quantize": FP8_BLOCK}
    plan = plan_of(options, 1)
    report = export_here(**options, output=tmp_path / "export")
    assert plan.total_size == report.total_size
    assert report.planned_peak_bytes[0] == plan.parts[0].peak_bytes
    trained = on_disk(made("seed_oss") / "model")
    layer = sum(trained[n].nbytes for n in report.quantized if n.startswith("model.layers.0."))
    assert plan.parts[0].scratch_bytes >= 2 * layer


def test_the_scheme_is_part_of_the_plan(made: Made) -> None:
    """What an earlier run has committed with another scheme is of another plan."""
    inputs = inputs_of(made("seed_oss"))
    plans = {plan_of({**inputs, "quantize": scheme}).fingerprint for scheme in ("none", *SCHEMES)}
    assert len(plans) == 4


def test_errors_of_an_earlier_run_are_told(made: Made, tmp_path: Path) -> None:
    """A resumed export has the bytes, and reports the errors, of one that nothing disturbed."""
    options = {**inputs_of(made("seed_oss")), "quantize": FP8_CHANNEL, "threads": 1}
    truth = export_here(**options, output=tmp_path / "truth")
    commit, done = write.commit_shard, list[str]()

    def fail_at_last(file: Any, manifest: Any, staging: Path) -> None:
        if len(done) == 3:
            raise OSError("injected")
        commit(file, manifest, staging)
        done.append(manifest.file)

    with patch.object(write, "commit_shard", fail_at_last), pytest.raises(ExportError):
        export_here(**options, output=tmp_path / "export", resume=True)
    report = export_here(**options, output=tmp_path / "export", resume=True)
    assert report.kept_bytes > 0
    assert report.quantized == truth.quantized
    assert (tmp_path / "export" / SUMS).read_bytes() == (tmp_path / "truth" / SUMS).read_bytes()


def test_the_report_tells_what_is_not_quantized(made: Made, tmp_path: Path) -> None:
    """Linear layers that are kept, and why; how many are not; and the largest error of all."""
    report = export_here(**inputs_of(made("deepseek_v3_mtp")), output=tmp_path / "export", quantize=FP8_BLOCK)
    latent = "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"
    assert report.not_quantized[latent] == "160 rows x 256 columns aren't whole blocks of 128 x 128"
    assert len(report.not_quantized) == 2 * 4
    # Four layers, one of them for MTP; three of them with experts.
    assert len(report.quantized) == 4 * 3 + 3 + 3 * (3 + 8 * 3)
    assert any(note.startswith(f"{len(report.quantized)} of ") for note in report.notes)
    worst = max(error["absolute"] for error in report.quantized.values())
    assert any(f"{worst:.3g} as a number" in note for note in report.notes)
    assert report.dtype == "float32"
    assert not report.other_dtypes
    assert json.loads((tmp_path / "export" / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_tied_head_stays_as_it_is(tmp_path: Path, scheme: str) -> None:
    """It isn't stored, and config.json names it all the same: loaders would look for its scales else."""
    family = WIDE["seed_oss"]
    tied = replace(
        family,
        config={**family.config, "tie_word_embeddings": True},
        args={**family.args, "untie_embeddings_and_output_weights": False},
    )
    write_model(tied, tmp_path)
    export_here(**inputs_of(tmp_path), output=tmp_path / "export", quantize=scheme)
    stored = on_disk(tmp_path / "export")
    assert "lm_head.weight" not in stored
    assert torch.equal(
        stored["model.embed_tokens.weight"], on_disk(tmp_path / "model")["model.embed_tokens.weight"]
    )
    said = json.loads((tmp_path / "export" / "config.json").read_text())["quantization_config"]
    assert {"lm_head", "model.embed_tokens", "model.norm"} <= {
        *said.get("modules_to_not_convert", said.get("ignore"))
    }
    needs_library(scheme)
    assert load_faults(tmp_path / "export") == []


def test_a_type_for_what_is_not_quantized(made: Made, tmp_path: Path) -> None:
    """--dtype is what the model computes with: of what is kept, and of scales by row. Quantized values are
    made of the trained ones, not of rounded ones. --dtype-of keeps a tensor and what is fused with it.
    """
    options = {**inputs_of(made("seed_oss")), "quantize": FP8_CHANNEL}
    types = "model.layers.2.mlp.up_proj.*=bf16"
    report = export_here(**options, output=tmp_path / "export", dtype="float16", dtype_of=types)
    stored, trained = on_disk(tmp_path / "export"), on_disk(made("seed_oss") / "model")
    assert {v.dtype for n, v in stored.items() if n.endswith(("norm.weight", "_scale", "bias"))} == {
        torch.float16
    }
    assert stored["model.layers.2.mlp.up_proj.weight"].dtype == torch.bfloat16
    assert stored["model.layers.2.mlp.gate_proj.weight"].dtype == torch.float16
    assert set(report.not_quantized) == {f"model.layers.2.mlp.{part}_proj.weight" for part in ("up", "gate")}
    name = "model.layers.0.mlp.down_proj.weight"
    scale = stored[f"{name}_scale"].float()
    assert torch.equal(stored[name].float(), (trained[name] / scale).to(torch.float8_e4m3fn).float())
    rounded = trained[name].half().float()
    assert not torch.equal(stored[name].float(), (rounded / scale).to(torch.float8_e4m3fn).float())
    assert report.dtype == "float16"
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    assert (config["dtype"], config["torch_dtype"]) == ("float16", "float16")


@pytest.mark.parametrize("scheme", ["none", *SCHEMES])
def test_a_reference_that_is_quantized_already(made: Made, tmp_path: Path, scheme: str) -> None:
    """Its config says how its own weights are; the export's says how the export's are, if they are."""
    config = json.loads((made("seed_oss") / "reference" / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8",
        "weight_block_size": [64, 64],
        "modules_to_not_convert": [],
    }
    reference = tmp_path / "reference"
    reference.mkdir()
    (reference / "config.json").write_text(json.dumps(config))
    names = on_disk(made("seed_oss") / "model")
    scales = {f"{name}_scale_inv" for name in names if name.endswith("_proj.weight")}
    index = {"weight_map": dict.fromkeys([*names, *scales], "model-00001-of-00001.safetensors")}
    (reference / file_names.INDEX).write_text(json.dumps(index))
    outputs = [tmp_path / "export", tmp_path / "other"]
    for folder, output in zip((reference, made("seed_oss") / "reference"), outputs):
        export_here(
            checkpoint=made("seed_oss") / "checkpoint", reference=folder, output=output, quantize=scheme
        )
    assert files_of(outputs[0])["config.json"] == files_of(outputs[1])["config.json"]
    said = json.loads((outputs[0] / "config.json").read_text()).get("quantization_config")
    assert (said is None) == (scheme == "none")
    assert pp_export.verify(outputs[0]).ok


def test_a_quantized_reference_of_a_class_that_nobody_knows(tmp_path: Path) -> None:
    """Its index says which tensors there are, beside the scales that its own weights have."""
    case = INDEX_FAMILIES["mimo"]
    disk = case.write(tmp_path)
    (tmp_path / "reference" / file_names.SINGLE_WEIGHTS).unlink()
    config = {**case.family.whole_config(), "quantization_config": {"quant_method": "fp8"}}
    (tmp_path / "reference" / "config.json").write_text(json.dumps(config))
    scales = {f"{name}_scale_inv" for name in disk if name.endswith("_proj.weight")}
    index = {"weight_map": dict.fromkeys([*disk, *scales], "model-00001-of-00001.safetensors")}
    (tmp_path / "reference" / file_names.INDEX).write_text(json.dumps(index))
    report = export_here(**inputs_of(tmp_path), output=tmp_path / "export", quantize=FP8_CHANNEL)
    assert report.expected_from == INDEX
    values = unpacked(tmp_path / "export")
    assert values.keys() == disk.keys()
    assert {name for name in disk if not torch.equal(values[name], disk[name])} == report.quantized.keys()
    assert "model.mtp_layers.0.mlp.up_proj.weight" in report.quantized
    assert "model.mtp_layers.0.input_proj.weight" not in report.quantized


def test_without_a_reference_the_option_is_the_origin(made: Made, tmp_path: Path) -> None:
    """Of a config.json that was made, the report says where each key comes from."""
    options = {"checkpoint": made("seed_oss") / "checkpoint", "architecture": "SeedOssForCausalLM"}
    report = export_here(**options, output=tmp_path / "export", quantize=FP8_BLOCK, vocab_size=250)
    assert report.config_origins["quantization_config"] == "option: --quantize"
    assert pp_export.verify(tmp_path / "export").ok


REFUSED: dict[str, tuple[Options, str]] = {
    "nvfp4": ({"quantize": "nvfp4"}, "no such value"),
    "weights alone": ({"quantize": FP8_BLOCK, "contents": "weights"}, "needs a config.json"),
    "config.json as it is": ({"quantize": FP8_BLOCK, "config_as_reference": True}, "needs a config.json"),
    "all types chosen": ({"quantize": FP8_BLOCK, "dtype_of": "*=bf16"}, "fits no weight of this model"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused(made: Made, tmp_path: Path, case: str) -> None:
    """Before anything is made."""
    options, message = REFUSED[case]
    with pytest.raises(OptionError, match=message):
        export_here(**inputs_of(made("seed_oss")), output=tmp_path / "export", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_whole_blocks_is_refused(tmp_path: Path) -> None:
    """Nothing of a model of this size has blocks of 128 x 128: the first weights are named, and what fits."""
    write_model(FAMILIES["seed_oss"], tmp_path)
    with pytest.raises(OptionError, match="fits no weight of this model") as caught:
        export_here(**inputs_of(tmp_path), output=tmp_path / "export", quantize=FP8_BLOCK)
    assert "aren't whole blocks" in caught.value.findings[0]
    assert "fp8-channel" in str(caught.value.advice)
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_weight_that_is_no_number_is_refused(made: Made, tmp_path: Path, scheme: str) -> None:
    """A NaN in a weight that is quantized stops the export, by the tensor's name; nothing stays."""
    family = WIDE["seed_oss"]
    stored = family.stored(on_disk(made("seed_oss") / "model"), family.whole_config())
    name = "decoder.layers.1.mlp.linear_fc2.weight"
    stored[name] = stored[name].clone()
    stored[name][5, 6] = torch.nan
    values = {key: value.contiguous() for key, value in stored.items()}
    checkpoint = write_stored(tmp_path / "checkpoint", values, family.whole_args())
    with pytest.raises(OptionError, match="can't be quantized") as caught:
        export_here(
            checkpoint=checkpoint,
            reference=made("seed_oss") / "reference",
            output=tmp_path / "export",
            quantize=scheme,
        )
    assert caught.value.where["tensor"] == "model.layers.1.mlp.down_proj.weight"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_block_of_zeros_stays_one(made: Made, tmp_path: Path, scheme: str) -> None:
    """Experts that were never trained: finite scales, and zeros."""
    family = WIDE[MOE]
    disk = on_disk(made(MOE) / "model")
    disk[DOWN] = torch.zeros_like(disk[DOWN])
    stored = family.stored(disk, family.whole_config())
    values = {key: value.contiguous() for key, value in stored.items()}
    checkpoint = write_stored(tmp_path / "checkpoint", values, family.whole_args())
    report = export_here(
        checkpoint=checkpoint, reference=made(MOE) / "reference", output=tmp_path / "export", quantize=scheme
    )
    assert report.quantized[DOWN] == {"absolute": 0.0, "relative": 0.0}
    scales = [v for n, v in on_disk(tmp_path / "export").items() if n.startswith(DOWN) and "_scale" in n]
    assert all(bool((scale > 0).all() and scale.isfinite().all()) for scale in scales)
    assert len(scales) == 1
    assert not unpacked(tmp_path / "export")[DOWN].any()
