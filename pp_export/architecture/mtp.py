"""Layers for multi-token prediction (MTP): what becomes of their tensors, how many there are, who says so.

Megatron numbers them apart from the decoder's (`mtp.layers.{mtp}`), each with a whole layer inside; most
classes of Hugging Face count on from the last layer, and leave them to other servers. So the class itself
says nothing of their tensors: the index of a reference does, where it has any, and else the table alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pp_export.architecture.units import HOLE
from pp_export.core.errors import AccountingError

NUMBERS: Mapping[str, tuple[str, ...]] = {
    "after": ("mtp",),
    "flat": ("mtp", "layer"),
    "first": ("mtp",),
    "last": ("mtp",),
}
"""Holes of Hugging Face names with the holes that they follow from, see `Depths.numbers`."""
_KEYS = {"count", "outer", "inner", "copies"}
_REFUSED = "the table has no rows for them"
_LAYERS = "decoder.layers."
_DECODER, _MTP = _LAYERS + "{layer}.", "mtp.layers.{mtp}."
_INNER = re.compile(r"mtp\.layers\.(\d+)\.(?:\w+\.layers\.(\d+)\.)?")
_ADVICE = "--mtp drop leaves them out, and says so in config.json"


@dataclass(frozen=True)
class Depths:
    """How many layers the decoder has, which MTP layers there are, and how many are inside of each."""

    num_layers: int
    mtp: tuple[int, ...]
    num_inner: int

    @classmethod
    def of(cls, names: Iterable[str]) -> Depths:
        """Those of a checkpoint with these canonical tensors."""
        begin, layers, mtp, inner = len(_LAYERS), set(), set(), {"0"}
        for name in names:
            if name.startswith(_LAYERS):
                layers.add(name[begin:].partition(".")[0])
            elif found := _INNER.match(name):
                mtp.add(int(found[1]))
                inner.add(found[2] or "0")
        return cls(max(map(int, layers), default=-1) + 1, tuple(sorted(mtp)), max(map(int, inner)) + 1)

    def numbers(self, holes: Mapping[str, int]) -> dict[str, int]:
        """Further numbers for a name with these: `after` counts MTP layers on from the decoder's, `flat` all
        that are inside of them, of which `first` and `last` are the ends of one MTP layer.
        """
        mtp = holes["mtp"]
        begin = mtp * self.num_inner
        flat = {"flat": begin + holes["layer"]} if "layer" in holes else {}
        return {"after": self.num_layers + mtp, "first": begin, "last": begin + self.num_inner - 1, **flat}


@dataclass(frozen=True)
class Mtp:
    """What a table says of MTP layers beside its rows. `count` is the key of config.json that counts them, if
    any. `copies` are tensors that stand with each of them although they are the model's own, such as the
    embedding: Hugging Face name, and that of the tensor it equals. `names` are patterns of all of theirs.
    """

    count: str | None
    copies: Mapping[str, str]
    names: tuple[str, ...]

    @cached_property
    def _roots(self) -> tuple[tuple[str, bool], ...]:
        """What their names begin with, and whether a number follows that the decoder's layers have too."""
        found = {}
        for name in self.names:
            root = name.partition("{")[0]
            found[name.partition(".")[0] + "." if root == name else root] = "{after}" in name
        return tuple(found.items())

    def covers(self, name: str, num_layers: int) -> bool:
        """Whether a Hugging Face tensor belongs to MTP layers of a model with so many others."""
        for root, is_numbered in self._roots:
            if name.startswith(root):
                number = name[len(root) :].partition(".")[0]
                if not is_numbered or (number.isdecimal() and int(number) >= num_layers):
                    return True
        return False

    def moved(self, name: str, before: int, now: int) -> str:
        """Where a tensor that it covers stands with `now` other layers, instead of with so many `before`."""
        for root, is_numbered in self._roots:
            if is_numbered and name.startswith(root):
                number, dot, rest = name[len(root) :].partition(".")
                return f"{root}{int(number) - before + now}{dot}{rest}"
        return name

    def copies_of(self, depths: Depths) -> Iterator[tuple[int, str, str]]:
        """MTP layer, name, and the name of the tensor that it equals."""
        for mtp in depths.mtp:
            numbers = {"mtp": mtp, **depths.numbers({"mtp": mtp})}
            for name, of in self.copies.items():
                yield mtp, name.format(**numbers), of


