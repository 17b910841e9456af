"""What of a family isn't exported, and why: all of it follows from its table.

MTP layers of which the table has no names; files per rank with parameters of which it isn't known how ranks
cut them; values of settings that the class can't say.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from functools import cache
from operator import itemgetter
from typing import Any

from pp_export.architecture import families, table_files
from pp_export.architecture.families import Family
from pp_export.architecture.rules import Architecture
from pp_export.architecture.units import HOLE
from pp_export.megatron import local_names

MTP, FORMAT, SETTING = "mtp", "format", "setting"
_CUT = "only torch_dist and live models say how tensor parallel ranks cut them"


@dataclass(frozen=True)
class Limit:
    """`kind` is one of the above, `what` is refused, and `why`. A format is refused for parameters with names
    that begin as it says.
    """

    kind: str
    what: str
    why: str


def of(architecture: Architecture) -> tuple[Limit, ...]:
    """All limits of a table."""
    refusal = architecture.mtp_refusal
    limits = [] if refusal is None else [Limit(MTP, "MTP layers", refusal)]
    limits += [Limit(FORMAT, f"legacy torch: {begin}", _CUT) for begin in _uncut(architecture)]
    return (
        *limits,
        *(
            Limit(
                SETTING, f"{name} other than {_shown(required.value)}", required.instead or "no class has it"
            )
            for name, required in architecture.requires.items()
        ),
    )


def _uncut(architecture: Architecture) -> list[str]:
    """What the names of parameters begin with that files per rank can't be put together of."""
    patterns = [rule.megatron for rule in architecture.rules if rule.drop is None]
    uncut = [each.split(".") for each in patterns if local_names.split_of(HOLE.sub("0", each)) is None]
    groups = itertools.groupby(sorted(uncut), key=itemgetter(0))
    return [".".join(_common(list(group))) for _, group in groups]


def _common(names: list[list[str]]) -> list[str]:
    """The parts with which all names begin."""
    return [parts[0] for parts in itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*names))]


def _shown(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@cache
def by_class() -> dict[str, tuple[Limit, ...]]:
    """The limits of all classes that are served."""
    return {family.hf_class: of(table_files.for_class(family.hf_class)) for family in families.families()}


def to_json() -> dict[str, Any]:
    """What `pp_export families --json` prints."""
    told = families.to_json()
    for family in told["families"]:
        family["unsupported"] = [asdict(limit) for limit in by_class()[family["class"]]]
    return {**told, "unserved": table_files.unserved()}


def told(family: Family) -> list[Limit]:
    """Those that are told of a family in a few words: settings have a page of their own, and a class with a
    language model within has the limits of that.
    """
    return [limit for limit in by_class().get(family.hf_class, ()) if limit.kind != SETTING]
