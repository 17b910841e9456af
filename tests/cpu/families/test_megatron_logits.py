"""Claims: the training args of a family and its config.json mean the same function, in megatron-core itself,
and its model has the tensors that the table is for.

Only families whose layers megatron-core has without Transformer Engine and without a spec of a framework.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pp_export.architecture import table_files
from tests.fixtures.families import FAMILIES
from tests.fixtures.family_logits import IDS
from tests.fixtures.family_proofs import OTHER_LOGITS, random_model
from tests.fixtures.processes import run_python
from tests.fixtures.stored import on_disk

NAMES = OTHER_LOGITS
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with megatron-core's logits, all computed by one process."""
    pytest.importorskip("megatron.core")
    folder = tmp_path_factory.mktemp("logits")
    for name in NAMES:
        family = FAMILIES[name]
        random_model(family).save_pretrained(folder / name)
        stored = family.stored(on_disk(folder / name), family.whole_config())
        save_file({key: value.contiguous() for key, value in stored.items()}, folder / f"{name}.safetensors")
    run_python(
        ["-m", "tests.fixtures.family_logits", str(folder), *NAMES], folder / "output", timeout_s=300
    ).checked()
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_megatron_answers_as_the_class(name: str, answers: Path) -> None:
    """The stored tensors and training args give in megatron-core the logits of the class of transformers."""
    with torch.no_grad():
        truth = random_model(FAMILIES[name])(IDS).logits
    answer = load_file(answers / f"{name}.logits.safetensors")["logits"]
    assert (answer - truth).abs().max() < TOLERANCE * truth.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_megatron_stores_what_the_table_takes(name: str, answers: Path) -> None:
    """Every tensor that megatron-core's own model would store has a row, and together they make those of the
    class.
    """
    shapes = json.loads((answers / f"{name}.shapes.json").read_text())
    architecture = table_files.for_class(FAMILIES[name].hf_class)
    made: set[str] = set()
    for tensor in shapes:
        match = architecture.match(tensor)
        assert match is not None, tensor
        rule, numbers = match
        made |= {pattern.format(**numbers) for pattern in rule.hf.values()}
    assert made == set(on_disk(answers / name))