def rows(section: Mapping[str, Any], others: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows that a table's `mtp` stands for: those it gives, and for the layer inside of an MTP layer
    those of the decoder's layers under other names.
    """
    if "refused" in section:
        return []
    outer = [
        {"megatron": _MTP + name, **(hf if isinstance(hf, Mapping) else {"hf": hf})}
        for name, hf in section["outer"].items()
    ]
    inner = section["inner"]
    names = inner.get("names", {})
    return outer + [
        {
            **{key: value for key, value in row.items() if key != "unit"},
            "megatron": inner["megatron"] + row["megatron"].removeprefix(_DECODER),
            **({"hf": _renamed(row["hf"], inner["hf"], names)} if "hf" in row else {}),
        }
        for row in others
        if row["megatron"].startswith(_DECODER)
    ]


def _renamed(hf: Any, root: str, names: Mapping[str, str]) -> Any:
    if isinstance(hf, str):
        module, dot, rest = hf.partition("{layer}.")[2].partition(".")
        return root + names.get(module, module) + dot + rest
    return {role: _renamed(name, root, names) for role, name in hf.items()} if isinstance(hf, dict) else hf


def refusal(section: Mapping[str, Any], holes: Iterable[Iterable[str]]) -> str | None:
    """Why a table can't say where MTP layers go, or None if it can; `holes` are those of its rows."""
    if any("mtp" in each for each in holes):
        return None
    return str(section.get("refused", _REFUSED))


def faults(section: Mapping[str, Any]) -> list[str]:
    """What is wrong in a table's `mtp`."""
    if not section:
        return []
    if "refused" in section:
        reason = section["refused"]
        is_reason = isinstance(reason, str) and reason.strip() and len(section) == 1
        return [] if is_reason else ["mtp: `refused` must give the reason, and stand alone"]
    return _faults_of_rows(section)


def _faults_of_rows(section: Mapping[str, Any]) -> list[str]:
    inner, count = section.get("inner"), section.get("count")
    outer, copies = section.get("outer"), section.get("copies", {})
    if set(section) - _KEYS or not (count is None or isinstance(count, str)):
        return [f"mtp: {dict(section)!r} is not {{count: KEY, outer: ..., inner: ..., copies: ...}}"]
    if not (isinstance(outer, dict) and all(map(_is_outer, outer.items()))):
        return [
            "mtp: `outer` must give a Hugging Face name for each tensor outside of the inner layer, or"
            " {hf: NAME, transform: NAME}"
        ]
    if not (isinstance(inner, dict) and _are_prefixes(inner)):
        return ["mtp: `inner` must be {megatron: PREFIX., hf: PREFIX., names: {NAME: OTHER}}"]
    if not (isinstance(copies, dict) and _are_texts(copies)):
        return ["mtp: `copies` must give a Hugging Face name for each Hugging Face name"]
    known = {"mtp", *(hole for hole, of in NUMBERS.items() if of == ("mtp",))}
    unknown = {hole for name in copies for hole in HOLE.findall(name)} - known
    return [f"mtp: copies: unknown hole {{{hole}}}" for hole in sorted(unknown)]


def _is_outer(entry: tuple[Any, Any]) -> bool:
    name, hf = entry
    texts = hf if isinstance(hf, dict) and set(hf) == {"hf", "transform"} else {name: hf}
    return isinstance(name, str) and _are_texts(texts)


def _are_prefixes(inner: Mapping[str, Any]) -> bool:
    prefixes = {key: value for key, value in inner.items() if key != "names"}
    names = inner.get("names", {})
    is_whole = set(prefixes) == {"megatron", "hf"} and _are_texts(prefixes)
    return is_whole and isinstance(names, dict) and _are_texts(names)


def _are_texts(values: Mapping[Any, Any]) -> bool:
    return all(isinstance(text, str) for pair in values.items() for text in pair)


def settle_count(
    policy: str, depths: Depths, args: Mapping[str, Any] | None, promised: int, refused: str | None = None
) -> int:
    """How many MTP layers the export has, by `--mtp`; `promised` is what config.json says, `refused` why none
    can be exported, if so. Raises AccountingError where there are some then, or where the checkpoint has
    fewer than it was trained with, or than it is to have.
    """
    if policy == "drop":
        return 0
    args = args or {}
    trained = args.get("mtp_num_layers") or 0
    if args.get("mtp_use_repeated_layer"):
        trained = min(trained, 1)
    held = len(depths.mtp)
    if held and refused is not None:
        what = f"MTP layers of this class can't be exported: {refused}"
        raise AccountingError(what, expected="none", got=_counted(held), advice=_ADVICE)
    if depths.mtp != tuple(range(held)):
        raise AccountingError(
            "an MTP layer is missing from the checkpoint",
            expected=f"layers 0 to {max(depths.mtp)}",
            got=f"layers {', '.join(map(str, depths.mtp))}",
            advice=_ADVICE,
        )
    told = _counted(held)
    if isinstance(trained, int) and trained > held:
        what = "MTP layers that were trained are missing from the checkpoint"
        raise AccountingError(what, expected=f"{trained} (mtp_num_layers)", got=told, advice=_ADVICE)
    if promised > held:
        what = "config.json promises MTP layers that the checkpoint doesn't have"
        raise AccountingError(what, expected=f"{promised}, as in the reference", got=told, advice=_ADVICE)
    if policy == "require" and not held:
        what = "the checkpoint has no MTP layers"
        raise AccountingError(what, expected="at least one (--mtp require)", got=told)
    return held


def _counted(held: int) -> str:
    return f"{held} MTP layer{'s' if held != 1 else ''} in the checkpoint"
