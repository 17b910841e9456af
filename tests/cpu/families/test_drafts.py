"""Claims: a first draft of a table proposes only what is right, and says what it leaves open.

Tables that are proved are the truth: of each family the draft must find rows of its table, without it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pp_export.architecture import table_files
from pp_export.architecture.draft import draft
from pp_export.checkpoint.canonical_names import canonical
from pp_export.core.tensors import Shape
from pp_export.reference.definition import define
from tests.fixtures import family_proofs
from tests.fixtures.exports import export_here
from tests.fixtures.families import FAMILIES
from tests.fixtures.stored import on_disk

NAMES = [name for name in FAMILIES if "mtp" not in name]
MEGATRON, LLAMA = "megatron", "llama"
_NUMBERS = re.compile(r"\{\w+\}")


def drafted(name: str, base: str) -> tuple[int, int]:
    """How many kinds of tensors a draft for the family finds rows for, all of them rows of its table, and how
    many it leaves open.
    """
    family = FAMILIES[name]
    config = family.whole_config()
    definition = define(config)
    assert definition is not None
    disk = {key: torch.empty(shape, device="meta") for key, shape in definition.tensors.items()}
    stored: dict[str, Shape] = {}
    for key, value in family_proofs.fused(family.stored(disk, config)).items():
        named, shape = canonical(key), tuple(value.shape)
        stored |= dict.fromkeys(named.names(shape), shape[named.num_stacked :])
    sizes = {
        "num_attention_heads": config["num_attention_heads"],
        "num_query_groups": config["num_key_value_heads"],
        "head_dim": config["head_dim"],
    }
    found = draft(table_files.load(base), stored, definition.tensors, sizes)
    truth = table_files.for_class(family.hf_class)
    for row in found.rows:
        match = truth.match(_NUMBERS.sub("0", row.megatron))
        assert match is not None
        assert match[0].hf == row.hf
        assert match[0].transform.name in row.transforms
    return len(found.rows), len(found.open_megatron)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("base", [MEGATRON, LLAMA])
def test_no_row_is_wrong(name: str, base: str) -> None:
    """Whatever is proposed, on top of nothing or of Llama's table, is in the family's own table; where shapes
    don't tell the order of rows, the right transform is among those named.
    """
    drafted(name, base)


def test_most_rows_are_found() -> None:
    """Without any table to build on, three of four kinds of tensors get a row."""
    found = [drafted(name, MEGATRON) for name in NAMES]
    assert sum(rows for rows, _ in found) > 3 * sum(left for _, left in found)


def command(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    arguments = ["draft-table", str(folder / "checkpoint"), "--reference", str(folder / "reference"), *more]
    return subprocess.run(
        [sys.executable, "-m", "pp_export", *arguments], check=False, capture_output=True, text=True
    )


def test_a_draft_exports_a_class_that_nobody_knows(tmp_path: Path) -> None:
    """Of a class that neither a table nor transformers has, the reference's own weights tell the tensors; the
    table that the command prints makes them all.
    """
    family_proofs.write_model(FAMILIES["arcee"], tmp_path)
    truth = on_disk(tmp_path / "model")
    config = tmp_path / "reference" / "config.json"
    own = json.loads(config.read_text()) | {"architectures": ["NovelForCausalLM"], "model_type": "novel"}
    config.write_text(json.dumps(own))
    refused = command(tmp_path)
    assert refused.returncode == 1
    assert "nothing says which tensors the class has" in refused.stderr
    save_file(
        {key: value.contiguous() for key, value in truth.items()},
        tmp_path / "reference" / "model.safetensors",
    )
    begun = command(tmp_path)
    assert "extends: llama" in begun.stdout
    assert "hf: model.layers.{layer}.mlp.up_proj.weight" in begun.stdout
    made = command(tmp_path, "--extends", "arcee")
    assert "rules: []" in made.stdout
    table = tmp_path / "novel.yaml"
    table.write_text(made.stdout)
    export_here(
        checkpoint=tmp_path / "checkpoint",
        reference=tmp_path / "reference",
        output=tmp_path / "export",
        architecture=str(table),
    )
    exported = on_disk(tmp_path / "export")
    assert exported.keys() == truth.keys()
    assert [key for key in truth if not torch.equal(truth[key], exported[key])] == []


def test_what_shapes_do_not_tell_is_left_to_the_reader(tmp_path: Path) -> None:
    """Queries, keys and values in one tensor: the draft names both orders in which their rows may be."""
    family_proofs.write_model(FAMILIES["phi3"], tmp_path)
    text = command(tmp_path, "--extends", "llama").stdout
    assert "transform: fuse_qkv  # or copy: shapes don't tell" in text
    assert "transform: glu  # or interleave_glu: shapes don't tell" in text
