"""Claims of exports without a reference: what is exported is what an export with one gives, its tokenizer is
the one that was named, and what nothing says is refused or told.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import pp_export
from pp_export.core import file_names
from pp_export.core.errors import (
    AccountingError,
    ExportError,
    OptionError,
    ReferenceFolderError,
    RuleError,
)
from pp_export.options.cluster import ClusterOptions
from pp_export.options.kinds import ExportOptions
from pp_export.steps.exported import is_exported
from pp_export.steps.plan_report import plan_checkpoint
from pp_export.verification import verify_folder
from tests.cpu.conftest import Checkpoint, Reference
from tests.fixtures import decoders, family_proofs
from tests.fixtures.exports import export_here, files_of, remembering
from tests.fixtures.families import FAMILIES
from tests.fixtures.processes import run_python, torchrun
from tests.fixtures.releases import transformers_5
from tests.fixtures.stored import on_disk, write_stored

pytestmark = transformers_5
TOY = (
    ("qwen2", "tp2pp2", "Qwen2ForCausalLM"),
    ("qwen2_tied", "pp2", "qwen2"),
    ("qwen3_moe", "tp2ep2etp1", "Qwen3MoeForCausalLM"),
    ("qwen3_mtp", "tp2pp2", "Qwen3ForCausalLM"),
    ("llama", "tp2", "llama"),
)
SOME = ("gemma2", "gpt2", "gpt_oss", "deepseek_v3", "deepseek_v2", "glm4_moe", "qwen3_next", "nemotron_3")
Options = dict[str, Any]


@pytest.fixture
def pair(tmp_path: Path) -> Options:
    """A checkpoint of a Llama without a reference, and what an export of it is asked with."""
    inputs = decoders.write_pair(tmp_path)
    return {
        "checkpoint": inputs["checkpoint"],
        "output": inputs["output"],
        "architecture": "LlamaForCausalLM",
        "tokenizer": inputs["reference"],
    }


@pytest.mark.parametrize(("name", "layout", "table"), TOY)
def test_megatrons_own_checkpoints(
    name: str, layout: str, table: str, checkpoint: Checkpoint, reference: Reference, tmp_path: Path
) -> None:
    """Tensors, tokenizer and logits are those of the export with a reference; `verify` agrees."""
    from transformers import AutoModelForCausalLM

    source, given = checkpoint(name, layout), reference(name)
    export_here(checkpoint=source, reference=given, output=tmp_path / "with")
    options: Options = {"checkpoint": source, "architecture": table, "tokenizer": given, "vocab_size": 250}
    done = export_here(**options, output=tmp_path / "without")
    assert verify_folder(tmp_path / "without").faults == ()
    first, second = files_of(tmp_path / "with"), files_of(tmp_path / "without")
    own = {file_names.CONFIG, file_names.MANIFEST, file_names.SUMS}
    assert first.keys() == second.keys()
    assert {file for file in first if first[file] != second[file]} <= own
    loader: Any = AutoModelForCausalLM
    models = [loader.from_pretrained(tmp_path / each).eval() for each in ("with", "without")]
    assert type(models[0]) is type(models[1])
    ids = torch.arange(3, 90)[None]
    with torch.no_grad():
        logits = [model(ids).logits for model in models]
    assert torch.equal(*logits)
    config = json.loads(second[file_names.CONFIG])
    assert done.config_origins.keys() == config.keys()
    assert (done.config_corrections, done.config_additions) == ((), ())
    assert done.config_origins["eos_token_id"] == "tokenizer: generation_config.json"
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (0, 1, 2)


@pytest.mark.parametrize("name", SOME)
def test_families_laid_out_anew(name: str, tmp_path: Path) -> None:
    """Dense, with experts, with latents, with layers of several kinds: tensors and logits are those of the
    model that the checkpoint was made of.
    """
    family = FAMILIES[name]
    family_proofs.write_model(family, tmp_path)
    (tmp_path / "reference" / "config.json").unlink()
    options: Options = {"architecture": family.hf_class, "vocab_size": family.whole_config()["vocab_size"]}

    def without(*, checkpoint: Path, reference: Path, output: Path) -> Any:
        return export_here(checkpoint=checkpoint, output=output, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(family_proofs, "export_here", without)
        assert family_proofs.prove_exported(family, tmp_path, tmp_path / "export")["tensors"] > 20


def test_the_tokenizer_is_copied_byte_for_byte(pair: Options, tmp_path: Path) -> None:
    """Whatever a reader of references copies, and no config.json or weights that lie beside it."""
    (pair["tokenizer"] / "tokenizer_config.json").write_text('{"eos_token": "w7", "bos_token": "w300"}')
    (pair["tokenizer"] / "generation_config.json").unlink()
    (pair["tokenizer"] / "model.safetensors").write_bytes(b"not mine")
    done = export_here(**pair)
    made, given = files_of(pair["output"]), files_of(pair["tokenizer"])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert made[name] == given[name]
    assert set(done.assets_copied) == {"tokenizer.json", "tokenizer_config.json"}
    assert any(text.startswith("config.json: it is made") for text in done.assets_left)
    config = json.loads(made["config.json"])
    assert (config["eos_token_id"], config["bos_token_id"]) == (7, None)
    assert done.config_origins["eos_token_id"] == "tokenizer: tokenizer_config.json"
    assert any("bos_token_id is null" in note for note in done.notes)


def test_the_args_name_a_tokenizer(pair: Options, tmp_path: Path) -> None:
    """Without --tokenizer the folder of `tokenizer_model` counts if it is here; else all is told, and the
    vocabulary must come from elsewhere.
    """
    folder = pair.pop("tokenizer")
    for number, name in enumerate((str(folder), str(tmp_path / "gone"), "Qwen/Qwen2", None)):
        write_stored(tmp_path / f"c{number}", decoders.decoder(), decoders.ARGS | {"tokenizer_model": name})
        options: Options = {**pair, "checkpoint": tmp_path / f"c{number}", "output": tmp_path / f"o{number}"}
        if number == 0:
            done = export_here(**options)
            assert "tokenizer.json" in done.assets_copied
            assert any("tokenizer_model" in note for note in done.notes)
            continue
        with pytest.raises(AccountingError, match="true vocabulary size is not known"):
            export_here(**options)
        done = export_here(**options, vocab_size=decoders.VOCAB)
        assert done.assets_copied == ()
        assert any("no tokenizer in the export" in note for note in done.notes)
        assert done.config_origins["vocab_size"] == "option: --vocab-size"
        with pytest.raises(ReferenceFolderError, match="no tokenizer is given"):
            export_here(**options, vocab_size=decoders.VOCAB, require_tokenizer=True, overwrite=True)


def test_a_tokenizer_of_another_vocabulary_is_refused(
    checkpoint: Checkpoint, reference: Reference, tmp_path: Path
) -> None:
    """145 ids would have been padded to 192 rows, and 256 were trained: those between may be tokens."""
    options: Options = {"checkpoint": checkpoint("qwen2", "tp1"), "architecture": "qwen2"}
    with pytest.raises(AccountingError, match="number of ids does not fit") as caught:
        export_here(**options, tokenizer=reference("qwen2"), output=tmp_path / "out")
    assert "pad to 192" in str(caught.value.got)


def _no_config(pair: Options) -> None:
    pair["config_as_reference"] = True


def _taking(pair: Options) -> None:
    pair["take_missing_from_reference"] = "*"


def _with_images(pair: Options) -> None:
    pair["architecture"] = "Mistral3ForConditionalGeneration"


def _no_class(pair: Options) -> None:
    pair["architecture"] = None


def _unserved(pair: Options) -> None:
    pair["architecture"] = "NoSuchForCausalLM"


def _both(pair: Options) -> None:
    pair["reference"] = pair["tokenizer"]


def _no_tokenizer(pair: Options) -> None:
    (pair["tokenizer"] / "tokenizer.json").unlink()


def _nowhere(pair: Options) -> None:
    pair["tokenizer"] = pair["tokenizer"] / "nowhere"


def _other_class(pair: Options) -> None:
    pair["architecture"] = "Qwen3MoeForCausalLM"


def _few_tokens(pair: Options) -> None:
    pair["vocab_size"] = 1000


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        (_no_config, OptionError, "needs a --reference"),
        (_taking, OptionError, "--take-missing-from-reference needs a --reference"),
        (_no_class, OptionError, "class of the model is not known"),
        (_unserved, RuleError, "no architecture table serves"),
        (_with_images, RuleError, "more than a language model"),
        (_both, OptionError, "can't be used with --reference"),
        (_no_tokenizer, ReferenceFolderError, "has no tokenizer"),
        (_nowhere, ReferenceFolderError, "does not exist"),
        (_other_class, AccountingError, "don't tell all that config.json needs"),
        (_few_tokens, AccountingError, "does not fit the embedding"),
    ],
)
def test_refusals(
    change: Callable[[Options], None], kind: type[ExportError], said: str, pair: Options, tmp_path: Path
) -> None:
    """One clear error, by export and plan alike, and nothing is left behind."""
    change(pair)
    before = sorted(tmp_path.iterdir())
    with remembering(), pytest.raises(kind, match=said):
        plan_checkpoint(ExportOptions(**pair), ClusterOptions(), here=True)
    with pytest.raises(kind, match=said):
        export_here(**pair)
    assert sorted(tmp_path.iterdir()) == before


def test_a_checkpoint_without_args(pair: Options, tmp_path: Path) -> None:
    write_stored(tmp_path / "bare", decoders.decoder(), None)
    with pytest.raises(AccountingError, match="has no training args"):
        export_here(**{**pair, "checkpoint": tmp_path / "bare"})


def test_plan_and_export_say_the_same(pair: Options) -> None:
    with remembering():
        plan = plan_checkpoint(ExportOptions(**pair), ClusterOptions(), here=True)
    done = export_here(**pair)
    assert plan.config_origins == done.config_origins
    assert plan.fingerprint == done.plan_fingerprint


def test_what_is_exported_is_known_again(pair: Options) -> None:
    """The same export again is none; with another tokenizer it is another."""
    export_here(**pair)
    assert is_exported(ExportOptions(**pair))
    (pair["tokenizer"] / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ExportError, match="is not this export"):
        is_exported(ExportOptions(**pair))


def test_a_run_that_may_be_gone_on_with(pair: Options, tmp_path: Path) -> None:
    """With --resume, the same bytes."""
    export_here(**pair)
    export_here(**{**pair, "output": tmp_path / "resumable"}, resume=True)
    sums = [(folder / file_names.SUMS).read_bytes() for folder in (pair["output"], tmp_path / "resumable")]
    assert sums[0] == sums[1]


def test_a_head_of_labels(pair: Options, tmp_path: Path) -> None:
    """A classifier of as many labels as its head has rows loads with all its weights."""
    from transformers import AutoModelForSequenceClassification

    tensors = decoders.decoder()
    tensors["output_layer.weight"] = tensors["output_layer.weight"][:3].clone()
    write_stored(tmp_path / "labels", tensors, decoders.ARGS)
    options: Options = {"checkpoint": tmp_path / "labels", "architecture": "LlamaForSequenceClassification"}
    done = export_here(**{**pair, **options})
    assert done.config_origins["num_labels"] == "tensors"
    loader: Any = AutoModelForSequenceClassification
    model, info = loader.from_pretrained(pair["output"], output_loading_info=True)
    assert (type(model).__name__, model.config.num_labels) == ("LlamaForSequenceClassification", 3)
    assert not any(info[kind] for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"))
    assert torch.equal(model.score.weight, tensors["output_layer.weight"])


def test_windows_as_long_as_the_sequences_are_said(pair: Options, tmp_path: Path) -> None:
    """What no sequence of the training was long enough to see, longer ones of the answers are."""
    args = decoders.ARGS | {"window_size": (255, 0), "seq_length": 256}
    write_stored(tmp_path / "windowed", decoders.decoder(), args)
    export_here(**{**pair, "checkpoint": tmp_path / "windowed", "architecture": "MistralForCausalLM"})
    assert json.loads((pair["output"] / "config.json").read_text())["sliding_window"] == 256


def test_jobs_and_ranks(pair: Options, tmp_path: Path) -> None:
    """A job file without a reference, by two ranks through the command line; in the background likewise."""
    job = {key: str(value) for key, value in pair.items()} | {"report": str(tmp_path / "report.json")}
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    command = torchrun(2, "-m", "pp_export", "export", str(tmp_path / "job.yaml"))
    ended = run_python(command, tmp_path / "launch", timeout_s=120).checked()
    assert "made of the training args, without a reference" in " ".join(ended.stdout.split())
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["config_origins"]["num_hidden_layers"] == "args: num_layers"
    handle = pp_export.export_checkpoint(
        pair["checkpoint"],
        output=tmp_path / "behind",
        architecture=pair["architecture"],
        tokenizer=pair["tokenizer"],
        background=True,
    )
    handle.wait()
    assert (tmp_path / "behind" / file_names.SUMS).read_bytes() == (
        pair["output"] / file_names.SUMS
    ).read_bytes()
    assert on_disk(tmp_path / "behind").keys() == on_disk(pair["output"]).keys()
