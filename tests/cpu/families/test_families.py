"""Claims: every family's table turns what Megatron stores back into the model that it was made of.

The truth is a model of transformers with random values in every parameter: its own `save_pretrained` says
the names on disk, `tests.fixtures.families` lays its tensors out as Megatron stores them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pp_export.architecture import accounting, table_files
from pp_export.architecture.sizes import model_sizes
from pp_export.checkpoint.canonical_names import canonical
from pp_export.core import dtypes
from pp_export.core.errors import AccountingError
from pp_export.core.tensors import TensorSpec
from pp_export.reference.definition import define
from tests.fixtures.exports import export_here
from tests.fixtures.families import FAMILIES
from tests.fixtures.family_parts import Family
from tests.fixtures.stored import write_stored


def random_model(family: Family) -> Any:
    """A model of the family's class with random values in every parameter and buffer on disk."""
    import transformers

    model_class: Any = getattr(transformers, family.hf_class)
    model = model_class(model_class.config_class(**family.whole_config())).float().eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                scale = value.shape[-1] ** -0.5 if value.dim() > 1 else 0.2
                random = torch.randn(value.shape, generator=generator) * scale
                value.copy_(random if value.dim() > 1 else random + 1)
    return model


def on_disk(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`made(name)`: the folder with a family's model, `reference` and `checkpoint`."""
    root = tmp_path_factory.mktemp("families")

    def find(name: str) -> Path:
        folder, family = root / name, FAMILIES[name]
        if not folder.exists():
            random_model(family).save_pretrained(folder / "model")
            reference = folder / "reference"
            reference.mkdir()
            config = json.loads((folder / "model" / "config.json").read_text())
            (reference / "config.json").write_text(json.dumps(config))
            disk = on_disk(folder / "model")
            write_stored(
                folder / "checkpoint",
                {
                    key: value.contiguous()
                    for key, value in family.stored(disk, family.whole_config()).items()
                },
                family.whole_args(),
            )
        return folder

    return find


@pytest.mark.parametrize("name", FAMILIES)
def test_the_model_comes_back(name: str, made: Any, tmp_path: Path) -> None:
    """Every tensor on disk has the name, type and bytes that transformers gave it, and the loaded model the
    logits.
    """
    from transformers import AutoModelForCausalLM

    folder, family = made(name), FAMILIES[name]
    output = tmp_path / "export"
    export_here(checkpoint=folder / "checkpoint", reference=folder / "reference", output=output)
    truth, exported = on_disk(folder / "model"), on_disk(output)
    assert sorted(exported) == sorted(truth)
    assert [key for key in truth if not torch.equal(truth[key], exported[key])] == []
    loader: Any = AutoModelForCausalLM
    model, info = loader.from_pretrained(output, dtype=torch.float32, output_loading_info=True)
    assert type(model).__name__ == family.hf_class
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(model.eval()(ids).logits, random_model(family)(ids).logits)


@pytest.mark.parametrize(("name", "arg"), [(n, arg) for n, family in FAMILIES.items() for arg in family.lies])
def test_another_function_is_refused(name: str, arg: str, made: Any, tmp_path: Path) -> None:
    """Training args of a function that config.json doesn't say, with the same shapes, stop the export."""
    folder, family = made(name), FAMILIES[name]
    disk = on_disk(folder / "model")
    args = family.whole_args() | {arg: family.lies[arg]}
    checkpoint = tmp_path / "checkpoint"
    write_stored(checkpoint, family.stored(disk, family.whole_config()), args)
    with pytest.raises(AccountingError, match="not the config of this checkpoint"):
        export_here(checkpoint=checkpoint, reference=folder / "reference", output=tmp_path / "export")


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.published])
def test_published_sizes_are_accounted_for(name: str) -> None:
    """For a real member's sizes, the names and shapes that the table makes of Megatron's tensors are those of
    the class, one to one.
    """
    family = FAMILIES[name]
    config = family.published_config()
    definition = define(config)
    assert definition is not None
    disk = {key: torch.empty(shape, device="meta") for key, shape in definition.tensors.items()}
    specs: dict[str, TensorSpec] = {}
    for key, value in family.stored(disk, config).items():
        named = canonical(key)
        shape = tuple(value.shape)
        spec = TensorSpec(shape[named.num_stacked :], dtypes.from_torch("bfloat16"))
        specs |= dict.fromkeys(named.names(shape), spec)
    architecture = table_files.for_class(family.hf_class)
    settings = {
        "num_attention_heads": config["num_attention_heads"],
        "num_query_groups": config["num_key_value_heads"],
        "head_dim": config["head_dim"],
    }
    rows = -(-config["vocab_size"] // 128) * 128
    sizes = model_sizes(
        architecture, settings, source="test", vocab_size=config["vocab_size"], padded_vocab_size=rows
    )
    found = accounting.account(
        architecture,
        specs,
        sizes,
        expected=definition.tensors,
        truth=accounting.DEFINITION,
        dtype=None,
        drop_mtp=False,
    )
    assert {key: spec.shape for key, spec in found.outputs.items()} == dict(definition.tensors)
