"""The files of Megatron's `torch` format, a folder per model parallel rank, and what all must agree on.

`mp_rank_{tensor:02d}[_{pipeline:03d}][_{expert:03d}]/model_optim_rng.pt`, the middle part only with pipeline
parallelism, the last only with expert parallelism (`get_checkpoint_name`,
megatron/training/checkpointing.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pp_export.checkpoint import training_args
from pp_export.core.errors import CheckpointError
from pp_export.megatron.training_grid import DECISIVE, TrainingGrid
from pp_export.torch_file import archive
from pp_export.torch_file.archive import Archive

FILE = "model_optim_rng.pt"
_FOLDER = re.compile(r"mp_rank_(\d{2,})(?:_(\d{3,}))?(?:_(\d{3,}))?")
_NUM_THREADS = 8
_OLDEST_VERSION = 2.0


@dataclass(frozen=True)
class RankFile:
    """What the ranks at one place of the grid stored."""

    name: str
    pipeline: int
    expert: int
    tensor: int
    archive: Archive


def rank_files(folder: Path) -> tuple[Mapping[str, Any], TrainingGrid, list[RankFile]]:
    """The training args, the sizes, and the files by (pipeline, expert, tensor).

    Raises CheckpointError where files are missing, too many, too old, or of different runs or iterations.
    """
    names = _folders(folder)
    first = _read(folder / names[0] / FILE)
    args = _args(first)
    grid = TrainingGrid.of(args)
    places = {grid.folder(*place): place for place in grid.places()}
    missing = sorted({grid.folder(*place) for place in grid.required()} - set(names))
    unknown = sorted(set(names) - places.keys())
    if missing or unknown:
        raise CheckpointError(
            "the rank folders are not those that the training args imply",
            expected=f"tensor {grid.tensor} x pipeline {grid.pipeline} x expert {grid.expert} ranks",
            got=f"{len(names)} folders",
            advice="copy the missing folders, and move away those of other runs",
            findings=[f"{name} is missing" for name in missing]
            + [f"{name} is of no rank of this run" for name in unknown],
        )
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        rest = pool.map(lambda name: _read(folder / name / FILE), names[1:])
        archives = dict(zip(names, [first, *rest]))
    findings = [
        text for name in names[1:] for text in _disagreements(names[0], args, first, name, archives[name])
    ]
    if findings:
        raise CheckpointError(
            "the files are not of one save: they disagree about the run",
            expected="the same sizes and the same iteration in all files",
            advice="take an iteration that was saved completely by one run",
            findings=findings,
        )
    files = [RankFile(f"{name}/{FILE}", *places[name], archives[name]) for name in names]
    return args, grid, sorted(files, key=lambda file: (file.pipeline, file.expert, file.tensor))


def _folders(folder: Path) -> list[str]:
    entries = sorted(folder.iterdir())
    if any(entry.name.endswith(("_model_states.pt", "_optim_states.pt")) for entry in entries):
        raise CheckpointError(
            "the checkpoint was written by DeepSpeed",
            expected="a checkpoint of Megatron-LM",
            advice="convert it with the tools of the fork that wrote it",
        )
    ranks = [entry for entry in entries if entry.name.startswith("mp_rank_")]
    wrong = [entry.name for entry in ranks if not (_FOLDER.fullmatch(entry.name) and entry.is_dir())]
    wrong += [
        f"{entry.name} has no {FILE}" for entry in ranks if entry.is_dir() and not (entry / FILE).is_file()
    ]
    if wrong or not ranks:
        raise CheckpointError(
            "some rank folders are not what Megatron-LM writes",
            expected=f"mp_rank_TT[_PPP][_EEE]/{FILE}",
            got=None if ranks else "no such folder",
            advice="copy the checkpoint again, and move away what is not part of it",
            findings=wrong,
        )
    return [entry.name for entry in ranks]


def _read(path: Path) -> Archive:
    """The file, of a kind that can be exported."""
    found = archive.read(path, training_args.split)
    state = found.value
    if not isinstance(state, dict):
        raise CheckpointError("the file holds no checkpoint", where={"file": path}, expected="a dict")
    models = [value for key, value in state.items() if re.fullmatch(r"model\d*", str(key))]
    if any(isinstance(model, dict) and "language_model" in model for model in models):
        raise CheckpointError(
            "the model is one of Megatron-LM before megatron-core",
            where={"file": path},
            expected="parameters such as decoder.layers.0.self_attention.linear_qkv.weight",
            got="model['language_model']",
            advice="convert it with Megatron-LM 0.12: tools/checkpoint/convert.py, loader legacy, saver core",
        )
    version = state.get("checkpoint_version", 0)
    if not isinstance(version, int | float) or version < _OLDEST_VERSION:
        raise CheckpointError(
            "the checkpoint is too old: its attention weights are in another order",
            where={"file": path},
            expected=f"checkpoint_version {_OLDEST_VERSION} or newer",
            got=version if "checkpoint_version" in state else "no checkpoint_version",
            advice="load and save it with a Megatron-LM that converts it while loading",
        )
    if any(str(key).startswith("modelopt_state") and state[key] for key in state):
        raise CheckpointError(
            "the checkpoint was quantized or pruned with ModelOpt; its weights are not the model's own",
            where={"file": path},
            advice="export it with ModelOpt's own exporter",
        )
    return found


def _args(found: Archive) -> dict[str, Any]:
    args = training_args.args_of(found.value)
    if args is None:
        raise CheckpointError(
            "the file has no training args, and without them nobody knows which layers it holds",
            where={"file": found.path},
            expected="an entry `args`",
            advice="load and save the model with Megatron-LM",
        )
    return args


def _disagreements(
    name: str, args: Mapping[str, Any], first: Archive, other_name: str, other: Archive
) -> Iterator[str]:
    """What two files say differently."""
    other_args = _args(other)
    pairs = {key: (args.get(key), other_args.get(key)) for key in DECISIVE}
    for key in ("iteration", "checkpoint_version"):
        pairs[key] = (first.value.get(key), other.value.get(key))
    for key, (value, other_value) in pairs.items():
        if value != other_value:
            yield f"{key}: {value!r} in {name}, {other_value!r} in {other_name}"
