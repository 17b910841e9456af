"""Claims: adapters (LoRA) are merged into the weights, or exported alone, so that the model answers as with
them in PEFT; whatever framework stored them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import pp_export
from pp_export.core.errors import AccountingError, CheckpointError, ExportError, OptionError
from pp_export.core.file_names import SUMS
from tests.cpu.conftest import Checkpoint, Reference
from tests.fixtures import adapters, sharing
from tests.fixtures.adapters import ALPHA, RANK
from tests.fixtures.decoders import ARGS, CONFIG, decoder, write_pair
from tests.fixtures.exports import export_here, files_of
from tests.fixtures.families import FAMILIES
from tests.fixtures.family_proofs import write_model
from tests.fixtures.processes import run_python, torchrun
from tests.fixtures.releases import transformers_5
from tests.fixtures.stored import on_disk, write_stored
from tests.fixtures.tiny_models import ask

IDS = torch.arange(3, 40)[None]
SAID = {"lora_alpha": ALPHA, "lora_rank": RANK}
FC1 = "decoder.layers.mlp.linear_fc1.adapter."
KINDS: dict[str, Any] = {
    "bridge": adapters.as_bridge,
    "canonical": adapters.as_canonical,
    "swift": adapters.as_swift,
}


def exported(folder: Path, stored: dict[str, torch.Tensor], lora: str, **options: Any) -> Path:
    """The export of a decoder with `stored` adapters beside its weights."""
    experts = options.pop("experts", False)
    args = {**SAID, **options.pop("args", {})}
    tensors = decoder(experts=experts) | stored
    pair = write_pair(folder, args, experts=experts, tensors=tensors)
    export_here(**pair, lora=lora, **options)
    return pair["output"]


def plain(folder: Path, *, experts: bool = False) -> Path:
    """The export of the decoder without adapters."""
    pair = write_pair(folder, experts=experts)
    export_here(**pair)
    return pair["output"]


def answers(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(IDS).logits
    return logits


def assert_merged(
    folder: Path, base: Path, peft: dict[str, torch.Tensor], scale: float = ALPHA / RANK
) -> None:
    """Each weight is the base's and what its adapter adds, in float32; all others are the base's bytes."""
    merged, before = on_disk(folder), on_disk(base)
    assert merged.keys() == before.keys()
    for name, value in before.items():
        module = name.removesuffix(".weight")
        if f"{module}.A" not in peft:
            assert torch.equal(merged[name], value), name
            continue
        expected = value.double() + scale * (peft[f"{module}.B"].double() @ peft[f"{module}.A"].double())
        assert (merged[name] - expected).abs().max() < 1e-6 * max(1.0, float(expected.abs().max())), name
        assert (merged[name] - value).abs().max() > 0.01, name


@pytest.mark.parametrize("kind", KINDS)
def test_merged_and_alone_they_answer_as_in_peft(kind: str, tmp_path: Path) -> None:
    """Of every framework's names: the merged model, and the base with the exported adapter loaded by PEFT,
    give the logits of a PEFT model whose matrices were set by hand; both folders are proved.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    peft = adapters.of_peft(own=kind == "canonical")
    stored = KINDS[kind](peft)
    base = plain(tmp_path / "base")
    merged = exported(tmp_path / "merged", stored, "merge")
    alone = exported(tmp_path / "alone", stored, "adapter")
    truth = answers(adapters.with_peft(base, peft))
    scale = float(truth.abs().max())
    assert float((truth - ask(base, IDS)).abs().max()) > 0.1 * scale, (
        "adapters that change nothing prove nothing"
    )
    assert float((ask(merged, IDS) - truth).abs().max()) < 1e-5 * scale
    assert_merged(merged, base, peft)
    loader: Any = AutoModelForCausalLM
    loaded = PeftModel.from_pretrained(loader.from_pretrained(base, dtype=torch.float32), alone).eval()
    assert float((answers(loaded) - truth).abs().max()) < 1e-5 * scale
    assert sorted(files_of(alone)) == [
        SUMS,
        "adapter_config.json",
        "adapter_model.safetensors",
        "export_manifest.json",
    ]
    for folder in (merged, alone):
        assert pp_export.verify(folder).ok
        manifest = json.loads((folder / "export_manifest.json").read_text())
        assert manifest["provenance"]["lora"]["alpha"] == ALPHA
        assert manifest["provenance"]["lora"]["tensors"] == len(peft) // 2


