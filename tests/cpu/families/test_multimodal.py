"""Claims: a language model that was trained within one that reads images comes back into it, and what else
that one has is the reference's, byte for byte, when that is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import pp_export
from pp_export.architecture import table_files
from pp_export.core.errors import AccountingError, OptionError, ReferenceFolderError, RuleError
from pp_export.core.file_names import SUMS
from tests.fixtures.exports import RememberedDefinition, export_here, remembering
from tests.fixtures.live import Case
from tests.fixtures.models import MODELS, hf_config
from tests.fixtures.multimodal import MULTIMODAL, prove
from tests.fixtures.processes import run_python, torchrun
from tests.fixtures.stored import Part, on_disk

Made = Callable[[str], tuple[Path, dict[str, torch.Tensor]]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """`made(name)`: the folder with `reference` and `checkpoint`, and the tensors of the right export."""
    root, known = tmp_path_factory.mktemp("multimodal"), dict[str, tuple[Path, dict[str, torch.Tensor]]]()

    def find(name: str) -> tuple[Path, dict[str, torch.Tensor]]:
        if name not in known:
            (root / name).mkdir()
            known[name] = root / name, MULTIMODAL[name].write(root / name)
        return known[name]

    return find


def export_of(folder: Path, output: Path, **options: Any) -> Any:
    inputs = {kind: folder / kind for kind in ("checkpoint", "reference")}
    return export_here(**inputs, output=output, **options)


@pytest.mark.parametrize("name", MULTIMODAL)
def test_the_trained_part_comes_back_into_the_whole(name: str, tmp_path: Path) -> None:
    """All tensors have their names and bytes, trained or not; transformers loads them all, and the model
    gives the logits of one into which the trained part was put by hand. Report and manifest list what is the
    reference's.
    """
    assert prove(MULTIMODAL[name], tmp_path)["tensors"] > 20
    assert pp_export.verify(tmp_path / "export").ok
    manifest = json.loads((tmp_path / "export" / "export_manifest.json").read_text())
    taken = manifest["provenance"]["taken_from_reference"]
    assert taken
    assert not any(MULTIMODAL[name].is_language(key) for key in taken)


@pytest.mark.parametrize("name", MULTIMODAL)
def test_what_is_missing_is_never_taken_unasked(name: str, made: Made, tmp_path: Path) -> None:
    """Without the option every missing tensor is listed, and the option is named."""
    case, (folder, truth) = MULTIMODAL[name], made(name)
    with pytest.raises(AccountingError) as caught:
        export_of(folder, tmp_path / "export")
    missing = {key for key in truth if not case.is_language(key)}
    assert {finding.split()[0] for finding in caught.value.findings} == missing
    assert "--take-missing-from-reference" in str(caught.value.advice)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", MULTIMODAL)
def test_config_json_says_the_function_within(name: str, made: Made, tmp_path: Path) -> None:
    """A training arg of another function is refused, by the value that the nested config has; and what the
    checkpoint decides is written there, whether or not the reference has the key.
    """
    case, (folder, _) = MULTIMODAL[name], made(name)
    args = case.family.whole_args() | {"norm_epsilon": 0.125}
    other = tmp_path / "other"
    case.write_checkpoint(folder / "trained", other / "checkpoint", args)
    (other / "reference").symlink_to(folder / "reference")
    with pytest.raises(AccountingError, match="not the config of this checkpoint") as caught:
        export_of(other, tmp_path / "export", take_missing_from_reference=case.others)
    assert any("0.125" in finding for finding in caught.value.findings)
    options = {"take_missing_from_reference": case.others, "config_from": "checkpoint"}
    report = export_of(other, tmp_path / "export", **options)
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    assert config["text_config"]["rms_norm_eps"] == 0.125
    assert "rms_norm_eps" not in config
    assert any(
        line.startswith("config.json: text_config.rms_norm_eps is") for line in report.config_corrections
    )
    assert config["tie_word_embeddings"] == config["text_config"]["tie_word_embeddings"]
    assert (
        config["vision_config"] == json.loads((folder / "reference/config.json").read_text())["vision_config"]
    )


def test_a_pattern_that_fits_nothing_is_refused(made: Made, tmp_path: Path) -> None:
    """A typing error is told with names that there are; so is a reference without weights."""
    folder, _ = made("mistral3")
    with pytest.raises(OptionError, match="matches no tensor") as caught:
        export_of(folder, tmp_path / "export", take_missing_from_reference="vision_*,visoin.*")
    assert caught.value.got == "visoin.*"
    assert any("vision_tower" in finding for finding in caught.value.findings)
    bare = tmp_path / "bare"
    (bare / "reference").mkdir(parents=True)
    (bare / "checkpoint").symlink_to(folder / "checkpoint")
    (bare / "reference/config.json").write_text((folder / "reference/config.json").read_text())
    with pytest.raises(ReferenceFolderError, match="no weights"):
        export_of(bare, tmp_path / "export", take_missing_from_reference="vision_*")


def test_nothing_is_taken_that_the_checkpoint_has(made: Made, tmp_path: Path) -> None:
    """A pattern that fits all takes only what is missing: the trained part stays as trained."""
    folder, truth = made("qwen3_5")
    report = export_of(folder, tmp_path / "export", take_missing_from_reference="*")
    exported = on_disk(tmp_path / "export")
    assert all(torch.equal(truth[key], exported[key]) for key in truth)
    assert all(key.startswith("model.visual.") for key in report.taken_from_reference)


def test_a_cast_leaves_what_is_taken_as_it_is(made: Made, tmp_path: Path) -> None:
    """With another type for the weights, those of the reference keep theirs, and its bytes."""
    folder, truth = made("mistral3")
    case = MULTIMODAL["mistral3"]
    options = {"take_missing_from_reference": case.others, "dtype": "bfloat16"}
    report = export_of(folder, tmp_path / "export", **options)
    exported = on_disk(tmp_path / "export")
    for key, value in truth.items():
        expected = value.bfloat16() if case.is_language(key) else value
        assert exported[key].dtype == expected.dtype
        assert torch.equal(exported[key], expected), key
    assert set(report.other_dtypes) == set(report.taken_from_reference)


def test_which_language_model_is_within_must_be_told(made: Made) -> None:
    """Two classes can be within Mistral 3; another one, or none, is refused with those that there are."""
    for inner in ({}, {"text_config": {"model_type": "phi3"}}):
        with pytest.raises(RuleError, match="which language model") as caught:
            table_files.for_class("Mistral3ForConditionalGeneration", inner)
        assert "ministral3" in str(caught.value.expected)


def test_every_number_of_ranks_gives_the_same_bytes(made: Made, tmp_path: Path) -> None:
    """Ranks that share tensors, experts or stages read and write what is taken like everything else."""
    jobs: list[dict[str, Any]] = []
    for name, grid in (("mistral3", {"tensor_parallel": 2}), ("llama4", {"pipeline_parallel": 2})):
        folder, taken = made(name)[0], {"take_missing_from_reference": MULTIMODAL[name].others}
        export_of(folder, tmp_path / f"one {name}", max_shard_size="20KB", **taken)
        inputs = {kind: str(folder / kind) for kind in ("checkpoint", "reference")}
        output = {"output": str(tmp_path / f"two {name}"), "max_shard_size": "20KB"}
        jobs.append({**inputs, **output, **grid, **taken})
    RememberedDefinition.write(tmp_path / "answers.json")
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    command = torchrun(2, "-m", "tests.fixtures.many_exports", str(tmp_path / "jobs.json"))
    run_python([*command, str(tmp_path / "answers.json")], tmp_path / "log", timeout_s=200).checked()
    for name in ("mistral3", "llama4"):
        one, two = ((tmp_path / f"{ranks} {name}" / SUMS).read_text() for ranks in ("one", "two"))
        assert one == two


def test_a_live_model_is_completed_too(made: Made, tmp_path: Path) -> None:
    """The language model in memory, and the rest from the reference's files, give the bytes of an export of
    the checkpoint.
    """
    folder, _ = made("mistral3")
    taken: dict[str, Any] = {"take_missing_from_reference": MULTIMODAL["mistral3"].others}
    export_of(folder, tmp_path / "files", **taken)
    with remembering():
        report = pp_export.export_model(
            Part(folder / "checkpoint"), reference=folder / "reference", output=tmp_path / "live", **taken
        )
    assert report.taken_from_reference
    live, files = on_disk(tmp_path / "live"), on_disk(tmp_path / "files")
    assert sorted(live) == sorted(files)
    assert all(torch.equal(live[key], files[key]) for key in files)


def test_ranks_of_a_live_job_are_completed_too(tmp_path: Path) -> None:
    """megatron-core's own model on two tensor parallel ranks: rank 0 reads the rest from the reference, and
    the folder is that of an export of the checkpoint that the job has saved.
    """
    case = replace(MULTIMODAL["mistral3"], text=hf_config(MODELS["mistral"]).to_dict())
    case.model(1).save_pretrained(tmp_path / "reference")
    taken = {"take_missing_from_reference": case.others}
    live = Case("mistral", "tp2", str(tmp_path / "reference"), str(tmp_path / "job"), options=taken)
    (tmp_path / "cases.json").write_text(json.dumps([asdict(live)]))
    command = torchrun(2, "-m", "tests.fixtures.live", str(tmp_path / "cases.json"))
    run_python(command, tmp_path / "log", timeout_s=200).checked()
    ranks = [json.loads((tmp_path / "job" / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert [rank.get("error") for rank in ranks] == [None, None]
    inputs = {"checkpoint": tmp_path / "job" / "checkpoint", "reference": tmp_path / "reference"}
    export_here(**inputs, output=tmp_path / "files", **taken)
    found, expected = on_disk(tmp_path / "job" / "live"), on_disk(tmp_path / "files")
    assert sorted(found) == sorted(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert sum(not case.is_language(key) for key in found) > 5
