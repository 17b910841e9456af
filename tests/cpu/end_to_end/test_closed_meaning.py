"""Claims of whole exports: the folder answers as the model that was trained, or is refused with what differs.

megatron-core computes what was trained, transformers what the folder says.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from pp_export.core.errors import AccountingError, ReferenceFolderError, VerificationError
from tests.fixtures.decoders import CONFIG, HEAD_DIM, LLAMA3, VOCAB, decoder, write_pair
from tests.fixtures.exports import export_here
from tests.fixtures.releases import transformers_5

CORRECT = {"config_from": "checkpoint"}
NEW_TOKENS = tuple(f"<new{number}>" for number in range(4))


def config_of(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return value


def loaded(folder: Path) -> Any:
    import transformers

    loader: Any = transformers.AutoModelForCausalLM
    return loader.from_pretrained(folder)


def megatron_frequencies(**settings: Any) -> torch.Tensor:
    """The inverse frequencies of megatron-core's own rotary embedding."""
    module: Any = pytest.importorskip("megatron.core.models.common.embeddings.rotary_pos_embedding")
    embedding = module.RotaryEmbedding(
        HEAD_DIM, 1.0, rotary_base=500_000, use_cpu_initialization=True, **settings
    )
    positions = embedding.get_freqs_non_repeated(2)[1]
    assert isinstance(positions, torch.Tensor)
    return positions


@pytest.mark.parametrize(
    ("trained", "scaling", "own"),
    [
        (
            {"use_rope_scaling": True, "rope_scaling_factor": 8.0},
            LLAMA3,
            {"rope_scaling": True, "rope_scaling_factor": 8.0},
        ),
        (
            {"rotary_seq_len_interpolation_factor": 4},
            {"rope_type": "linear", "factor": 4.0},
            {"seq_len_interpolation_factor": 4},
        ),
    ],
)
def test_positions_rotate_as_they_were_trained(
    tmp_path: Path, trained: dict[str, Any], scaling: dict[str, Any], own: dict[str, Any]
) -> None:
    """A run with scaled RoPE is refused beside a config.json without it, and corrected on demand; then, and
    beside the right config.json, transformers rotates by the frequencies of megatron-core.
    """
    with pytest.raises(AccountingError, match="not the config") as refused:
        export_here(**write_pair(tmp_path / "refused", trained))
    assert "rope_scaling" in refused.value.findings[0]
    truth = megatron_frequencies(**own)
    corrected = export_here(**write_pair(tmp_path / "corrected", trained), **CORRECT)
    right = export_here(**write_pair(tmp_path / "right", trained, {"rope_scaling": scaling}))
    for report in (corrected, right):
        rotary = loaded(Path(report.output)).model.rotary_emb
        torch.testing.assert_close(rotary.inv_freq.float(), truth, rtol=1e-6, atol=0)
    assert any("rope_scaling" in sentence for sentence in corrected.config_corrections)
    assert not any("rope_scaling" in sentence for sentence in right.config_corrections)


