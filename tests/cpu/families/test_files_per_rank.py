"""Claims: every family comes out of one file per rank as it went in, with tensors and experts cut among
ranks, and norms over all queries and all keys, whether a rank has all of them or those of its own heads.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from pp_export.checkpoint.canonical_names import canonical
from pp_export.core.errors import AccountingError
from pp_export.steps import limits
from tests.fixtures import family_proofs
from tests.fixtures.exports import export_here
from tests.fixtures.families import FAMILIES
from tests.fixtures.legacy import Run, write_ranks
from tests.fixtures.releases import transformers_5
from tests.fixtures.stored import on_disk

pytestmark = transformers_5
NAMES = [
    name
    for name, family in FAMILIES.items()
    # Their sections are cut by tests/cpu/checkpoint/test_sections.py.
    if not {"linear_num_key_heads", "mamba_num_heads"} & family.config.keys()
    and not any(limit.kind == limits.FORMAT for limit in limits.by_class()[family.hf_class])
]
ALL_HEADS = ("olmo2", "olmo3", "olmoe", "minimax_m2")


def written(name: str, folder: Path, *, tp: int = 2, norms_are_cut: bool = False) -> Path:
    """A family's model in `folder / model`, its reference, and its checkpoint, which is returned: `tp` tensor
    parallel ranks, of which two share the experts.
    """
    family = FAMILIES[name]
    family_proofs.write_model(family, folder)
    disk, config = on_disk(folder / "model"), family.whole_config()
    whole: dict[str, torch.Tensor] = {}
    for key, value in family_proofs.fused(family.stored(disk, config)).items():
        named = canonical(key)
        parts = value.flatten(0, named.num_stacked - 1) if named.num_stacked else value[None]
        whole |= dict(zip(named.names(tuple(value.shape)), parts, strict=True))
    experts = {int(number) for number in re.findall(r"\.experts\.(\d+)\.", " ".join(whole))}
    layers = list(range(config["num_hidden_layers"]))
    run = Run(
        layers=[[layers]],
        tp=tp,
        ep=2 if experts else 1,
        experts="te_grouped",
        norms_are_cut=norms_are_cut,
    )
    sizes: dict[str, Any] = {
        "tensor_model_parallel_size": tp,
        "pipeline_model_parallel_size": 1,
        "expert_model_parallel_size": run.ep,
        "expert_tensor_parallel_size": run.etp,
        "num_experts": len(experts) or None,
        "untie_embeddings_and_output_weights": "output_layer.weight" in whole,
        "padded_vocab_size": whole["embedding.word_embeddings.weight"].shape[0],
        "params_dtype": torch.float32,
    }
    return write_ranks(folder / "iter_0000010", run, family.whole_args() | sizes, whole)


@pytest.mark.parametrize(
    ("name", "cut"), [*((name, False) for name in NAMES), *((name, True) for name in ALL_HEADS)]
)
def test_the_model_comes_back(name: str, cut: bool, tmp_path: Path) -> None:
    """Every tensor has the bytes that it had before it was cut. By the number of its rows it is known whether
    a norm was.
    """
    checkpoint = written(name, tmp_path, norms_are_cut=cut)
    output = tmp_path / "export"
    export_here(checkpoint=checkpoint, reference=tmp_path / "reference", output=output)
    truth, exported = on_disk(tmp_path / "model"), on_disk(output)
    assert sorted(exported) == sorted(truth)
    assert [key for key in truth if not torch.equal(truth[key], exported[key])] == []


def test_norms_of_one_head_per_rank_are_not_taken_for_parts(tmp_path: Path) -> None:
    """With as many ranks as heads a part looks like a norm of each head: refused in classes with others."""
    checkpoint = written("olmo2", tmp_path, tp=4, norms_are_cut=True)
    with pytest.raises(AccountingError) as caught:
        export_here(checkpoint=checkpoint, reference=tmp_path / "reference", output=tmp_path / "export")
    assert any("q_norm.weight: the model expects shape [32]" in finding for finding in caught.value.findings)
