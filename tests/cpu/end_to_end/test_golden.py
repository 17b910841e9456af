"""Claims: what megatron-core's releases from 0.8 to 0.19 really wrote is read bit for bit.

`tests/golden/README.md` says which release wrote which folder, and how. The expected tensors were drawn
before they were saved, and never read back.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pp_export import cli
from pp_export.checkpoint.formats import describe_checkpoint
from tests.fixtures.stored import read_all

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
FOLDERS = sorted(path.parent.name for path in GOLDEN.glob("*/expected.safetensors"))
RELEASES = {f"0.{minor}" for minor in range(8, 20)}


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_release_s_checkpoint_is_read_bit_for_bit(folder: str) -> None:
    """Names, shapes, types and values of all tensors are those that were saved."""
    catalog = describe_checkpoint(GOLDEN / folder, None)
    found, expected = read_all(catalog), load_file(GOLDEN / folder / "expected.safetensors")
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == values.dtype, name
        assert torch.equal(found[name], values), name


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_release_s_checkpoint_is_described(folder: str) -> None:
    """Format, iteration, sizes and layout are found, wherever the release keeps them, and what is no
    weight.
    """
    description = describe_checkpoint(GOLDEN / folder, None).description
    release, _, kind = folder.partition("-")
    assert description.format == ("torch" if "legacy" in kind else "torch_dist")
    assert description.iteration == 10
    assert description.args is not None
    assert (description.args["num_layers"], description.args["hidden_size"]) == (2, 16)
    size = 1 if kind.endswith(("-ep", "legacy-pp")) else 2
    assert description.layout["tensor_model_parallel_size"] == size
    assert "optimizer" in description.other
    minor = int(release.split(".")[1])
    age = "0.8 to 0.15" if minor < 16 else "0.16 to 0.18" if minor < 19 else "0.19 or newer"
    writer = "Megatron-LM, checkpoint_version 3.0" if "legacy" in kind else f"megatron-core {age}"
    assert description.writer == writer


def test_all_releases_are_there() -> None:
    """Each minor release from 0.8 to 0.19 wrote at least one of the folders."""
    assert {".".join(name.split(".")[:2]) for name in FOLDERS} == RELEASES


def test_a_box_of_several_experts_is_read() -> None:
    """GroupedMLP stores all experts of a rank in one record; each expert is a part of it."""
    catalog = describe_checkpoint(GOLDEN / "0.16.1-grouped", None)
    experts = [n for n in catalog.slices if ".mlp.experts." in n]
    records = {slice_.item for name in experts for slice_ in catalog.slices[name]}
    assert len(records) < len(experts)


@pytest.mark.parametrize("folder", FOLDERS)
def test_inspect_shows_any_of_them(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`inspect` prints format, writer, layout, sizes, every tensor, and what is no weight, of every
    format.
    """
    assert cli.main(["inspect", str(GOLDEN / folder)]) == 0
    shown = capsys.readouterr().out
    catalog = describe_checkpoint(GOLDEN / folder, None)
    for text in (catalog.description.format, catalog.description.writer, "hidden_size 16", "optimizer"):
        assert text in shown
    assert all(f" {tensor.key} " in shown for tensor in catalog.tensors)
    assert ("one file per rank" in shown) == ("legacy" in folder)
    assert cli.main(["inspect", str(GOLDEN / folder), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["layout"]["pipeline_model_parallel_size"] == (2 if "-pp" in folder else 1)
    assert value["weights"]["num_boxes"] == sum(len(tensor.boxes) for tensor in catalog.tensors)