def test_the_exported_adapter_is_what_peft_saves(tmp_path: Path) -> None:
    """Names, shapes, types and bytes are those of PEFT's own save of the same adapter."""
    peft = adapters.of_peft()
    base = plain(tmp_path / "base")
    adapters.with_peft(base, peft).save_pretrained(tmp_path / "peft")
    alone = exported(tmp_path / "alone", adapters.as_bridge(peft), "adapter")
    truth, mine = on_disk(tmp_path / "peft"), on_disk(alone)
    assert truth.keys() == mine.keys()
    assert all(torch.equal(truth[name], mine[name]) for name in truth)
    theirs, ours = (json.loads((at / "adapter_config.json").read_text()) for at in (tmp_path / "peft", alone))
    for key in ("peft_type", "task_type", "r", "lora_alpha", "use_rslora", "bias", "fan_in_fan_out"):
        assert theirs[key] == ours[key], key
    assert ours["base_model_name_or_path"] is None, "no path of the job"
    assert "q_proj" in ours["target_modules"]


def test_adapters_of_experts(tmp_path: Path) -> None:
    """One for each routed expert, by dims of layers and experts: merged as PEFT's own arithmetic has it, and
    alone under the names that vLLM and PEFT take.
    """
    peft = adapters.of_peft(experts=True)
    stored = adapters.as_bridge(peft, experts=True)
    base = plain(tmp_path / "base", experts=True)
    assert_merged(exported(tmp_path / "merged", stored, "merge", experts=True), base, peft)
    alone = on_disk(exported(tmp_path / "alone", stored, "adapter", experts=True))
    assert alone.keys() == {f"base_model.model.{name[:-2]}.lora_{name[-1]}.weight" for name in peft}
    assert all(
        torch.equal(
            value, peft[name.removeprefix("base_model.model.").replace(".lora_", ".").removesuffix(".weight")]
        )
        for name, value in alone.items()
    )


def test_one_adapter_of_all_experts(tmp_path: Path) -> None:
    """Stored without a dim for experts, as Megatron-Bridge did up to 0.3.1, it counts for each; where each
    rank had one of its own and one was stored, that is refused.
    """
    peft = adapters.of_peft(experts=True)
    first = {
        name.replace(".experts.0.", f".experts.{expert}."): value
        for name, value in peft.items()
        for expert in (range(8) if ".experts." in name else [0])
        if ".experts." not in name or ".experts.0." in name
    }
    stored = {
        key: value[:, 0].contiguous() if ".experts." in key else value
        for key, value in adapters.as_bridge(peft, experts=True).items()
    }
    base = plain(tmp_path / "base", experts=True)
    assert_merged(exported(tmp_path / "merged", stored, "merge", experts=True), base, first)
    alone = on_disk(exported(tmp_path / "alone", stored, "adapter", experts=True))
    assert len(alone) == len(first)
    with pytest.raises(CheckpointError, match="for one expert parallel rank only"):
        exported(tmp_path / "lost", stored, "merge", experts=True, args={"expert_model_parallel_size": 2})


def test_adapters_alone_and_the_base_in_a_folder(tmp_path: Path) -> None:
    """A save of adapters alone, with its alpha in run_config.yaml, merged into the weights of --base: the
    same bytes as merged into the checkpoint's own weights; what no adapter touches is the base's.
    """
    peft = adapters.of_peft()
    base = plain(tmp_path / "base")
    alone = write_stored(tmp_path / "alone", adapters.as_bridge(peft), None)
    adapters.write_run_config(alone, _bridge_config())
    report = export_here(checkpoint=alone, base=base, output=tmp_path / "merged", lora="merge")
    assert report.taken_from_reference == ()
    assert_merged(tmp_path / "merged", base, peft)
    whole = exported(tmp_path / "whole", adapters.as_bridge(peft), "merge")
    assert on_disk(whole).keys() == on_disk(tmp_path / "merged").keys()
    assert {name: data for name, data in files_of(whole).items() if name.endswith(".safetensors")} == {
        name: data for name, data in files_of(tmp_path / "merged").items() if name.endswith(".safetensors")
    }
    export_here(checkpoint=alone, reference=base, output=tmp_path / "peft", lora="adapter")
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (RANK, ALPHA, 0.1)


