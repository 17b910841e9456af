"""Which output file each Hugging Face tensor is in, and what the files are called: by layer, by size, or as
in the reference.

A pure function of the tensors and of what the user asked for; ranks, stages and the layout of the checkpoint
have no part in it.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from pp_export.architecture.accounting import Account
from pp_export.architecture.units import Unit
from pp_export.core.file_names import ADAPTER_WEIGHTS, SINGLE_WEIGHTS, number_of, numbered_weights
from pp_export.core.tensors import TensorSpec

LAYERS, SIZE, REFERENCE, ADAPTER = "layers", "size", "reference", "adapter"

_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True)
class Layout:
    """How tensors are cut into files.

    LAYERS: the units of the model, each in files of its own. SIZE: one unit after another, in as few files as
    the limit allows; one file alone is `model.safetensors`. REFERENCE: the files of `weight_map` (tensor ->
    file), whatever their size. ADAPTER: the one file that an adapter has.
    """

    kind: str = LAYERS
    weight_map: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class OutputFile:
    """A file of the folder: its name, its tensors, the first unit that it holds, and how users read which."""

    name: str
    unit: Unit
    label: str
    tensors: Mapping[str, TensorSpec]


def output_files(account: Account, max_bytes: int, layout: Layout) -> list[OutputFile]:
    """The files in the order in which they are made, none of them empty. But for those of a reference they
    have at most `max_bytes`, or one tensor, or those of one source.
    """
    if layout.kind == REFERENCE:
        named = _by_reference(account, layout.weight_map)
    elif layout.kind == ADAPTER:
        named = [(ADAPTER_WEIGHTS, [name for _, group in _groups(account) for name in group])]
    else:
        cut = list(_cut(account, max_bytes, across_units=layout.kind == SIZE))
        is_single = layout.kind == SIZE and len(cut) == 1
        names = [numbered_weights(number, len(cut)) for number in range(1, len(cut) + 1)]
        named = list(zip([SINGLE_WEIGHTS] if is_single else names, cut))
    return [
        OutputFile(name, *_units(account, tensors), {tensor: account.outputs[tensor] for tensor in tensors})
        for name, tensors in named
    ]


def missing_in(account: Account, weight_map: Mapping[str, str]) -> list[str]:
    """The tensors that a reference's files don't have, which lie where their neighbours do."""
    return sorted(set(account.outputs) - weight_map.keys(), key=natural)


def _units(account: Account, tensors: Iterable[str]) -> tuple[Unit, str]:
    found = [account.unit_of[name] for name in tensors]
    first, last = min(found), max(found)
    return first, str(first) if first == last else f"{first} to {last}"


def _groups(account: Account) -> Iterator[tuple[Unit, list[str]]]:
    """HF tensors with a common source, which stay together, so that it travels to one leader only; in file
    order.
    """
    names_of: defaultdict[Unit, list[str]] = defaultdict(list)
    for name, unit in account.unit_of.items():
        names_of[unit].append(name)
    for unit in sorted(names_of):
        groups: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
        for name in names_of[unit]:
            groups[account.sources_of[name]].append(name)
        key = itemgetter(0)
        named = (sorted(((natural(name), name) for name in group), key=key) for group in groups.values())
        for group in sorted(named, key=lambda group: group[0][0]):
            yield unit, [name for _, name in group]


def _cut(account: Account, max_bytes: int, *, across_units: bool) -> Iterator[list[str]]:
    """The tensors of each file, filled in order; a unit begins a new one, or goes on `across_units`."""
    filled: list[str] = []
    size, at = 0, None
    for unit, group in _groups(account):
        group_bytes = sum(account.outputs[name].num_bytes for name in group)
        if filled and (size + group_bytes > max_bytes or (unit != at and not across_units)):
            yield filled
            filled, size = [], 0
        filled += group
        size, at = size + group_bytes, unit
    if filled:
        yield filled


def _by_reference(account: Account, weight_map: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    """The reference's files with the tensors that there are. One that it doesn't have lies in the file of the
    last one before it by name, what is encoded where the tensor is that it is made of. Files that have the
    usual names are numbered anew if some are not needed.
    """
    made_of = {name: min(each.inputs, key=natural) for each in account.encodings for name in each.outputs}
    own = {made_of.get(name, name) for name in account.outputs}
    known = sorted((name for name in own if name in weight_map), key=natural) or sorted(
        weight_map, key=natural
    )
    keys = [natural(name) for name in known]
    tensors_of: defaultdict[str, list[str]] = defaultdict(list)
    for _, group in _groups(account):
        for name in group:
            of = made_of.get(name, name)
            near = of if of in weight_map else known[max(0, bisect_right(keys, natural(of)) - 1)]
            tensors_of[weight_map[near]].append(name)
    files = sorted(tensors_of, key=natural)
    usual = [file for file in files if number_of(file)]
    dense = {file: numbered_weights(number, len(usual)) for number, file in enumerate(usual, start=1)}
    return [(dense.get(file, file), tensors_of[file]) for file in files]


def natural(name: str) -> list[Any]:
    """Sort key in which numbers count as numbers: texts and numbers in turn."""
    parts: list[Any] = _DIGITS.split(name)
    parts[1::2] = map(int, parts[1::2])
    return parts
