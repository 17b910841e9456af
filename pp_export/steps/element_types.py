"""The element types that an export is asked for, held against what it has."""

from __future__ import annotations

import fnmatch

from pp_export.architecture.accounting import Account
from pp_export.architecture.encodings import Types
from pp_export.core import dtypes
from pp_export.core.dtypes import DType
from pp_export.core.errors import OptionError
from pp_export.options.kinds import ResultOptions
from pp_export.options.texts import parse_types


def types_of(options: ResultOptions) -> Types:
    """The element types that are asked for."""
    patterns = tuple((pattern, _type(name)) for pattern, name in parse_types(options.dtype_of))
    return Types(_type(options.dtype), patterns, options.allow_overflow)


def checked_types(account: Account, types: Types) -> Account:
    """The account, if every pattern of `types` fits a tensor of it; OptionError otherwise."""
    if idle := [pattern for pattern, _ in types.patterns if not fnmatch.filter(account.tensors, pattern)]:
        raise OptionError(
            "--dtype-of has patterns that match no tensor of the export",
            expected=f"Hugging Face names, such as {next(iter(account.tensors))}",
            got=", ".join(idle),
        )
    return account


def _type(name: str) -> DType | None:
    return None if name == "checkpoint" else dtypes.from_torch(name)
