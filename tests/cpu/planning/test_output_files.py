"""Claims of `pp_export.planning.output_files`: which tensor is in which file is decided by the tensors and
the layout that is asked for alone, and every tensor is in one.
"""

from __future__ import annotations

import itertools
import random

import pytest

from pp_export.architecture import own_names
from pp_export.architecture.accounting import Account
from pp_export.architecture.own_names import Model
from pp_export.core import dtypes
from pp_export.core.file_names import SINGLE_WEIGHTS
from pp_export.core.tensors import TensorSpec
from pp_export.planning.export_plan import ExportPlan
from pp_export.planning.output_files import (
    LAYERS,
    REFERENCE,
    SIZE,
    Layout,
    OutputFile,
    missing_in,
    output_files,
)
from pp_export.planning.planner import make_plan
from pp_export.planning.rank_grid import RankGrid
from tests.cpu.planning.test_assign_holders import Job
from tests.cpu.planning.test_planner import DENSE, MOE, settle

NAMES = [
    *("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"),
    *(f"model.layers.{layer}.{part}.weight" for layer in range(12) for part in ("a", "b", "norm")),
]
BYTES = 4 * 100


def account_of(names: list[str]) -> Account:
    """Tensors of 400 bytes with these names."""
    specs = {name: TensorSpec((10, 10), dtypes.from_torch("float32")) for name in names}
    return own_names.account(specs, own_names.decide(specs, Model()), "")


def found(files: list[OutputFile]) -> dict[str, list[str]]:
    """The tensors of each file; none is empty, and none in two."""
    assert all(file.tensors for file in files)
    names = [name for file in files for name in file.tensors]
    assert len(set(names)) == len(names)
    return {file.name: list(file.tensors) for file in files}


@pytest.mark.parametrize(
    "layout", [Layout(LAYERS), Layout(SIZE), Layout(REFERENCE, dict.fromkeys(NAMES, "a"))]
)
def test_every_tensor_is_in_one_file_whatever_order_they_come_in(layout: Layout) -> None:
    """Of tensors in any order the files are the same; embedding first, layers by number, head last."""
    expected = found(output_files(account_of(NAMES), 5 * BYTES, layout))
    assert sorted(itertools.chain(*expected.values())) == sorted(NAMES)
    order = list(itertools.chain(*expected.values()))
    assert order[0] == NAMES[0]
    assert order[-1] in NAMES[1:3]
    assert order.index("model.layers.9.a.weight") < order.index("model.layers.10.a.weight")
    for seed in range(5):
        names = random.Random(seed).sample(NAMES, len(NAMES))
        assert found(output_files(account_of(names), 5 * BYTES, layout)) == expected


def test_small_layers_are_merged_up_to_the_size() -> None:
    """By size, a file ends only where the next tensors would not fit; what fits into one is
    model.safetensors.
    """
    files = output_files(account_of(NAMES), 5 * BYTES, Layout(SIZE))
    assert [len(file.tensors) for file in files] == [5] * 7 + [4]
    assert files[0].name == "model-00001-of-00008.safetensors"
    assert files[1].label == "model.layers.1 to model.layers.2"
    (one,) = output_files(account_of(NAMES), len(NAMES) * BYTES, Layout(SIZE))
    assert (one.name, len(one.tensors)) == (SINGLE_WEIGHTS, len(NAMES))


def test_a_source_stays_together() -> None:
    """By size as by layer, Hugging Face tensors of one Megatron tensor are in one file."""
    account = settle(DENSE)
    for limit in (1, 1500, 5000):
        home = {n: file.name for file in output_files(account, limit, Layout(SIZE)) for n in file.tensors}
        for name, sources in account.sources_of.items():
            assert {home[o] for o, of in account.sources_of.items() if of == sources} == {home[name]}


def test_the_files_of_a_reference() -> None:
    """Names that the index lacks lie where the name before them does; files in the usual names are numbered
    densely, others stay as they are, and those that nobody needs are left out.
    """
    known = {
        "model.embed_tokens.weight": "model-00001-of-00009.safetensors",
        "model.layers.0.a.weight": "model-00004-of-00009.safetensors",
        "model.layers.2.a.weight": "weights.safetensors-00003-of-00014.safetensors",
        "absent.weight": "model-00007-of-00009.safetensors",
        "lm_head.weight": "a.safetensors",
    }
    account = account_of(NAMES)
    files = found(output_files(account, 1, Layout(REFERENCE, known)))
    assert list(files) == [
        *("a.safetensors", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
        "weights.safetensors-00003-of-00014.safetensors",
    ]
    assert files["model-00002-of-00002.safetensors"] == [
        f"model.layers.{layer}.{part}.weight" for layer in (0, 1) for part in ("a", "b", "norm")
    ]
    assert len(missing_in(account, known)) == len(NAMES) - 4
    nothing = output_files(account, 1, Layout(REFERENCE, {"x": "only.safetensors"}))
    assert list(found(nothing)) == ["only.safetensors"]


@pytest.mark.parametrize("kind", [SIZE, REFERENCE])
def test_files_are_those_of_any_ranks(kind: str) -> None:
    """Whoever reads or holds the values: one rank, grids, and jobs of which each holds some; also where
    tensors of one source, and of several layers, are in one file and in several.
    """
    account = settle(MOE)
    numbers = random.Random(4)
    weight_map = {name: f"f{numbers.randrange(5)}.safetensors" for name in account.outputs}
    layout = Layout(kind, weight_map if kind == REFERENCE else {})
    expected = [(file.name, set(file.tensors)) for file in output_files(account, 1500, layout)]

    def files_of(plan: ExportPlan) -> list[tuple[str, set[str]]]:
        """Each file, of all its ranges."""
        return [(r[0].file, {p.name for each in r for p in each.tensors}) for r in plan.files]

    for ranks in (1, 3, RankGrid((2, 2)), RankGrid((1, 1), 2, 2)):
        size = ranks if isinstance(ranks, int) else ranks.world_size
        grid = None if isinstance(ranks, int) else ranks
        plan = make_plan(account, MOE.slices(2), size, max_shard_bytes=1500, layout=layout, grid=grid)
        assert files_of(plan) == expected
    for job in (Job(tensor=2, pipeline=3), Job(replicas=2, expert=2, pipeline=2)):
        slices, holders = job.holders(MOE)
        plan = make_plan(account, slices, job.num_ranks, max_shard_bytes=1500, layout=layout, holders=holders)
        assert files_of(plan) == expected
