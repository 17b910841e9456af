"""Claims: every family's table turns what Megatron stores back into the model that it was made of.

The truth is a model of transformers with random values in every parameter: its own `save_pretrained` says
the names on disk, `tests.fixtures.families` lays its tensors out as Megatron stores them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pp_export.architecture import families
from pp_export.core.errors import AccountingError
from pp_export.core.file_names import SUMS
from pp_export.steps import limits
from tests.fixtures import family_proofs
from tests.fixtures.exports import RememberedDefinition, export_here
from tests.fixtures.families import FAMILIES
from tests.fixtures.index_families import INDEX_FAMILIES
from tests.fixtures.multimodal import MULTIMODAL
from tests.fixtures.processes import run_python, torchrun

Made = Callable[[str], Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """`made(name)`: the folder with a family's model, `reference` and `checkpoint`."""
    root = tmp_path_factory.mktemp("families")

    def find(name: str) -> Path:
        folder = root / name
        if not folder.exists():
            family_proofs.write_model(FAMILIES[name], folder)
        return folder

    return find


@pytest.mark.parametrize("name", FAMILIES)
def test_the_model_comes_back(name: str, made: Made, tmp_path: Path) -> None:
    """Every tensor on disk has the name, type and bytes that transformers gave it, and the loaded model the
    logits.
    """
    assert family_proofs.prove_exported(FAMILIES[name], made(name), tmp_path / "export")["tensors"] > 20


@pytest.fixture(scope="module")
def by_two_ranks(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with every family's model, exported by one rank and by two that share tensors or experts."""
    root = tmp_path_factory.mktemp("ranks")
    jobs: list[dict[str, Any]] = []
    for number, name in enumerate(FAMILIES):
        inputs = {kind: made(name) / kind for kind in ("checkpoint", "reference")}
        export_here(**inputs, output=root / "one" / name, parents=True, max_shard_size="60KB")
        grid = {"tensor_parallel": 2} if number % 2 else {"expert_parallel": 2}
        texts = {kind: str(path) for kind, path in inputs.items()}
        jobs.append({**texts, **grid, "output": str(root / "two" / name), "max_shard_size": "60KB"})
    (root / "two").mkdir()
    RememberedDefinition.write(root / "answers.json")
    (root / "jobs.json").write_text(json.dumps(jobs))
    command = torchrun(2, "-m", "tests.fixtures.many_exports", str(root / "jobs.json"))
    run_python([*command, str(root / "answers.json")], root / "output", timeout_s=400).checked()
    return root


@pytest.mark.parametrize("name", FAMILIES)
def test_two_ranks_write_what_one_does(name: str, by_two_ranks: Path) -> None:
    """Halves of tensors and of experts, in files of a few tensors, come together as the same bytes."""
    sums = [(by_two_ranks / ranks / name / SUMS).read_text() for ranks in ("one", "two")]
    assert sums[0] == sums[1]


@pytest.mark.parametrize(("name", "arg"), [(n, arg) for n, family in FAMILIES.items() for arg in family.lies])
def test_another_function_is_refused(name: str, arg: str, made: Made, tmp_path: Path) -> None:
    """Training args of a function that config.json doesn't say, with the same shapes, stop the export."""
    folder, family = made(name), FAMILIES[name]
    checkpoint = tmp_path / "checkpoint"
    family_proofs.write_checkpoint(family, folder, checkpoint, family.whole_args() | {arg: family.lies[arg]})
    with pytest.raises(AccountingError, match="not the config of this checkpoint"):
        export_here(checkpoint=checkpoint, reference=folder / "reference", output=tmp_path / "export")


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.published])
def test_published_sizes_are_accounted_for(name: str) -> None:
    """For a real member's sizes, the names and shapes that the table makes of Megatron's tensors are those of
    the class, one to one.
    """
    assert family_proofs.prove_published(FAMILIES[name])["parameters"] > 10**8


def test_every_class_has_a_card_of_what_is_proved() -> None:
    """Each class that a table serves is proved by a model at least, by tests that there are; the page says
    what the cards say.
    """
    tests = Path(__file__).parents[3]
    for family in (*families.families(), *families.multimodal()):
        strong = {families.LOGITS, families.REARRANGED, families.INDEX}
        assert strong & {card["proof"] for card in family.proofs}, family
        for card in family.proofs:
            file, _, test = card["test"].partition("::")
            assert f"def {test.partition('[')[0]}(" in (tests / file).read_text()
            assert card.get("model", "") in {"", *FAMILIES, *INDEX_FAMILIES, *MULTIMODAL}
    assert family_proofs.PAGE.read_text() == family_proofs.page()


def test_the_command_tells_classes_tables_and_proofs() -> None:
    """`pp_export families` has a line for each class, as JSON all of its cards."""
    command = [sys.executable, "-m", "pp_export", "families"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    told = json.loads(subprocess.run([*command, "--json"], check=True, capture_output=True).stdout)
    assert told == limits.to_json()
    for family in families.families():
        assert family.hf_class in shown