@pytest.mark.parametrize(("mscale", "all_dim"), [(None, None), (1.0, 0.0), (0.707, 0.0), (1.0, 1.0)])
def test_yarn_is_that_of_megatron(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mscale: float | None, all_dim: float | None
) -> None:
    """YaRN's frequencies and its attention factor come out as megatron-core computes them, whichever way
    its scales are given.
    """
    module: Any = pytest.importorskip("megatron.core.models.common.embeddings.yarn_rotary_pos_embedding")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: "cpu")
    trained = {
        "position_embedding_type": "yarn",
        "rotary_scaling_factor": 4.0,
        "yarn_original_max_position_embeddings": 64,
        "yarn_mscale": mscale,
        "yarn_mscale_all_dim": all_dim,
    }
    report = export_here(**write_pair(tmp_path, trained), **CORRECT)
    embedding = module.YarnRotaryEmbedding(
        HEAD_DIM,
        rotary_base=500_000,
        scaling_factor=4.0,
        original_max_position_embeddings=64,
        mscale=mscale,
        mscale_all_dim=all_dim,
        use_cpu_initialization=True,
    )
    truth, factor = embedding.forward(16)
    rotary = loaded(Path(report.output)).model.rotary_emb
    cos, _ = rotary(torch.zeros(1, 16, HEAD_DIM), torch.arange(16)[None])
    torch.testing.assert_close(cos[0], truth[:, 0, 0].cos() * factor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pre_softmax", [True, False])
def test_experts_are_weighted_as_they_were_trained(tmp_path: Path, pre_softmax: bool) -> None:
    """However the router was trained, the corrected norm_topk_prob gives megatron-core's weights, and the
    other one is refused.
    """
    moe: Any = pytest.importorskip("megatron.core.transformer.moe.moe_utils")
    wrong = {"norm_topk_prob": pre_softmax}
    trained = {"moe_router_pre_softmax": pre_softmax}
    with pytest.raises(AccountingError) as refused:
        export_here(**write_pair(tmp_path / "refused", trained, wrong, experts=True))
    assert refused.value.findings[0].startswith("normalized_topk: ")
    report = export_here(**write_pair(tmp_path / "corrected", trained, wrong, experts=True), **CORRECT)
    assert config_of(Path(report.output))["norm_topk_prob"] is not pre_softmax
    model = loaded(Path(report.output))
    hidden = torch.randn(5, model.config.hidden_size, generator=torch.Generator().manual_seed(1))
    router = model.model.layers[0].mlp.gate
    logits = torch.nn.functional.linear(hidden, router.weight)
    truth, chosen = moe.topk_routing_with_score_function(logits, 2, use_pre_softmax=pre_softmax)
    weights = logits.softmax(-1).masked_fill(~chosen, 0)
    if model.config.norm_topk_prob:
        weights = weights / weights.sum(-1, keepdim=True)
    torch.testing.assert_close(weights, truth)


@pytest.mark.parametrize(
    ("key", "read", "trained"),
    [
        ("rope_theta", lambda config: config.rope_parameters["rope_theta"], 500_000.0),
        ("rms_norm_eps", lambda config: config.rms_norm_eps, 1e-5),
    ],
)
@transformers_5
def test_what_config_json_leaves_to_the_class(tmp_path: Path, key: str, read: Any, trained: float) -> None:
    """A key that config.json lacks has the class's default, which is refused where it isn't what was
    trained, and written otherwise.
    """
    import transformers

    with pytest.raises(AccountingError) as refused:
        export_here(**write_pair(tmp_path / "refused", config={key: None}))
    assert "(by default)" in refused.value.findings[0]
    report = export_here(**write_pair(tmp_path / "corrected", config={key: None}), **CORRECT)
    assert config_of(Path(report.output))[key] == trained
    config_class: Any = transformers.AutoConfig
    assert read(config_class.from_pretrained(report.output)) == trained


def test_new_spellings_are_written_in_the_old_way_too(tmp_path: Path) -> None:
    """A reference by release 5 of transformers says its base, type and experts in words that older loaders
    ignore; the export says them in both, each added key is listed, and whatever release is installed here
    takes the trained values.
    """
    new = {
        "rope_theta": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
        "torch_dtype": None,
        "dtype": "float32",
        "num_experts": None,
        "num_local_experts": 8,
    }
    report = export_here(**write_pair(tmp_path, config=new, experts=True))
    config = config_of(Path(report.output))
    assert (config["rope_theta"], config["num_experts"], config["torch_dtype"]) == (500_000.0, 8, "float32")
    added = " ".join((*report.config_additions, *report.config_corrections))
    assert all(key in added for key in ("rope_theta", "num_experts", "torch_dtype"))
    model = loaded(Path(report.output))
    truth = 500_000.0 ** -(torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    torch.testing.assert_close(model.model.rotary_emb.inv_freq.float(), truth)


def test_config_json_stays_byte_for_byte_where_it_is_asked_to(tmp_path: Path) -> None:
    """With config_as_reference the file is the reference's own; where something of it would be untrue, the
    export is refused and says what.
    """
    asked = write_pair(tmp_path / "right")
    export_here(**asked, config_as_reference=True)
    own = (asked["reference"] / "config.json").read_bytes()
    assert (asked["output"] / "config.json").read_bytes() == own
    with pytest.raises(ReferenceFolderError, match="can't stay") as refused:
        export_here(
            **write_pair(tmp_path / "wrong"), config_as_reference=True, dtype="bfloat16", vocab_size=251
        )
    assert len(refused.value.findings) == 2
    twice = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}
    with pytest.raises(ReferenceFolderError, match="can't stay"):
        export_here(**write_pair(tmp_path / "twice", config=twice), config_as_reference=True)


@pytest.mark.parametrize(
    ("args", "added"),
    [({}, NEW_TOKENS), ({"vocab_size": VOCAB + 4}, ())],
    ids=["tokenizer", "args"],
)
def test_tokens_that_were_added_are_not_cut(
    tmp_path: Path, args: dict[str, Any], added: tuple[str, ...]
) -> None:
    """Tokens that only the tokenizer or the args know of are rows of the model: refused with all numbers,
    exported with the flag.
    """
    with pytest.raises(AccountingError, match="would be cut off") as refused:
        export_here(**write_pair(tmp_path / "refused", args, added=added))
    assert "config.json's vocab_size: 250" in refused.value.findings
    report = export_here(**write_pair(tmp_path / "asked", args, added=added), vocab_size=VOCAB + 4)
    index = json.loads((Path(report.output) / "model.safetensors.index.json").read_text())["weight_map"]
    name = "model.embed_tokens.weight"
    with safe_open(Path(report.output) / index[name], framework="pt") as file:
        rows = file.get_tensor(name)
    assert torch.equal(rows, decoder()["embedding.word_embeddings.weight"][: VOCAB + 4])
    assert config_of(Path(report.output))["vocab_size"] == VOCAB + 4


@pytest.mark.parametrize("vocab_size", [384, 380])
def test_a_stated_padding_counts(tmp_path: Path, vocab_size: int) -> None:
    """ms-swift pads to 128 whatever TP is: rows that the args state explain a size that Megatron's own
    padding doesn't.
    """
    args = {"tensor_model_parallel_size": 2, "padded_vocab_size": 384}
    pair = write_pair(
        tmp_path, args, {"vocab_size": vocab_size}, tensors=decoder(rows=384), tokens=vocab_size
    )
    assert export_here(**pair).vocab_size == vocab_size


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float8_e4m3fn])
def test_raw_quantized_weights_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    """Bytes of a quantized run where weights belong are refused, naming every tensor and its type."""
    tensors = decoder()
    for name in tensors:
        if name.endswith("linear_proj.weight"):
            tensors[name] = (tensors[name] * 100).to(dtype)
    with pytest.raises(AccountingError) as refused:
        export_here(**write_pair(tmp_path, tensors=tensors))
    wanted = str(dtype).removeprefix("torch.")
    assert [finding.split(",")[0] for finding in refused.value.findings] == [
        f"model.layers.{layer}.self_attn.o_proj.weight is {wanted}" for layer in range(2)
    ]


