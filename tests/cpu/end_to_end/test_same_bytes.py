"""Claims: the same bytes from every layout of a checkpoint and from every grid of the export.

A launch runs all exports of its world size one after another, since starting the ranks takes longer than the
exports.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pp_export.checkpoint.folder_source import CheckpointSource
from pp_export.core import file_names
from pp_export.options.kinds import ExportOptions
from pp_export.steps.inputs import plan_export, read_inputs
from pp_export.steps.pending import PendingInputs
from pp_export.steps.plan_report import plan_report
from tests.cpu.conftest import Checkpoint, Reference
from tests.fixtures.exports import RememberedDefinition, export_here, files_of, remembering
from tests.fixtures.processes import run_python, torchrun

Options = dict[str, Any]

DENSE = (
    ("qwen2", "tp1"),  # DP 4
    ("qwen2", "tp2"),  # DP 2
    ("qwen2", "tp4"),
    ("qwen2", "pp2"),  # DP 2
    ("qwen2", "tp2pp2"),
    ("qwen2", "pp2vpp3"),
    ("qwen2", "pp4first1last1"),
    ("qwen2", "pp3first1last2"),
    ("qwen2_per_layer", "tp2"),
    ("qwen2_per_layer", "pp2"),
    ("qwen2_legacy", "tp1"),
    ("qwen2_legacy", "tp4"),
    ("qwen2_legacy", "tp2pp2"),
    ("qwen2_legacy", "pp2vpp3"),
    ("qwen2_legacy", "pp4first1last1"),
)
MOE = (
    ("qwen3_moe", "tp1"),
    ("qwen3_moe", "tp2ep2etp1"),
    ("qwen3_moe", "ep2etp2"),
    ("qwen3_moe", "pp2ep2"),
    ("qwen3_moe", "ep4"),
    ("qwen3_moe_te", "tp2pp2"),
    ("qwen3_moe_legacy", "tp2ep2etp1"),
    ("qwen3_moe_legacy", "tp2ep2"),
    ("qwen3_moe_legacy", "pp2ep2"),
    ("qwen3_moe_legacy", "ep4"),
)
MTP = (
    ("qwen3_mtp", "tp1"),
    ("qwen3_mtp", "pp2"),
    ("qwen3_mtp", "tp2pp2"),
    ("qwen3_mtp", "pp2vpp3"),
    ("qwen3_mtp", "pp3first1last2"),
    ("qwen3_mtp_legacy", "tp1"),
    ("qwen3_mtp_legacy", "pp2"),
    ("qwen3_mtp_legacy", "tp2pp2"),
)
GROUPS = {"dense": DENSE, "moe": MOE, "mtp": MTP}
GRIDS: dict[int, tuple[Options, ...]] = {
    1: ({},),
    2: (
        {"pipeline_parallel": 2},
        {"pipeline_parallel": 1, "tensor_parallel": 2},
        {"pipeline_parallel": 1, "expert_parallel": 2, "leaders_per_stage": "1"},
    ),
    4: (
        {},
        {"pipeline_parallel": 2, "tensor_parallel": 2},
        {"pipeline_parallel": 1, "tensor_parallel": 4},
        {"pipeline_parallel": 3},
        {"pipeline_parallel": 2, "expert_parallel": 2, "leaders_per_stage": "2"},
        {"pipeline_parallel": 1, "tensor_parallel": 2, "expert_parallel": 2, "leaders_per_stage": "3"},
        {"pipeline_parallel": 1, "leaders_per_stage": "1"},
    ),
}
# Files of several layers' tensors, and files of a part of a layer.
SHARD_SIZES = ("5GB", "40KB")


def exports(folder: Path, num_ranks: int, checkpoint: Checkpoint, reference: Reference) -> list[Options]:
    """The exports of a world: every checkpoint in each shard size, the grids in turn."""
    grids = GRIDS[num_ranks]
    return [
        {
            "checkpoint": str(checkpoint(*case)),
            "reference": str(reference(case[0])),
            "output": str(folder / "-".join([*case, str(num_ranks), size])),
            "max_shard_size": size,
            # Folders of few files are read without a grid too.
            **({} if "legacy" in case[0] and step == 0 else grids[(number + step) % len(grids)]),
        }
        for cases in GROUPS.values()
        for number, case in enumerate(cases)
        for step, size in enumerate(SHARD_SIZES)
    ]


@pytest.fixture(scope="module")
def exported(
    checkpoint: Checkpoint, reference: Reference, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, list[Options]]:
    """All exports by world size, done."""
    folder = tmp_path_factory.mktemp("layouts")
    jobs = {size: exports(folder, size, checkpoint, reference) for size in GRIDS}
    for job in jobs[1]:
        export_here(**{key: Path(value) if "/" in value else value for key, value in job.items()})
    RememberedDefinition.write(folder / "answers.json")
    for num_ranks in (2, 4):
        file = folder / f"jobs-{num_ranks}.json"
        file.write_text(json.dumps(jobs[num_ranks]))
        command = torchrun(num_ranks, "-m", "tests.fixtures.many_exports", str(file))
        run_python([*command, str(folder / "answers.json")], folder / f"output-{num_ranks}").checked()
    return jobs


@pytest.mark.parametrize("size", SHARD_SIZES)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("num_ranks", GRIDS)
def test_every_layout_and_every_grid_give_the_same_folder(
    exported: dict[int, list[Options]], num_ranks: int, group: str, size: str
) -> None:
    """SHA256SUMS and the set of files are those of the unsharded checkpoint exported by one rank."""
    cases, before = GROUPS[group], list(GROUPS).index(group)
    alone = exported[1][sum(map(len, list(GROUPS.values())[:before])) * len(SHARD_SIZES)]
    truth = Path(alone["output"].removesuffix(SHARD_SIZES[0]) + size)
    sums, names = (truth / file_names.SUMS).read_text(), set(files_of(truth))
    assert {line.partition("  ")[2] for line in sums.splitlines()} == names - {
        file_names.SUMS,
        file_names.MANIFEST,
    }

    roots = {f"{name}/{layout}" for name, layout in cases}
    compared = 0
    for job in exported[num_ranks]:
        source = Path(job["checkpoint"])
        if f"{source.parent.name}/{source.name}" in roots and job["max_shard_size"] == size:
            output = Path(job["output"])
            assert (output / file_names.SUMS).read_text() == sums, job
            assert set(files_of(output)) == names, job
            compared += 1
    assert compared == len(cases)


def test_exports_leave_nothing_beside_their_folders(exported: dict[int, list[Options]]) -> None:
    """After all these exports the parent folder holds the exported folders and no staging folder."""
    parent = Path(exported[1][0]["output"]).parent
    hidden = [path.name for path in parent.iterdir() if path.name.startswith(".")]
    assert hidden == []


@pytest.mark.parametrize("leaders", ["1", "2", "all"])
@pytest.mark.parametrize(
    ("case", "grid"),
    [
        (("qwen2", "tp2pp2"), {"pipeline_parallel": 2, "tensor_parallel": 2}),
        (("qwen2", "tp1"), {"pipeline_parallel": 1, "tensor_parallel": 4}),
        (("qwen3_moe", "ep4"), {"pipeline_parallel": 1, "tensor_parallel": 2, "expert_parallel": 2}),
        (("qwen3_moe", "tp1"), {"pipeline_parallel": 2}),
    ],
)
def test_the_bytes_of_a_stage_are_read_by_its_ranks_and_travel(
    checkpoint: Checkpoint, reference: Reference, case: tuple[str, str], grid: Options, leaders: str
) -> None:
    """With several ranks in a stage each reads a share, those that don't lead send all of it, and the leaders
    write; where all lead and no part is asked for, hardly anything is sent.
    """
    options = ExportOptions(
        checkpoint=checkpoint(*case),
        reference=reference(case[0]),
        output=Path("unused"),
        leaders_per_stage=leaders,
        **grid,
    )
    source = CheckpointSource(options.checkpoint, options.iteration, options.check_source)
    with remembering():
        inputs = read_inputs(source, options, PendingInputs.start(options))
    plan = plan_report(inputs, plan_export(inputs, options, 4), "auto").to_json()
    ranks = plan["ranks"]
    stored = sum(rank["read_bytes"] for rank in ranks)
    assert stored >= plan["total_size"], "padding aside, every byte is read by one rank"
    num_leaders = dict.fromkeys(range(grid["pipeline_parallel"]), 0)
    for rank in ranks:
        assert 0 < rank["read_bytes"] < stored / 2
        num_leaders[rank["stage"]] += rank["written_bytes"] > 0
        if rank["written_bytes"] == 0:
            assert rank["sent_bytes"] >= rank["read_bytes"]
    if leaders == "all" and grid.keys() == {"pipeline_parallel"}:
        assert sum(rank["sent_bytes"] for rank in ranks) < 0.1 * stored
    stage_size = 4 // grid["pipeline_parallel"]
    assert set(num_leaders.values()) == {stage_size if leaders == "all" else min(int(leaders), stage_size)}
