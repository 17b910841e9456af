"""Which part of which parameter each rank's file holds, and whether the files of all ranks fit together."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pp_export.checkpoint.canonical_names import framework_prefix
from pp_export.checkpoint.legacy.rank_files import RankFile
from pp_export.core.errors import CheckpointError
from pp_export.core.tensors import TensorSpec
from pp_export.core.views import View
from pp_export.megatron import local_names, pipeline_layout
from pp_export.megatron.local_names import Split
from pp_export.megatron.pipeline_layout import Stage
from pp_export.megatron.training_grid import TrainingGrid
from pp_export.torch_file.archive import StoredView

Args = Mapping[str, Any]

_EMBEDDING, _HEAD = "embedding.word_embeddings.weight", "output_layer.weight"


@dataclass(frozen=True)
class ParameterPart:
    """What file number `file` holds of a parameter, of stage `stage` and tensor parallel rank `tensor`."""

    file: int
    stage: Stage
    tensor: int
    stored: StoredView


@dataclass(frozen=True)
class Parameter:
    """A parameter in equal `parts`: one of each rank that shares it, or one where all have copies.

    `split` is no longer `LATENT` or `NORM`: the shapes have decided.
    """

    split: Split
    parts: tuple[ParameterPart, ...]


def parameters(
    args: Args, grid: TrainingGrid, files: list[RankFile]
) -> tuple[dict[str, Parameter], list[str]]:
    """All parameters by their global names, single experts each, and what tensor parallel ranks don't agree
    on.

    The copies that data parallel replicas hold must be equal. Those of tensor parallel ranks, such as norms,
    may have drifted apart in a long run; rank 0's count then, as in Megatron itself. Raises CheckpointError
    where a part is missing, of another size, or in copies that differ.
    """
    held = _held(args, grid, files)
    _check_names(held)
    found = {}
    differing: list[str] = []
    drifted: list[str] = []
    for name, parts in sorted(held.items()):
        size = grid.expert_tensor if local_names.is_of_experts(name) else grid.tensor
        split = _split(name, held, args, size)
        if split is Split.COPIES:
            size = 1
        of_rank: defaultdict[int, list[ParameterPart]] = defaultdict(list)
        for part in parts:
            of_rank[part.tensor % size].append(part)
        _check_parts(name, of_rank, size)
        found[name] = Parameter(split, tuple(of_rank[rank][0] for rank in range(size)))
        for copies in of_rank.values():
            replicas: defaultdict[int, list[ParameterPart]] = defaultdict(list)
            for part in copies:
                replicas[part.tensor].append(part)
            for group in replicas.values():
                differing += [f"{name}: {text}" for text in _differences(group, files)]
            first_of_each = [group[0] for group in replicas.values()]
            drifted += [f"{name}: {text}" for text in _differences(first_of_each, files)]
    if differing:
        raise CheckpointError(
            "copies of parameters differ between files: the folder mixes saves, or the ranks of the run"
            " had diverged",
            expected="one CRC-32 for all copies",
            advice="take an iteration that was saved completely by one run",
            findings=differing,
        )
    return found, drifted


def _held(args: Args, grid: TrainingGrid, files: list[RankFile]) -> dict[str, list[ParameterPart]]:
    """What all files hold, by global name; what comes first is what its copies are compared with."""
    num_virtual = pipeline_layout.virtual_size(args)
    by_place = {(stage.pipeline, stage.virtual): stage for stage in pipeline_layout.stages(args)}
    num_experts, rest = divmod(int(args.get("num_experts") or 0), grid.expert)
    if rest:
        raise CheckpointError(
            "the experts can't be divided evenly among the expert parallel ranks",
            expected=f"a multiple of {grid.expert} experts",
            got=args["num_experts"],
        )
    found: defaultdict[str, list[ParameterPart]] = defaultdict(list)
    strange: list[str] = []
    for number, file in enumerate(files):
        experts = range(file.expert * num_experts, (file.expert + 1) * num_experts)
        for virtual, model in enumerate(_models(file, num_virtual)):
            stage = by_place[file.pipeline, virtual]
            for name, stored in _tensors(file, model, stage, experts):
                if local_names.split_of(name) is None:
                    strange.append(f"{name} {list(stored.view.shape)} in {file.name}")
                found[_or_copied(name, stage, args)].append(ParameterPart(number, stage, file.tensor, stored))
    if strange:
        raise CheckpointError(
            "it is not known how tensor parallel ranks cut some parameters",
            advice="save the checkpoint with --ckpt-format torch_dist, which stores how they are cut",
            findings=strange,
        )
    return found


def _models(file: RankFile, num_virtual: int) -> list[dict[str, Any]]:
    """The parameters of each virtual stage in a file, as stored."""
    state = file.archive.value
    wanted = ["model"] if num_virtual == 1 else [f"model{number}" for number in range(num_virtual)]
    present = [key for key in state if is_model(key)]
    if set(wanted) != set(present) or not all(isinstance(state[key], dict) for key in wanted):
        raise CheckpointError(
            "the file doesn't hold the virtual stages that the training args name",
            where={"file": file.archive.path},
            expected=", ".join(wanted),
            got=", ".join(present) or "no model",
        )
    return [state[key] for key in wanted]


def is_model(key: object) -> bool:
    """Whether an entry of a file holds parameters: `model`, or `model0`, `model1`... with virtual stages."""
    return isinstance(key, str) and (key == "model" or key.removeprefix("model").isdecimal())


def _tensors(file: RankFile, model: Args, stage: Stage, experts: range) -> Iterator[tuple[str, StoredView]]:
    """The tensors of one virtual stage under their global names, experts one by one."""
    keys = [str(key) for key, value in model.items() if value is not None and "_extra_state" not in str(key)]
    prefix = framework_prefix(keys)
    names = {key: key.removeprefix(prefix) for key in keys}
    layers = {layer for name in names.values() if (layer := local_names.local_layer(name)) is not None}
    expected = {("decoder", number) for number in range(len(stage.layers))}
    expected |= {("mtp", number) for number in range(stage.num_mtp_layers)}
    if layers != expected:
        raise CheckpointError(
            "a pipeline stage holds other layers than the training args say",
            where={"file": file.archive.path, "virtual stage": stage.virtual},
            expected=_listed(expected),
            got=_listed(layers),
            advice="if the args are right, the folders were renamed or are of another run",
        )
    for key, name in names.items():
        try:
            stored = file.archive.view(model[key])
            if stored is None:
                raise CheckpointError("an entry of the model is no tensor", got=repr(model[key])[:200])
            global_name = local_names.with_global_layer(name, stage.layers)
            for single, view in local_names.single_experts(global_name, stored.view, experts):
                yield single, replace(stored, view=view)
        except CheckpointError as error:
            raise error.at(file=file.archive.path, tensor=key) from error


def _listed(layers: set[tuple[str, int]]) -> str:
    return ", ".join(f"{kind} {number}" for kind, number in sorted(layers)) or "no layers"


def _or_copied(name: str, stage: Stage, args: Args) -> str:
    """The parameter that `name` is a copy of: the last stage has tied embeddings as its output layer."""
    tied = args.get("untie_embeddings_and_output_weights") is False
    return _EMBEDDING if tied and name == _HEAD and stage.has_head else name


def _check_names(held: Mapping[str, list[ParameterPart]]) -> None:
    """No parameter may come from two stages, or twice from one file, except for the embedding: MTP layers and
    a tied output layer have it again.
    """
    doubled = []
    for name, parts in held.items():
        origin = parts[0].stage
        is_embedding = name.startswith("embedding.") and origin.has_embedding
        others = {part.stage for part in parts if part.stage != origin}
        if not all(is_embedding and (stage.has_head or stage.num_mtp_layers) for stage in others):
            doubled.append(f"{name} in pipeline stages {sorted({part.stage.pipeline for part in parts})}")
        elif max(Counter(part.file for part in parts).values()) > 1 and not is_embedding:
            doubled.append(f"{name} twice in one file")
    if doubled:
        raise CheckpointError("two stored parameters have one name", findings=doubled)


def _split(name: str, held: Mapping[str, list[ParameterPart]], args: Args, size: int) -> Split:
    split, view = local_names.split_of(name), held[name][0].stored.view
    assert split is not None
    if split is Split.NORM:
        queries = held.get(name.replace(".k_layernorm.", ".q_layernorm."), held[name])[0].stored.view
        return Split.ROWS if _is_part_of_norm(queries, args, size) else Split.COPIES
    if split is not Split.LATENT:
        return split
    rows, full = view.shape[0], local_names.latent_rows(name, args)
    if full not in (rows, rows * size):
        raise CheckpointError(
            "a down projection has another size than the training args say",
            where={"tensor": name},
            expected=f"{full} rows, whole or in {size} parts",
            got=f"{rows} rows",
        )
    return Split.COPIES if rows == full else Split.ROWS


def _is_part_of_norm(queries: View, args: Args, size: int) -> bool:
    """Whether a layer's norms are of all heads, and a rank has those of its own, by the norm of its queries.
    With one head per rank that has as many rows as a norm of each head, and counts as such: a class with
    norms of all heads then misses rows. So it does with fewer groups than ranks, of which some share one.
    """
    known = local_names.norm_rows(args)
    if known is None or len(queries.shape) != 1 or queries.shape[0] == known[0]:
        return False
    return size > 1 and queries.shape[0] * size == known[1]


def _check_parts(name: str, of_rank: Mapping[int, list[ParameterPart]], size: int) -> None:
    """Each of `size` ranks has a part, and all parts and copies are of one shape and type."""
    kinds = {
        rank: sorted({str(TensorSpec(p.stored.view.shape, p.stored.dtype)) for p in of_rank[rank]})
        for rank in sorted(of_rank)
    }
    if len(kinds) != size or len({kind for found in kinds.values() for kind in found}) > 1:
        raise CheckpointError(
            "the parts of a parameter don't fit together",
            where={"tensor": name},
            expected=f"{size} equal parts, one of each tensor parallel rank",
            got=", ".join(f"rank {rank}: {' or '.join(found)}" for rank, found in kinds.items()),
            advice="the files are of different runs, or were edited",
        )


def _differences(copies: list[ParameterPart], files: list[RankFile]) -> Iterator[str]:
    """Which copies of one part differ; those that share a storage with other parameters can't be compared."""
    crcs: dict[str, int] = {}
    for part in copies:
        stored = part.stored
        member = files[part.file].archive.storages[stored.storage]
        if stored.view.is_dense and stored.num_bytes == member.length:
            crcs[files[part.file].name] = member.crc
    if len(set(crcs.values())) > 1:
        yield ", ".join(f"{crc:08x} in {name}" for name, crc in crcs.items())
