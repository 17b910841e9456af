"""Claims of `pp_export.architecture.recognition`: a checkpoint that no table could be for is told by its
names, and one that a table is for never is.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml

from pp_export.architecture import table_files
from pp_export.architecture.recognition import check_names
from pp_export.core.dtypes import from_torch
from pp_export.core.errors import AccountingError
from pp_export.core.tensors import TensorSpec
from tests.fixtures.catalogs import ToyDecoder

TOYS = {"dense": ToyDecoder(), "moe": ToyDecoder(num_layers=2, num_experts=4)}
NAMES = list(TOYS["dense"].specs())
HF = [
    *("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"),
    *(f"model.layers.{i}.self_attn.{part}_proj.weight" for i in range(2) for part in "qkvo"),
    *(f"model.layers.{i}.mlp.{part}_proj.weight" for i in range(2) for part in ("gate", "up", "down")),
]


def check(names: Iterable[str], table: str = "llama") -> None:
    check_names(table_files.load(table), {name: TensorSpec((2, 3), from_torch("bfloat16")) for name in names})


def refused(names: Iterable[str], words: str, table: str = "llama") -> AccountingError:
    with pytest.raises(AccountingError, match=words) as caught:
        check(names, table)
    assert caught.value.where == {"architecture": table}
    assert "decoder.layers.0." in str(caught.value.expected)
    assert caught.value.advice
    return caught.value


@pytest.mark.parametrize("toy", TOYS.values(), ids=list(TOYS))
def test_what_the_table_is_for_passes(toy: ToyDecoder) -> None:
    """A model of the table passes, whole or in part, and with single tensors that nobody knows."""
    names = list(toy.specs())
    check(names, toy.table)
    check([name for name in names if ".layers.1." in name], toy.table)
    check([*names, "model.layers.0.self_attn.q_proj.weight", "policy.output_layer.weight"], toy.table)


@pytest.mark.parametrize(
    "names",
    [["decoder.layers.0.mixer.in_proj.weight"], ["mtp.layers.0.enorm.weight"], ["decoder.layers.3.x"]],
)
def test_layers_that_no_row_takes_are_left_to_accounting(names: list[str]) -> None:
    """Layers under Megatron's names pass also where no row of the table fits: accounting lists them all."""
    check(names)


@pytest.mark.parametrize("prefix", ["", "model.", "app.model.", "_orig_mod."])
def test_hugging_face_names_are_told(prefix: str) -> None:
    """A torch DCP checkpoint with the names that an export would make, prefixed or not, is named as that."""
    error = refused([prefix + name for name in HF], "already have Hugging Face names")
    assert f"of {len(HF)} tensors" in str(error.got)
    assert ".layers.0." in str(error.got)
    assert "pp_export consolidate" in str(error.advice)
    assert "vocab" not in str(error)
    assert error.findings[-1] == f"and {int(str(error.got).split('(')[1].split()[0]) - 5} more"


@pytest.mark.parametrize(
    "name",
    [
        *("transformer.h.3.attn.c_attn.weight", "gpt_neox.layers.0.attention.dense.weight", "lm_head.weight"),
        *("model.layers.0.block_sparse_moe.gate.weight", "model.layers.2.mlp.experts.3.up_proj.weight"),
        *(
            "model.language_model.layers.0.self_attn.q_proj.weight",
            "decoder.layers.0.self_attn.q_proj.weight",
        ),
        *("model.norm.weight", "h.0.ln_1.weight"),
    ],
)
def test_models_of_other_classes_are_hugging_face_s_too(name: str) -> None:
    """Names of classes that the table does not serve, and such without a layer, are known."""
    refused([name], "already have Hugging Face names")


def test_a_table_of_one_s_own_says_what_is_known(tmp_path: Path) -> None:
    """What the table itself makes of tensors counts as Hugging Face names; what it takes never does."""
    own = {
        "extends": "llama",
        "rules": [
            {"megatron": "decoder.layers.{layer}.odd.weight", "hf": "tower.{layer}.odd.weight"},
            {
                "megatron": "model.layers.{layer}.self_attn.odd.weight",
                "hf": "tower.{layer}.even.weight",
                "unit": "layer {layer}",
            },
        ],
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))
    table = str(tmp_path / "own.yaml")
    architecture = table_files.load(table)
    spec = TensorSpec((2,), from_torch("float32"))
    with pytest.raises(AccountingError, match="already have Hugging Face names"):
        check_names(architecture, {"tower.7.odd.weight": spec})
    check_names(architecture, {"model.layers.0.self_attn.odd.weight": spec})


@pytest.mark.parametrize("prefix", ["policy.", "actor.module.", "language_model.", "actor-1."])
def test_an_unknown_prefix_is_told(prefix: str) -> None:
    """What stands before Megatron's names is said, with a name."""
    error = refused([prefix + name for name in NAMES], "begin with something unknown")
    assert repr(prefix) in error.what
    assert f"{prefix}embedding.word_embeddings.weight" in str(error.got)


def test_all_prefixes_are_told() -> None:
    """Several models in one checkpoint are all named."""
    error = refused([f"{of}.{name}" for of in ("actor", "critic") for name in NAMES], "'actor.', 'critic.'")
    assert "critic.embedding" in str(error.got)


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["embedding.word_embeddings.weight", "output_layer.weight"],
        ["value_head.weight"],
        ["optim.state.3.exp_avg"],
        ["decoder.final_layernorm.weight"],
    ],
)
def test_no_layers_are_told(names: list[str]) -> None:
    """An embedding, a critic's head or nothing at all is no language model."""
    error = refused(names, "has no decoder layers")
    assert str(error.got) == (", ".join(names) or "no tensors of a model")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("language_model.encoder.layers.0.input_norm.weight", "before megatron-core"),
        ("language_model.transformer.layers.0.input_layernorm.weight", "before megatron-core"),
        ("transformer.layers.0.attention.query_key_value.weight", "before megatron-core"),
        ("model.encoder.layers.0.self_attention.dense.weight", "before megatron-core"),
        ("layers.0.attention.wq.weight", "torchtitan"),
        ("tok_embeddings.weight", "torchtitan"),
        ("model.layers.0.feed_forward.w1.weight", "torchtitan"),
        ("encoder.layers.0.self_attention.linear_qkv.weight", "an encoder of megatron-core"),
        ("transformer.layers.3.ff.weight", "another framework"),
        ("transformer.blocks.3.ffn.up_proj.weight", "another framework"),
        ("sequential.3.attention.weight", "another framework"),
    ],
)
def test_other_frameworks_are_told(name: str, words: str) -> None:
    """Names of Megatron-LM before megatron-core and of other frameworks are known for what they are."""
    error = refused(["embedding.word_embeddings.weight", name], words)
    assert str(error.got).startswith(name)
    assert error.findings == (name,)
