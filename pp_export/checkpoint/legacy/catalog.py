"""What a folder in Megatron's `torch` format holds, one file per model parallel rank, without any value.

Every parameter of every file gets its place in the model: its global name, and the boxes that the rank's part
fills there. Nothing is copied or transposed; boxes and strides say it all.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from pp_export.checkpoint import locate, training_args
from pp_export.checkpoint.catalog import Catalog, Description, Interleave, StoredBox, StoredItem, StoredTensor
from pp_export.checkpoint.legacy.parts import Args, Parameter, ParameterPart, is_model, parameters
from pp_export.checkpoint.legacy.rank_files import FILE, RankFile, rank_files
from pp_export.core.errors import CheckpointError
from pp_export.core.tensors import Box, check_coverage
from pp_export.megatron import local_names
from pp_export.megatron.local_names import Split
from pp_export.torch_file import archive

LEGACY = "torch"
_KINDS = ("optimizer", "rng_state")


def read_catalog(folder: Path) -> Catalog:
    """Everything that is stored, without values; called on rank 0 only.

    Raises CheckpointError unless every parameter has a known place and is covered exactly, and its copies
    have one CRC-32.
    """
    try:
        return _catalog(folder)
    except CheckpointError as error:
        raise error.at(folder=folder) from None
    except Exception as error:  # whatever a pickle of something else leads to
        raise CheckpointError(
            f"the files are not what Megatron-LM writes: {error!r}", where={"folder": folder}
        ) from error


def _catalog(folder: Path) -> Catalog:
    args, grid, files = rank_files(folder)
    found, drifted = parameters(args, grid, files)
    builder = _Builder(files)
    interleave = training_args.interleave_of(args)
    tensors = tuple(builder.tensor(name, found, args, interleave(name)) for name in found)
    state = files[0].archive.value
    saved = state.get("iteration")
    iteration = saved if type(saved) is int else None
    description = Description(
        folder=str(folder),
        format=LEGACY,
        writer=f"Megatron-LM, checkpoint_version {state['checkpoint_version']}",
        iteration=iteration if iteration is not None else locate.iteration_of(folder),
        args=args,
        layout=training_args.layout_of(args),
        other=_other(folder, files),
        notes=(
            *training_args.notes_on(state),
            *locate.renamed(folder, iteration),
            *(f"tensor parallel ranks differ, the first counts: {text}" for text in drifted),
        ),
        reader=LEGACY,
    )
    return Catalog(description, *builder.files_and_items(), tensors, is_one_file_per_rank=True)


class _Builder:
    """Makes tensors of parameters, and collects the files and storages that these need."""

    def __init__(self, files: list[RankFile]) -> None:
        self._files = files
        self._numbers: dict[tuple[int, str], int] = {}

    def tensor(
        self, name: str, found: Mapping[str, Parameter], args: Args, interleave: Interleave | None
    ) -> StoredTensor:
        """The tensor `name`, proved to be covered by its boxes: one of each part, or of each section of it,
        such as gate and up.

        megatron-core's torch_dist format stores the same boxes (`apply_swiglu_sharded_factory`,
        megatron/core/transformer/mlp.py, and `_split_tensor_factory`, megatron/core/ssm).
        """
        parameter = found[name]
        first = parameter.parts[0].stored.view
        dim = 1 if parameter.split is Split.COLUMNS else 0
        if len(first.shape) <= dim:
            raise CheckpointError("a parameter has too few dims", where={"tensor": name}, got=first.shape)
        size = len(parameter.parts)
        is_gated = parameter.split is Split.FC1 and _is_gated(name, found, args)
        if parameter.split is Split.SECTIONS:
            counts = _sections(name, first.shape[0], size, args)
        else:
            counts = (first.shape[dim] // 2,) * 2 if is_gated else (first.shape[dim],)
        boxes = [
            self._box(part, dim, begin, count, at=begin * size + rank * count)
            for rank, part in enumerate(parameter.parts)
            for begin, count in zip(itertools.accumulate(counts, initial=0), counts)
        ]
        shape = (*first.shape[:dim], size * first.shape[dim], *first.shape[dim + 1 :])
        check_coverage(name, shape, [stored.box for stored in boxes])
        return StoredTensor(
            name, shape, parameter.parts[0].stored.dtype, tuple(boxes), interleave if is_gated else None
        )

    def files_and_items(self) -> tuple[tuple[str, ...], tuple[StoredItem, ...]]:
        """The files that the tensors made so far lie in, and where in them their storages are."""
        keys: defaultdict[int, list[str]] = defaultdict(list)
        for file, key in self._numbers:
            keys[file].append(key)
        number_of = {file: number for number, file in enumerate(sorted(keys))}
        begins = {file: self._files[file].archive.begins(keys[file]) for file in number_of}
        members = [(file, key, self._files[file].archive.storages[key]) for file, key in self._numbers]
        items = [
            StoredItem(number_of[file], begins[file][key], member.length, member.crc)
            for file, key, member in members
        ]
        return tuple(self._files[file].name for file in number_of), tuple(items)

    def _box(self, part: ParameterPart, dim: int, start: int, count: int, at: int) -> StoredBox:
        """Elements [start, start + count) of a part along `dim`, which lie from `at` on in the tensor."""
        view = part.stored.view.narrow(dim, start, count)
        offset = tuple(at if axis == dim else 0 for axis in range(len(view.shape)))
        item = self._numbers.setdefault((part.file, part.stored.storage), len(self._numbers))
        begin = view.offset * part.stored.dtype.itemsize
        return StoredBox(Box(offset, view.shape), item, begin, None if view.is_dense else view.strides)


def _sections(name: str, rows: int, size: int, args: Args) -> tuple[int, ...]:
    """The rows that each of `size` ranks has of each section."""
    whole = local_names.sections(name, args)
    if whole is None or sum(whole) != rows * size or any(count % size for count in whole):
        raise CheckpointError(
            "a tensor in sections has another size than the training args say",
            where={"tensor": name},
            expected="sections that the args say" if whole is None else f"{sum(whole)} rows: {list(whole)}",
            got=f"{rows} rows on each of {size} ranks",
        )
    return tuple(count // size for count in whole)


def _is_gated(name: str, found: Mapping[str, Parameter], args: Args) -> bool:
    """Whether `linear_fc1` has two rows for each column of `linear_fc2` (gate, up), as the args say too."""
    rows = found[name].parts[0].stored.view.shape[0]
    sibling = found.get(name.rpartition("linear_fc1.")[0] + "linear_fc2.weight")
    columns = sibling.parts[0].stored.view.shape[-1] if sibling is not None else 0
    told = any(args.get(flag) for flag in ("swiglu", "quick_geglu", "gated_linear_unit"))
    if rows not in (columns, 2 * columns) or ("swiglu" in args and told != (rows == 2 * columns)):
        raise CheckpointError(
            "the two linears of an MLP don't fit together",
            where={"tensor": name},
            expected=f"{'two rows' if told else 'one row'} for each column of linear_fc2.weight",
            got=f"{rows} rows, {columns} columns",
        )
    return rows == 2 * columns


def _other(folder: Path, files: list[RankFile]) -> dict[str, tuple[int, int]]:
    """What is no model weight: storages of the rest of each file, and every file beside it as one item."""
    sizes: defaultdict[str, list[int]] = defaultdict(list)
    for file in files:
        state, storages = file.archive.value, file.archive.storages
        seen = archive.storages_in([value for key, value in state.items() if is_model(key)])
        for key, value in state.items():
            new = set() if is_model(key) else archive.storages_in(value) - seen
            seen |= new
            if new:
                sizes[key if key in _KINDS else "other objects"] += [storages[name].length for name in new]
        for path in sorted((folder / file.name).parent.iterdir()):
            if path.name != FILE and path.is_file():
                sizes["optimizer" if "optim" in path.name else "other files"].append(path.stat().st_size)
    return {kind: (len(found), sum(found)) for kind, found in sorted(sizes.items())}