def test_routers_and_heads_have_adapters_too(tmp_path: Path) -> None:
    """The adapter of a router and of the output layer, whose padding is cut off, merged as all others."""
    generator = torch.Generator().manual_seed(2)
    peft: dict[str, torch.Tensor] = {}
    stored: dict[str, torch.Tensor] = {}
    for megatron, name, rows, kept in (
        ("output_layer", "lm_head", 256, 250),
        ("decoder.layers.1.mlp.router", "model.layers.1.mlp.gate", 8, 8),
    ):
        inner = torch.randn(RANK, 32, generator=generator)
        outer = torch.randn(rows, RANK, generator=generator)
        stored |= {
            f"{megatron}.adapter.linear_in.weight": inner,
            f"{megatron}.adapter.linear_out.weight": outer,
        }
        peft |= {f"{name}.A": inner, f"{name}.B": outer[:kept]}
    base = plain(tmp_path / "base", experts=True)
    assert_merged(exported(tmp_path / "merged", stored, "merge", experts=True), base, peft)
    alone = on_disk(exported(tmp_path / "alone", stored, "adapter", experts=True))
    assert torch.equal(alone["base_model.model.lm_head.lora_B.weight"], peft["lm_head.B"])


@transformers_5
def test_peft_loads_adapters_of_experts(tmp_path: Path) -> None:
    """Of a class that packs its experts in memory, PEFT packs their adapters, which answer as merged ones."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    stored = adapters.as_bridge(adapters.of_peft(experts=True), experts=True)
    base = plain(tmp_path / "base", experts=True)
    truth = ask(exported(tmp_path / "merged", stored, "merge", experts=True), IDS)
    alone = exported(tmp_path / "alone", stored, "adapter", experts=True)
    loader: Any = AutoModelForCausalLM
    loaded = PeftModel.from_pretrained(loader.from_pretrained(base, dtype=torch.float32), alone).eval()
    assert float((answers(loaded) - truth).abs().max()) < 1e-5 * float(truth.abs().max())


@transformers_5
def test_experts_in_one_tensor(tmp_path: Path) -> None:
    """gpt-oss keeps experts in one tensor, the other way round, gate and up taking turns: merged expert by
    expert; PEFT has no names for that.
    """
    family = FAMILIES["gpt_oss"]
    write_model(family, tmp_path)
    stored = family.stored(on_disk(tmp_path / "model"), family.whole_config())
    name = "decoder.layers.0.mlp.experts.experts.linear_fc"
    generator = torch.Generator().manual_seed(3)
    for number in (1, 2):
        experts, rows, columns = stored[f"{name}{number}.weight"].shape
        inner = torch.randn(experts, RANK, columns, generator=generator)
        outer = torch.randn(experts, rows, RANK, generator=generator)
        stored[f"{name}{number}.adapter.linear_in.weight"] = inner
        stored[f"{name}{number}.adapter.linear_out.weight"] = outer
    args = {**family.whole_args(), **SAID}
    write_stored(tmp_path / "adapted", {key: value.contiguous() for key, value in stored.items()}, args)
    options: dict[str, Any] = {"checkpoint": tmp_path / "adapted", "reference": tmp_path / "reference"}
    export_here(**options, output=tmp_path / "merged", lora="merge")
    merged, before = on_disk(tmp_path / "merged"), on_disk(tmp_path / "model")
    halves = [[stored[f"{name}{n}.adapter.linear_{half}.weight"] for half in ("out", "in")] for n in (1, 2)]
    both, down = (ALPHA / RANK * (outer @ inner) for outer, inner in halves)
    gate, up = both.chunk(2, dim=1)
    turns = torch.stack([gate, up], dim=2).flatten(1, 2)
    for module, change in (("gate_up_proj", turns.mT), ("down_proj", down.mT)):
        key = f"model.layers.0.mlp.experts.{module}"
        assert (merged[key] - before[key] - change).abs().max() < 1e-4, key
        assert change.abs().max() > 0.1
        del merged[key], before[key]
    assert all(torch.equal(merged[key], value) for key, value in before.items())
    with pytest.raises(AccountingError) as caught:
        export_here(**options, output=tmp_path / "peft", lora="adapter")
    assert any("PEFT has no name" in finding for finding in caught.value.findings)


def test_some_layers_of_some_modules(tmp_path: Path) -> None:
    """Where only some modules have adapters, all others are the base's; the exported adapter names what it is
    for by its whole name, so that PEFT makes no others.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    peft = {name: value for name, value in adapters.of_peft().items() if "layers.1.self_attn" in name}
    stored = {
        key.replace("layers.", "layers.1."): value[1].contiguous()
        for key, value in adapters.as_bridge(adapters.of_peft()).items()
        if "self_attention" in key
    }
    base = plain(tmp_path / "base")
    assert_merged(exported(tmp_path / "merged", stored, "merge"), base, peft)
    alone = exported(tmp_path / "alone", stored, "adapter")
    config = json.loads((alone / "adapter_config.json").read_text())
    assert set(config["target_modules"]) == {name[:-2] for name in peft}
    loader: Any = AutoModelForCausalLM
    loaded = PeftModel.from_pretrained(loader.from_pretrained(base, dtype=torch.float32), alone).eval()
    truth = answers(adapters.with_peft(base, peft))
    assert float((answers(loaded) - truth).abs().max()) < 1e-5 * float(truth.abs().max())


