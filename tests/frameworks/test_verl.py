"""Claims: verl's own checkpoint manager, from the package index, saves through our bridge what its page says.

`make test-frameworks` installs verl and runs this; see `requirements.txt`.
"""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest

from pp_export.core import file_names
from pp_export.verification import verify_folder
from tests.fixtures.exports import RememberedDefinition, export_here, files_of
from tests.fixtures.processes import ROOT, started, torchrun
from tests.fixtures.reference import write_reference
from tests.fixtures.verl_itself import CASES

pytestmark = pytest.mark.skipif(importlib.util.find_spec("verl") is None, reason="verl is not installed")
WITH_WEIGHTS = [
    case for case, (contents, is_sharded, _) in CASES.items() if "hf_model" in contents or not is_sharded
]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks save every case of `CASES`; `reference` is the model's folder."""
    out = tmp_path_factory.mktemp("verl")
    write_reference("qwen2", out / "reference")
    RememberedDefinition.write(out / "answers.json")
    command = torchrun(2, "-m", "tests.fixtures.verl_itself", str(out / "reference"), str(out))
    paths = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    with started(command, out / "printed", env={"PYTHONPATH": paths}) as running:
        running.wait(240).checked()
    return out


def weights_of(folder: Path) -> dict[str, bytes]:
    return {
        n: data for n, data in files_of(folder).items() if n.endswith(".safetensors") or n == file_names.INDEX
    }


def test_weights_are_written_once_where_the_page_says(out: Path) -> None:
    """One call of the bridge for each save that asks for Hugging Face weights, also when two contents do."""
    assert json.loads((out / "calls.json").read_text()) == dict.fromkeys(WITH_WEIGHTS, 1)
    for case, (_, is_sharded, _) in CASES.items():
        folder = out / case / "model"
        assert bool(weights_of(folder / "huggingface")) == (case in WITH_WEIGHTS)
        assert (folder / "dist_ckpt" / ".metadata").exists() == is_sharded
        assert (out / case / "ckpt_contents.json").exists()


@pytest.mark.parametrize("case", WITH_WEIGHTS)
def test_the_folder_is_whole(out: Path, case: str) -> None:
    """Weights lie beside verl's own config and tokenizer, which stay as verl wrote them, and verify."""
    folder = out / case / "model" / "huggingface"
    assert {"config.json", "tokenizer_config.json"} <= set(files_of(folder))
    result = verify_folder(folder)
    assert result.ok
    assert any("not covered" in note for note in result.notes)


def test_the_shards_that_verl_saves_export_to_the_same_bytes(out: Path) -> None:
    """verl's sharded model, exported offline, has the weights that the bridge wrote from memory in the
    same save.
    """
    saved = out / "both-sharded" / "model"
    output = out / "offline"
    export_here(checkpoint=saved / "dist_ckpt", reference=out / "reference", output=output)
    truth = weights_of(saved / "huggingface")
    assert len(truth) > 2
    assert weights_of(output) == truth
    assert all(weights_of(out / case / "model" / "huggingface") == truth for case in WITH_WEIGHTS)
