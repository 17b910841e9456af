"""Claims of `export --layout`: the same tensors, in the files that were asked for, by any ranks."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

import pp_export
from pp_export.core import file_names
from pp_export.core.errors import OptionError
from tests.cpu.conftest import Checkpoint, Reference
from tests.fixtures.exports import export_here, files_of
from tests.fixtures.processes import run_python, torchrun
from tests.fixtures.write_rank_shards import tensors_of

Options = dict[str, Any]


@pytest.fixture(scope="module")
def by_layer(
    checkpoint: Checkpoint, reference: Reference, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Options, Path]:
    """The options of an export, and what it makes by default."""
    output = tmp_path_factory.mktemp("by_layer") / "out"
    options: Options = {"checkpoint": checkpoint("qwen2", "tp2pp2"), "reference": reference("qwen2")}
    export_here(**options, output=output)
    return options, output


def weights(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in files_of(folder).items() if name != file_names.MANIFEST}


def by_ranks(options: Options, output: Path, *flags: str) -> Path:
    """The same by three ranks that exchange."""
    words = [f"--{name}={value}" for name, value in options.items()]
    command = torchrun(3, "-m", "pp_export", "export", *words, f"--output={output}", *flags)
    run_python(command, output.with_name("log"), timeout_s=120).checked()
    return output


def test_a_layer_has_a_file_by_default(by_layer: tuple[Options, Path], tmp_path: Path) -> None:
    """`auto` is `layers`: nobody's folder changes."""
    options, output = by_layer
    export_here(**options, output=tmp_path / "out", layout="layers")
    assert weights(tmp_path / "out") == weights(output)


def test_layers_are_merged_up_to_the_size(by_layer: tuple[Options, Path], tmp_path: Path) -> None:
    """By size: fewer files, the same tensors, the same bytes by ranks that read other parts; one that fits is
    model.safetensors.
    """
    options, output = by_layer
    asked = {**options, "layout": "size", "max_shard_size": "300KB"}
    report = export_here(**asked, output=tmp_path / "one")
    true = tensors_of(output)
    assert 1 < report.num_files < len(list(output.glob("*.safetensors")))
    made = tensors_of(tmp_path / "one")
    assert made.keys() == true.keys()
    assert all(torch.equal(made[name], true[name]) for name in true)
    assert weights(by_ranks(options, tmp_path / "three", "--layout=size", "--max-shard-size=300KB",
                            "--pipeline-parallel=3")) == weights(tmp_path / "one")  # fmt: skip
    export_here(**options, layout="size", output=tmp_path / "single")
    assert [path.name for path in (tmp_path / "single").glob("*.safetensors")] == ["model.safetensors"]
    assert pp_export.verify(tmp_path / "single").ok


def test_files_are_those_of_the_reference(by_layer: tuple[Options, Path], tmp_path: Path) -> None:
    """Even where tensors of one Megatron tensor are in different files, and a file has parts of all layers;
    by any ranks the same bytes.
    """
    options, output = by_layer
    folder = tmp_path / "reference"
    shutil.copytree(options["reference"], folder)
    true = tensors_of(output)
    homes: defaultdict[str, str] = defaultdict(lambda: "rest.safetensors")
    homes |= {"q_proj": "model.safetensors-00001-of-00003.safetensors", "k_proj": "keys.safetensors",
              "embed_tokens": "model.safetensors-00003-of-00003.safetensors"}  # fmt: skip
    index = {name: homes[name.split(".")[-2]] for name in true}
    (folder / file_names.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    options = {**options, "reference": folder}
    export_here(**options, layout="reference", output=tmp_path / "one")
    assert json.loads((tmp_path / "one" / file_names.INDEX).read_text())["weight_map"] == index
    made = tensors_of(tmp_path / "one")
    assert all(torch.equal(made[name], true[name]) for name in true)
    assert pp_export.verify(tmp_path / "one").ok
    three = by_ranks(options, tmp_path / "three", "--layout=reference", "--pipeline-parallel=3")
    assert weights(three) == weights(tmp_path / "one")


def test_a_reference_without_files_is_refused(by_layer: tuple[Options, Path], tmp_path: Path) -> None:
    """There is nothing to go by, so nothing is begun."""
    with pytest.raises(OptionError, match="needs the index of the reference"):
        export_here(**by_layer[0], layout="reference", output=tmp_path / "out")
    assert not list(tmp_path.iterdir())