def test_values_that_are_no_numbers_are_counted(tmp_path: Path) -> None:
    """NaNs and infinities are exported bit by bit, counted per tensor and told, and refused on demand; the
    target is then not there.
    """
    tensors = decoder()
    tensors["decoder.final_layernorm.weight"][3] = float("nan")
    tensors["decoder.layers.mlp.linear_fc2.weight"][1, :2, 5] = float("inf")
    report = export_here(**write_pair(tmp_path / "told", tensors=tensors))
    counts = {"model.layers.1.mlp.down_proj.weight": 2, "model.norm.weight": 1}
    assert dict(report.not_finite) == counts
    manifest = json.loads((Path(report.output) / "export_manifest.json").read_text())
    assert {k: v for shard in manifest["shards"] for k, v in shard["not_finite"].items()} == counts
    asked = write_pair(tmp_path / "refused", tensors=tensors)
    with pytest.raises(VerificationError, match="NaN or infinity") as refused:
        export_here(**asked, require_finite=True)
    assert len(refused.value.findings) == 2
    assert not asked["output"].exists()


def test_what_could_not_be_checked_is_reported(tmp_path: Path) -> None:
    """Settings of which the args say nothing, and args that no table knows, are in the report; neither
    refuses an export.
    """
    args = {"norm_epsilon": None, "swiglu": None, "trick_of_a_fork": True}
    report = export_here(**write_pair(tmp_path, args))
    assert {"norm_epsilon", "activation"} <= set(report.settings_unchecked)
    assert report.args_unknown == ("trick_of_a_fork",)
    assert report.settings["rotary_base"] == 500_000


def canaries(value: str) -> dict[str, Any]:
    """A text that must not be published in every arg that may be text, nested ones too."""
    free = ("data_path", "save", "load", "tensorboard_dir", "wandb_exp_name", "tokenizer_model", "spec")
    more: dict[str, Any] = {
        "blend": [value, {"a": value}],
        "hostname": value,
        "moe_router_load_balancing_type": value,
    }
    more |= {"moe_router_score_function": value, "use_rotary_position_embeddings": True}
    more |= {"position_embedding_type": value, f"{value}_parallel_size": 5, "yarn_beta_fast": float("nan")}
    return {**dict.fromkeys(free, value), **more, "heterogeneous_layers_config_path": None}


@pytest.mark.parametrize("level", ["model", "none", "full"])
def test_the_manifest_tells_no_secret_of_the_run(tmp_path: Path, level: str) -> None:
    """What is published names the model, its layout and folders, and neither paths nor free text, unless all
    is asked for; the report on the user's own disk has all.
    """
    secret = "canary-5f3a"
    folder = tmp_path / secret
    pair = write_pair(folder, canaries(secret), {"_name_or_path": f"/home/{secret}/model"})
    report = export_here(**pair, provenance=level)
    published = {path: path.read_bytes() for path in Path(report.output).rglob("*") if path.is_file()}
    holding = {path.name for path, data in published.items() if secret.encode() in data}
    assert holding == ({"export_manifest.json"} if level == "full" else set())
    assert report.args is not None
    assert report.args["data_path"] == secret
    manifest = json.loads((Path(report.output) / "export_manifest.json").read_text())["provenance"]
    if level == "model":
        assert manifest["checkpoint"] == "checkpoint"
        assert manifest["args"]["num_layers"] == 2
        assert manifest["args"]["normalization"] == "RMSNorm"
        assert manifest["args"]["tensor_model_parallel_size"] == 1
        assert "seq_length" in manifest["args"]
    else:
        assert (manifest["args"] is None) == (level == "none")


def test_a_config_without_training_args_is_exported_and_told(tmp_path: Path) -> None:
    """Nothing can be compared without training args; the folder is as the reference says, and that is
    told.
    """
    pair = write_pair(tmp_path)
    torch.save({"iteration": 10}, pair["checkpoint"] / "common.pt")
    report = export_here(**pair)
    assert any("no training args" in note for note in report.notes)
    assert config_of(Path(report.output))["rope_theta"] == CONFIG["rope_theta"]
