"""Claims: norms over all queries and all keys come out of files per rank as they went in, whether a rank has
all of them or those of its own heads.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pp_export.checkpoint.canonical_names import canonical
from pp_export.core.errors import AccountingError
from tests.fixtures import family_proofs
from tests.fixtures.exports import export_here
from tests.fixtures.families import FAMILIES
from tests.fixtures.legacy import Run, write_ranks
from tests.fixtures.releases import transformers_5
from tests.fixtures.stored import on_disk

pytestmark = transformers_5
RUN = Run(layers=[[[0, 1, 2]]], tp=2, experts="te_grouped")


def written(name: str, run: Run, folder: Path) -> Path:
    """A family's model in `folder / model`, its reference, and its checkpoint, which is returned."""
    family = FAMILIES[name]
    family_proofs.write_model(family, folder)
    disk, config = on_disk(folder / "model"), family.whole_config()
    whole: dict[str, torch.Tensor] = {}
    for key, value in family.stored(disk, config).items():
        named = canonical(key)
        parts = value.flatten(0, named.num_stacked - 1) if named.num_stacked else value[None]
        whole |= dict(zip(named.names(tuple(value.shape)), parts, strict=True))
    sizes: dict[str, Any] = {
        "tensor_model_parallel_size": run.tp,
        "pipeline_model_parallel_size": 1,
        "expert_tensor_parallel_size": run.etp,
        "padded_vocab_size": whole["embedding.word_embeddings.weight"].shape[0],
        "num_experts": config.get("num_experts", config.get("num_local_experts")),
        "params_dtype": torch.float32,
    }
    return write_ranks(folder / "iter_0000010", run, family.whole_args() | sizes, whole)


@pytest.mark.parametrize("cut", [True, False])
@pytest.mark.parametrize("name", ["olmo2", "olmo3", "olmoe", "minimax_m2"])
def test_all_rows_of_a_norm_come_back(name: str, cut: bool, tmp_path: Path) -> None:
    """By their number it is known which of the two they are."""
    checkpoint = written(name, replace(RUN, norms_are_cut=cut), tmp_path)
    output = tmp_path / "export"
    export_here(checkpoint=checkpoint, reference=tmp_path / "reference", output=output)
    truth, exported = on_disk(tmp_path / "model"), on_disk(output)
    assert sorted(exported) == sorted(truth)
    assert [key for key in truth if not torch.equal(truth[key], exported[key])] == []


def test_norms_of_one_head_per_rank_are_not_taken_for_parts(tmp_path: Path) -> None:
    """With as many ranks as heads a part looks like a norm of each head: refused in classes with others."""
    checkpoint = written("olmo2", replace(RUN, tp=4, norms_are_cut=True), tmp_path)
    with pytest.raises(AccountingError) as caught:
        export_here(checkpoint=checkpoint, reference=tmp_path / "reference", output=tmp_path / "export")
    assert any("q_norm.weight: the model expects shape [32]" in finding for finding in caught.value.findings)