def test_alpha_by_the_root_of_the_rank(tmp_path: Path) -> None:
    """ms-swift's use_rslora counts, merged and in the adapter's config."""
    peft = adapters.of_peft()
    base, args = plain(tmp_path / "base"), {"use_rslora": True}
    merged = exported(tmp_path / "merged", adapters.as_swift(peft), "merge", args=args)
    assert_merged(merged, base, peft, scale=ALPHA / RANK**0.5)
    truth = answers(adapters.with_peft(base, peft, use_rslora=True))
    assert float((ask(merged, IDS) - truth).abs().max()) < 1e-5 * float(truth.abs().max())
    alone = exported(tmp_path / "alone", adapters.as_swift(peft), "adapter", args=args)
    assert json.loads((alone / "adapter_config.json").read_text())["use_rslora"] is True


def test_the_sum_is_rounded_once(tmp_path: Path) -> None:
    """With --dtype, base and product are added in float32 before the cast; numbers that become infinite are
    refused.
    """
    peft = adapters.of_peft()
    exact = on_disk(exported(tmp_path / "exact", adapters.as_bridge(peft), "merge"))
    cast = on_disk(exported(tmp_path / "cast", adapters.as_bridge(peft), "merge", dtype="bfloat16"))
    assert all(torch.equal(cast[name], value.bfloat16()) for name, value in exact.items())
    with pytest.raises(OptionError, match="become infinite in float16"):
        exported(tmp_path / "large", adapters.as_bridge(peft), "merge", dtype="float16", lora_alpha=1e7)


def test_the_users_alpha_goes_first(tmp_path: Path) -> None:
    """--lora-alpha counts, where the run says none and where it says another, which is told."""
    peft = adapters.of_peft()
    base = plain(tmp_path / "base")
    for name, args in (("unknown", {"lora_alpha": None}), ("other", {})):
        folder = exported(tmp_path / name, adapters.as_bridge(peft), "merge", lora_alpha=16, args=args)
        assert_merged(folder, base, peft, scale=16 / RANK)
    with pytest.raises(OptionError, match="adapters' alpha is not known"):
        exported(tmp_path / "none", adapters.as_bridge(peft), "merge", args={"lora_alpha": None})


def test_verl_says_alpha_above_the_folder(tmp_path: Path) -> None:
    """`lora_train_meta.json` is found above the weights, and its rank is held against theirs."""
    peft = adapters.of_peft()
    actor = tmp_path / "actor"
    folder = write_stored(actor / "model" / "dist_ckpt", decoder() | adapters.as_bridge(peft), ARGS)
    base = write_pair(tmp_path / "base")
    export_here(**base)
    for rank, told in ((RANK, None), (8, "its adapter has rank 4; lora_train_meta.json says 8")):
        (actor / "lora_train_meta.json").write_text(json.dumps({"r": rank, "lora_alpha": ALPHA}))
        options: Any = {"checkpoint": folder, "reference": base["reference"], "output": tmp_path / str(rank)}
        if told is None:
            export_here(**options, lora="merge")
            assert_merged(options["output"], base["output"], peft)
            continue
        with pytest.raises(AccountingError) as caught:
            export_here(**options, lora="merge")
        assert any(told in finding for finding in caught.value.findings)


