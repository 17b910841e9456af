"""What a user can ask of a checkpoint that is compared: as what it is taken, as in an export."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pp_export.options.kinds import NO_OUTPUT, ExportOptions, Options, option_of
from pp_export.options.texts import parse_bytes, parse_types
from pp_export.options.values import check_keys, options_from

SHARD_SIZE = "256MB"
"""What is assembled and compared at once. Nothing is written, so no file's size is at stake."""


def _same(name: str) -> Any:
    """An option of an export."""
    option = ExportOptions.__dataclass_fields__[name]
    return dataclasses.field(default=option.default, metadata=option.metadata)


@dataclass(frozen=True, kw_only=True)
class SideOptions(Options):
    """The options of an export that say what a side is, if it is a checkpoint, and as what it is compared."""

    reference: Path | None = option_of(
        "Hugging Face folder of a checkpoint's model; default: the other side, if that is a folder", None
    )
    architecture: str | None = _same("architecture")
    iteration: int | None = option_of("iteration to compare; default: the tracker file's", None)
    weights: str = _same("weights")
    check_source: bool = _same("check_source")
    dtype: str = _same("dtype")
    dtype_of: str | None = _same("dtype_of")
    allow_overflow: bool = _same("allow_overflow")
    mtp: str = _same("mtp")
    vocab_size: int | None = _same("vocab_size")
    memory_limit: str | None = option_of(
        "memory that the comparison of a checkpoint may take: the less, the fewer shards are in flight at"
        " once; default: a quarter of the node's memory",
        None,
    )
    cache: bool = _same("cache")

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_types(self.dtype_of)
        if self.memory_limit is not None:
            parse_bytes(self.memory_limit, "--memory-limit")

    def export_of(self, checkpoint: Path, other: Path | None) -> ExportOptions:
        """The options of an export of `checkpoint`, of whose model the folder `other` is, if none is named.
        What config.json says is not corrected there but told, so the checkpoint decides.
        """
        values = {option.name: getattr(self, option.name) for option in dataclasses.fields(self)}
        values["reference"] = self.reference or other
        return ExportOptions(
            **values,
            checkpoint=checkpoint,
            output=NO_OUTPUT,
            config_from="checkpoint",
            layout="layers",
            max_shard_size=SHARD_SIZE,
            code=False,
        )


def sides_from(
    common: Mapping[str, Any], of_a: Mapping[str, Any], of_b: Mapping[str, Any]
) -> tuple[SideOptions, SideOptions]:
    """The options of both sides: the `common` ones, and over these those of each. Raises OptionError."""
    known = [option.name for option in dataclasses.fields(SideOptions)]
    for side, values in (("A", of_a), ("B", of_b)):
        check_keys(values, known, f"options of {side}")
    return (
        options_from({**common, **of_a}, "options of A", SideOptions),
        options_from({**common, **of_b}, "options of B", SideOptions),
    )
