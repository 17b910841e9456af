"""Claims of `pp_export.steps.limits`: what it says isn't exported of a family is refused, nothing else is."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest

from pp_export.architecture import meaning, table_files
from pp_export.architecture.mtp import Depths, settle_count
from pp_export.checkpoint.canonical_names import canonical
from pp_export.checkpoint.legacy import catalog as legacy
from pp_export.core.errors import AccountingError, CheckpointError
from pp_export.core.settings import Setting
from pp_export.steps import limits
from tests.fixtures import family_proofs
from tests.fixtures.families import FAMILIES
from tests.fixtures.legacy import Run, write_ranks
from tests.fixtures.releases import transformers_5
from tests.fixtures.stored import on_disk

pytestmark = transformers_5


@pytest.mark.parametrize("hf_class", limits.by_class())
def test_mtp_layers_are_refused_where_it_says_so(hf_class: str) -> None:
    """Where it doesn't, the table has a place for the norm of the embedding, which every MTP layer has."""
    architecture = table_files.for_class(hf_class)
    refused = [limit.why for limit in limits.by_class()[hf_class] if limit.kind == limits.MTP]
    if refused:
        with pytest.raises(AccountingError, match=re.escape(refused[0])):
            settle_count("export", Depths(4, (0,), 1), {}, 0, architecture.mtp_refusal)
    else:
        assert settle_count("export", Depths(4, (0,), 1), {}, 0, architecture.mtp_refusal) == 1
    assert (architecture.match("mtp.layers.0.enorm.weight") is None) == bool(refused)


def another(value: Any) -> Any:
    """A value of a setting that isn't this one."""
    if value is None or isinstance(value, (bool, str)):
        return not value if isinstance(value, bool) else "another"
    return value + 1


@pytest.mark.parametrize("hf_class", limits.by_class())
def test_other_values_of_settings_are_refused(hf_class: str) -> None:
    """Each that the class can't say, by the name under which it is told."""
    architecture = table_files.for_class(hf_class)
    told = [limit for limit in limits.by_class()[hf_class] if limit.kind == limits.SETTING]
    assert len(told) > 20
    for limit in told:
        name = limit.what.split()[0]
        value = another(architecture.requires[name].value)
        with pytest.raises(AccountingError) as caught:
            meaning.settle(architecture, {name: Setting(value, {name: value})}, {}, None)
        assert any(finding.startswith(f"{name}: the table") for finding in caught.value.findings), name


@pytest.mark.parametrize("name", FAMILIES)
def test_files_per_rank_are_refused_where_it_says_so(name: str, tmp_path: Path) -> None:
    """Of every small model of a family, the parameters of which are told, and of no other."""
    import torch
    import transformers

    family, config = FAMILIES[name], FAMILIES[name].whole_config()
    model_class: Any = getattr(transformers, family.hf_class)
    model_class(model_class.config_class(**config)).float().save_pretrained(tmp_path / "model")
    disk = on_disk(tmp_path / "model")
    whole: dict[str, torch.Tensor] = {}
    for key, value in family_proofs.fused(family.stored({**disk, **family.further(disk)}, config)).items():
        named = canonical(key)
        parts = value.flatten(0, named.num_stacked - 1) if named.num_stacked else value[None]
        whole |= dict(zip(named.names(tuple(value.shape)), parts, strict=True))
    layers = 1 + max(int(found) for found in re.findall(r"decoder\.layers\.(\d+)", " ".join(whole)))
    pattern = family.whole_args().get("hybrid_layer_pattern", "").partition("/")[0]
    ends = [match.start() - number for number, match in enumerate(re.finditer(r"\|", pattern))]
    stages = [[range(*ends_of)] for ends_of in itertools.pairwise([0, *ends, layers])]
    args = family.whole_args() | {
        "num_layers": layers,
        "num_experts": 1 + max(map(int, re.findall(r"\.experts\.(\d+)", " ".join(whole))), default=-1),
        "untie_embeddings_and_output_weights": "output_layer.weight" in whole,
        "padded_vocab_size": whole["embedding.word_embeddings.weight"].shape[0],
        "params_dtype": torch.float32,
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": len(stages),
    }
    run = Run(layers=stages, experts="te_grouped")
    folder = write_ranks(tmp_path / "iter_0000010", run, args, whole)
    told = [limit.what for limit in limits.by_class()[family.hf_class] if limit.kind == limits.FORMAT]
    begins = [re.sub(r"\\{\w+\\}", r"\\d+", re.escape(what.removeprefix("legacy torch: "))) for what in told]
    if any(re.match(begin, each) for begin in begins for each in whole):
        with pytest.raises(CheckpointError, match="how tensor parallel ranks cut some"):
            legacy.read_catalog(folder)
    else:
        assert set(legacy.read_catalog(folder).specs) == set(whole)