def _changed(
    stored: dict[str, torch.Tensor], name: str, value: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    return {key: of for key, of in {**stored, name: value}.items() if of is not None}


REFUSED: dict[str, tuple[str, torch.Tensor | None, str]] = {
    "half": (f"{FC1}linear_out.weight", None, "its linear_out is missing"),
    "rank": (f"{FC1}linear_in.weight", torch.ones(2, 3, 32), "have ranks 3, 4"),
    "shape": (f"{FC1}linear_out.weight", torch.ones(2, 94, RANK), "the adapter's shape doesn't fit"),
    "dora": (f"{FC1}weight_magnitude", torch.ones(2, 96), "DoRA"),
    "several": (
        f"{FC1.replace('adapter', 'adapters.0')}linear_in.weight",
        torch.ones(2, RANK, 32),
        "MultiLoRA",
    ),
    "bias": ("decoder.layers.mlp.linear_fc1.lora_B.default.bias", torch.ones(2, 96), "with a bias"),
    "unknown": ("decoder.layers.mlp.linear_fc9.adapter.linear_in.weight", torch.ones(2, 4, 4), "is missing"),
    "embedding": (
        "embedding.word_embeddings.lora_embedding_A.default",
        torch.ones(4, 256),
        "of an embedding",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("lora", ["merge", "adapter"])
def test_what_is_no_adapter_of_two_matrices_is_named(case: str, lora: str, tmp_path: Path) -> None:
    """Halves, other ranks, other kinds: an error that names them, and nothing stays."""
    key, value, told = REFUSED[case]
    with pytest.raises(AccountingError) as caught:
        exported(tmp_path / "x", _changed(adapters.as_bridge(adapters.of_peft()), key, value), lora)
    assert any(told in finding for finding in caught.value.findings), caught.value.findings
    assert not (tmp_path / "x" / "out").exists()


def test_both_ways_are_named(tmp_path: Path) -> None:
    """Without --lora a checkpoint with adapters is refused, with the two ways; alone, with the base too."""
    stored = adapters.as_bridge(adapters.of_peft())
    pair = write_pair(tmp_path / "whole", SAID, tensors=decoder() | stored)
    with pytest.raises(AccountingError, match="holds adapters") as caught:
        export_here(**pair)
    assert "--lora merge" in str(caught.value.advice)
    assert "--lora adapter" in str(caught.value.advice)
    alone = write_stored(tmp_path / "alone", stored, {**ARGS, **SAID})
    for lora in ("refuse", "merge"):
        with pytest.raises(ExportError, match="alone") as refused:
            export_here(checkpoint=alone, reference=pair["reference"], output=tmp_path / "x", lora=lora)
        assert "--base" in f"{refused.value.advice} {refused.value.expected}"


def test_what_is_asked_for_in_vain_is_refused(tmp_path: Path) -> None:
    """--lora without adapters; --base where nothing is missing, without --lora merge, or without weights."""
    pair: dict[str, Any] = write_pair(tmp_path / "plain")
    with pytest.raises(OptionError, match="has no adapters"):
        export_here(**pair, lora="merge")
    with pytest.raises(OptionError, match="--base"):
        export_here(**pair, base=pair["reference"])
    stored = adapters.as_bridge(adapters.of_peft())
    whole: dict[str, Any] = write_pair(tmp_path / "whole", SAID, tensors=decoder() | stored)
    with pytest.raises(OptionError, match="has no weights"):
        export_here(**whole, lora="merge", base=pair["reference"])
    export_here(**pair)
    with pytest.raises(AccountingError) as caught:
        export_here(**whole, lora="merge", base=pair["output"])
    assert any("nothing to take from --base" in finding for finding in caught.value.findings)


def test_weights_that_were_trained_beside_them(tmp_path: Path) -> None:
    """A save of adapters and a module that was trained whole (`modules_to_save`): its values are merged into
    the base; as an adapter it is refused, since they would be lost.
    """
    peft = adapters.of_peft()
    base = plain(tmp_path / "base")
    head = torch.randn(256, 32, generator=torch.Generator().manual_seed(1))
    stored = adapters.as_swift(peft) | {"output_layer.modules_to_save.default.weight": head}
    alone = write_stored(tmp_path / "alone", stored, {**ARGS, **SAID})
    export_here(checkpoint=alone, base=base, output=tmp_path / "merged", lora="merge")
    assert torch.equal(on_disk(tmp_path / "merged")["lm_head.weight"], head[:250])
    with pytest.raises(AccountingError, match="holds trained weights"):
        export_here(checkpoint=alone, reference=base, output=tmp_path / "peft", lora="adapter")


def _bridge_config() -> dict[str, Any]:
    """The config of the decoder as Megatron-Bridge writes it."""
    names = (
        "num_layers",
        "hidden_size",
        "ffn_hidden_size",
        "num_attention_heads",
        "num_query_groups",
        "kv_channels",
    )
    assert CONFIG["rope_theta"] == ARGS["rotary_base"]
    return {name: ARGS[name] for name in names} | {
        "rotary_base": ARGS["rotary_base"],
        "layernorm_epsilon": 1e-5,
    }


SAVES = (
    *("bridge/qwen2/tp1", "bridge/qwen2/tp2pp2", "bridge/qwen3_moe/tp1", "bridge/qwen3_moe/tp2ep2etp1"),
    *("bridge/qwen3_moe/ep2etp2", "canonical/qwen2/tp1", "canonical/qwen2/tp2", "canonical/qwen2/tp4"),
    *("swift/qwen2/tp1", "swift/qwen2/tp2"),
)


@pytest.fixture(scope="session")
def saves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of megatron-core with adapters, by kind, model and layout."""
    root = sharing.of_the_run(tmp_path_factory, "adapters")
    with sharing.alone(root / "launch.lock"):
        if not (root / "written").exists():
            command = torchrun(4, "-m", "tests.fixtures.write_adapters", str(root), *SAVES)
            run_python(command, root / "launch", timeout_s=400).checked()
            (root / "written").touch()
    return root


def merged_from(saves: Path, save: str, base: Path, output: Path, **options: Any) -> Path:
    """The merged model of a save; one of adapters alone with the weights of `base`."""
    if save.startswith("swift"):
        options["base"] = base
    else:
        options["reference"] = base
    export_here(checkpoint=saves / save, output=output, lora="merge", **options)
    return output


@pytest.mark.parametrize("kind", ["bridge/qwen2", "bridge/qwen3_moe", "canonical/qwen2", "swift/qwen2"])
def test_every_layout_gives_the_model_that_megatron_ran(
    kind: str, saves: Path, checkpoint: Checkpoint, reference: Reference, tmp_path: Path
) -> None:
    """What megatron-core has stored from several layouts becomes the same bytes, and the exported model gives
    the logits of Megatron's own model with its adapters.
    """
    name = kind.partition("/")[2]
    base = tmp_path / "base"
    export_here(checkpoint=checkpoint(name, "tp1"), reference=reference(name), output=base)
    found = {
        save: merged_from(saves, save, base, tmp_path / str(number))
        for number, save in enumerate(each for each in SAVES if each.startswith(kind + "/"))
    }
    first, *others = found.values()
    truth = load_file(saves / kind / "tp1" / "logits.safetensors")
    scale = float(truth["logits"].abs().max())
    from transformers import AutoModelForCausalLM

    loader: Any = AutoModelForCausalLM
    model = loader.from_pretrained(first, dtype=torch.float32).eval()
    with torch.no_grad():
        answer = model(truth["input_ids"]).logits
        before = loader.from_pretrained(base, dtype=torch.float32).eval()(truth["input_ids"]).logits
    assert float((answer - truth["logits"]).abs().max()) < 1e-4 * scale
    assert float((before - truth["logits"]).abs().max()) > 0.1 * scale
    for other in others:
        same = weights_of(other)
        assert same == weights_of(first)
    assert pp_export.verify(first).ok


def test_the_same_bytes_from_several_ranks(saves: Path, reference: Reference, tmp_path: Path) -> None:
    """Ranks of an export of their own tensor parallel grid send matrices to whoever merges: the bytes of one
    process; and the adapter alone too.
    """
    whole, moe = saves / "bridge/qwen2/tp2pp2", saves / "bridge/qwen3_moe/ep2etp2"
    for number, (folder, name, lora) in enumerate(((whole, "qwen2", "adapter"), (moe, "qwen3_moe", "merge"))):
        options: dict[str, Any] = {"checkpoint": folder, "reference": reference(name), "lora": lora}
        one, two = tmp_path / f"one-{number}", tmp_path / f"two-{number}"
        export_here(**options, output=one)
        flags = [f"--{key}={value}" for key, value in options.items()]
        grid = ["--tensor-parallel=2", f"--output={two}", "--no-cache"]
        run_python(
            torchrun(2, "-m", "pp_export", "export", *flags, *grid), tmp_path / f"run-{number}"
        ).checked()
        assert files_of(two).keys() == files_of(one).keys()
        assert weights_of(two) == weights_of(one)


def weights_of(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in files_of(folder).items() if name.endswith(".safetensors")}
