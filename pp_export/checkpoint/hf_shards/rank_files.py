"""`model_world_size_N_rank_R.pt`: what each of N ranks of FSDP holds, by torch.save, as verl's checkpoint
manager writes it (verl/utils/checkpoint/fsdp_checkpoint_manager.py). Optimizer and random states lie in
files of their own beside it.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pp_export.checkpoint import locate
from pp_export.checkpoint.catalog import Catalog, Description, StoredBox, StoredItem
from pp_export.checkpoint.hf_shards.pieces import Pieces, put_together
from pp_export.checkpoint.hf_shards.placements import Part, parts_of
from pp_export.checkpoint.hf_shards.saved_names import saved_names
from pp_export.checkpoint.hf_shards.steps_of_runs import step_of
from pp_export.checkpoint.source import Reader
from pp_export.core.errors import CheckpointError
from pp_export.core.strict_json import JsonError, parse_object
from pp_export.core.tensors import Box
from pp_export.torch_file import archive
from pp_export.torch_file.archive import Archive, StoredView

_FILE = re.compile(r"model_world_size_(\d{1,6})_rank_(\d{1,6})\.pt")
_OTHER = re.compile(r"(optim|extra_state)_world_size_\d+_rank_\d+\.pt")
_CONFIG, _MAX_CONFIG_BYTES = "fsdp_config.json", 1 << 20
_NUM_THREADS = 8
_ADVICE = "copy the missing files of this save, and move those of other saves out of the folder"


@dataclass(frozen=True)
class FsdpRankFiles:
    """The format."""

    num_ranks: int | None = None

    name = "torch.save of FSDP ranks"

    def recognise(self, folder: Path) -> bool:
        return bool(_names(folder))

    def is_finished(self, folder: Path, latest: int | None) -> bool:
        """`fsdp_config.json` comes when rank 0 has written its part; nothing tells of the others."""
        return (folder / _CONFIG).is_file()

    def describe(self, folder: Path) -> Catalog:
        names = _names(folder)
        world_size = _check_names(folder, names, self.num_ranks)
        with ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="rank file") as pool:
            archives = list(pool.map(lambda name: archive.read(folder / name), names))
        try:
            tensors, builder = _tensors(names, archives)
        except CheckpointError as error:
            raise error.at(folder=folder) from None
        description = Description(
            folder=str(folder),
            format="torch.save of FSDP ranks (verl)",
            writer=f"{world_size} ranks",
            iteration=step_of(folder),
            args=None,
            layout={},
            other=_other(folder),
            notes=tuple(builder.notes),
            reader=self.name,
        )
        files, items = builder.files_and_items()
        return Catalog(
            description, files, items, put_together(tensors, _ADVICE), is_one_file_per_rank=True,
            has_hf_names=True,
        )  # fmt: skip

    def open(self, catalog: Catalog, *, check_source: bool) -> Reader:
        from pp_export.checkpoint.file_reader import FileReader  # who only describes needs none

        return FileReader(catalog, check_source=check_source)


def num_ranks(folder: Path) -> int:
    """How many ranks have written the files of this kind that are in `folder`; 0 where there are none."""
    return len(_names(folder))


def _names(folder: Path) -> list[str]:
    try:
        found = [match for name in os.listdir(folder) if (match := _FILE.fullmatch(name))]
    except OSError:
        return []
    return [match[0] for match in sorted(found, key=lambda match: (int(match[1]), int(match[2])))]


def _check_names(folder: Path, names: Sequence[str], expected: int | None) -> int:
    """The number of ranks. Raises CheckpointError where files are missing, or of several saves."""
    found = [match for name in names if (match := _FILE.fullmatch(name))]
    sizes = sorted({int(match[1]) for match in found})
    told = _told_size(folder)
    size = expected or told or sizes[0]
    present = {int(match[2]) for match in found if int(match[1]) == size}
    findings = [f"model_world_size_{size}_rank_{rank}.pt is missing" for rank in range(size)
                if rank not in present]  # fmt: skip
    findings += [f"{match[0]} is of another save" for match in found if int(match[1]) != size]
    findings += [f"model_world_size_{size}_rank_{rank}.pt is of no rank" for rank in present if rank >= size]
    if expected and told and told != expected:
        findings.append(f"{_CONFIG} tells of {told} ranks")
    if findings:
        raise CheckpointError(
            "the files are not those of one save",
            where={"folder": folder},
            expected=f"one of each of {size} ranks" + (f", as {_CONFIG} says" if size == told else ""),
            got=f"{len(found)} files, of saves by {' and by '.join(map(str, sizes))} ranks",
            advice=_ADVICE,
            findings=findings,
        )
    return size


def _told_size(folder: Path) -> int | None:
    path = folder / _CONFIG
    if not path.is_file():
        return None
    try:
        size = parse_object(locate.read_small(path, _MAX_CONFIG_BYTES)).get("world_size")
    except JsonError as error:
        raise CheckpointError(f"{_CONFIG} can't be read: {error}", where={"file": path}) from error
    return size if type(size) is int and size > 0 else None


def _tensors(names: Sequence[str], archives: Sequence[Archive]) -> tuple[dict[str, Pieces], _Builder]:
    """The pieces of every tensor, copies once; what copies differ in is refused."""
    builder = _Builder(names, archives)
    keys = dict.fromkeys(key for each in archives for key in _state(each))
    known = saved_names(keys)
    builder.notes += known.notes()
    pieces: defaultdict[str, Pieces] = defaultdict(Pieces)
    for key, name in known.name_of.items():
        for number, each in enumerate(archives):
            state = _state(each)
            if key not in state:
                continue
            try:
                parts = parts_of(state[key], each)
            except CheckpointError as error:
                raise error.at(file=names[number], tensor=name) from error
            if parts is None:
                raise CheckpointError(
                    "an entry of the model is no tensor",
                    where={"file": names[number], "tensor": name},
                    got=repr(state[key])[:200],
                )
            for part in parts:
                pieces[name].dtypes.setdefault(part.stored.dtype, names[number])
                pieces[name].shapes.setdefault(part.shape, names[number])
                stored = builder.box(name, number, part)
                if stored is not None:
                    pieces[name].add(names[number], part.stored.dtype, part.shape, stored)
    builder.check_copies()
    return pieces, builder


def _state(found: Archive) -> Mapping[str, object]:
    if not isinstance(found.value, dict) or not all(isinstance(key, str) for key in found.value):
        raise CheckpointError("the file holds no state dict", where={"file": found.path})
    return found.value


class _Builder:
    """Numbers files and storages, and remembers which parts are copies of others."""

    def __init__(self, names: Sequence[str], archives: Sequence[Archive]) -> None:
        self._names, self._archives = names, archives
        self._numbers: dict[tuple[int, str], int] = {}
        self._first: dict[tuple[str, Box], tuple[int, StoredView]] = {}
        self._differing: list[str] = []
        self._num_unknown = 0
        self.notes: list[str] = []

    def box(self, name: str, number: int, part: Part) -> StoredBox | None:
        """Where a part lies; None for a copy of one that was there before, or where it has no elements."""
        if not part.box.volume:
            return None
        seen = self._first.setdefault((name, part.box), (number, part.stored))
        if seen != (number, part.stored):
            self._compare(name, seen, (number, part.stored))
            return None
        view = part.stored.view
        item = self._numbers.setdefault((number, part.stored.storage), len(self._numbers))
        begin = view.offset * part.stored.dtype.itemsize
        return StoredBox(part.box, item, begin, None if view.is_dense else view.strides)

    def check_copies(self) -> None:
        """Raise CheckpointError where ranks that should hold the same don't."""
        if self._differing:
            raise CheckpointError(
                "copies of tensors differ between ranks: the folder mixes saves, or the ranks of the run"
                " had diverged",
                expected="one CRC-32 for all copies",
                advice=_ADVICE,
                findings=self._differing,
            )
        if self._num_unknown:
            self.notes.append(
                f"{self._num_unknown} copies on other ranks share their storage with more and were not"
                " compared; the first rank's count."
            )

    def files_and_items(self) -> tuple[tuple[str, ...], tuple[StoredItem, ...]]:
        """The files that pieces lie in, and where in them their storages are."""
        keys: defaultdict[int, list[str]] = defaultdict(list)
        for file, key in self._numbers:
            keys[file].append(key)
        number_of = {file: number for number, file in enumerate(sorted(keys))}
        begins = {file: self._archives[file].begins(keys[file]) for file in number_of}
        members = [(file, key, self._archives[file].storages[key]) for file, key in self._numbers]
        items = [StoredItem(number_of[file], begins[file][key], member.length, member.crc)
                 for file, key, member in members]  # fmt: skip
        return tuple(self._names[file] for file in number_of), tuple(items)

    def _compare(self, name: str, first: tuple[int, StoredView], other: tuple[int, StoredView]) -> None:
        crcs = []
        for number, stored in (first, other):
            member = self._archives[number].storages[stored.storage]
            if not stored.view.is_dense or stored.num_bytes != member.length:
                self._num_unknown += 1
                return
            crcs.append((member.crc, stored.dtype))
        if crcs[0] != crcs[1]:
            self._differing.append(f"{name}: {self._names[first[0]]} and {self._names[other[0]]}")


def _other(folder: Path) -> dict[str, tuple[int, int]]:
    """The files that hold no weights."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    for name in sorted(os.listdir(folder)):
        if match := _OTHER.fullmatch(name):
            found["optimizer" if match[1] == "optim" else match[1]].append((folder / name).stat().st_size)
    return {kind: (len(sizes), sum(sizes)) for kind, sizes in found.items()}
