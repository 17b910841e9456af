"""Reads the pickles of a checkpoint as data.

Nothing that a pickle names is ever imported. A global is looked up in `allow_list`: a few become plain Python
values, all others become inert objects that remember what they were called with. A name outside the list
stops the export. Training args may name what frameworks put there, and nothing else may.
"""

from __future__ import annotations

import io
import itertools
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pp_export.core import dtypes
from pp_export.core.collector import paused_collector
from pp_export.core.errors import CheckpointError, UnsafePickleError
from pp_export.torch_file import allow_list, inert, opcodes
from pp_export.torch_file.inert import InertObject, RecordingObject

Split = Callable[[Any], tuple[Sequence[Any], Sequence[Any]]]
"""What of a pickle's value is of the training args, and all the rest."""

MAX_BYTES = 4 << 30
"""No larger pickle is read: a million boxes take 150 MB of `.metadata`."""

_MAX_VALUES, _MAX_TEXT = 1_000_000, 1000


class _AllowListUnpickler(pickle.Unpickler):
    def __init__(self, data: bytes, *, has_args: bool) -> None:
        super().__init__(io.BytesIO(data))
        self._has_args = has_args
        self._kinds: dict[tuple[str, str], type[InertObject]] = {}
        self.foreign: list[Any] = []  # classes that only args may name, None for a function

    def find_class(self, module: str, name: str) -> Any:
        known = allow_list.known_as(module, name)
        if known in allow_list.VALUES:
            return allow_list.VALUES[known]
        if known[0] == "torch" and dtypes.is_torch_name(name):
            return name
        if allow_list.is_inert(*known):
            return self._kind(*known, is_foreign=False)
        if self._has_args and known in allow_list.FUNCTIONS_IN_ARGS:
            self.foreign.append(None)
            return allow_list.FUNCTIONS_IN_ARGS[known]
        if known in allow_list.FUNCTIONS:
            return allow_list.FUNCTIONS[known]
        if self._has_args and allow_list.is_of_args(*known):
            return self._kind(*known, is_foreign=True)
        raise allow_list.refused(f"{'builtins' if module == '__builtin__' else module}.{name}")

    def _kind(self, module: str, name: str, *, is_foreign: bool) -> type[InertObject]:
        if (module, name) not in self._kinds:
            base = RecordingObject if self._has_args else InertObject
            inert.charge(inert.CLASS_BYTES)
            kind = inert.kind_of(base, module, name, is_foreign=is_foreign)
            self._kinds[module, name] = kind
            self.foreign += [kind] if is_foreign else []
        return self._kinds[module, name]

    def persistent_load(self, pid: Any) -> Any:
        return pid


def load(data: bytes, origin: str, split: Split | None = None) -> Any:
    """The value that the pickle `data` describes, made of plain values and inert objects; `origin` is named
    in errors.

    With `split`, which finds the training args in it, these may hold objects of any framework. Time and
    memory are in proportion to the pickle: `opcodes` and `inert.allowance` refuse what takes more.
    """
    unpickler = _AllowListUnpickler(data, has_args=split is not None)
    find: Callable[[], Any] = unpickler.load
    try:
        opcodes.check(data)
        with paused_collector(), inert.allowance(len(data)):
            value = find()
        if split is not None and unpickler.foreign:
            _check_foreign(unpickler.foreign, *split(value))
        return value
    except UnsafePickleError as error:
        raise error.at(file=origin) from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise CheckpointError(
            f"the pickle in the file can't be read: {type(error).__name__}: {error}",
            where={"file": origin},
            advice="the file is damaged or not finished; save or copy the checkpoint again",
        ) from error


def _check_foreign(named: Sequence[Any], args: Sequence[Any], rest: Sequence[Any]) -> None:
    """Raise UnsafePickleError unless all that only training args may hold is in them, and in them alone."""
    outside = [item for item in inert.everything_in(*rest) if getattr(item, "is_foreign", None) is True]
    inside = {id(item) for item in inert.everything_in(*args)}
    found = [*outside, *(kind for kind in named if kind is not None and id(kind) not in inside)]
    if found:
        raise allow_list.refused(str(getattr(found[0], "kind", found[0])), " outside of the training args")


def plain(value: Any) -> Any:
    """`value` as JSON: inert objects become the text of their name and arguments, classes and functions their
    names, tuples and sets become lists.
    """
    try:
        return _plain(value, itertools.count())
    except RecursionError:
        raise CheckpointError("the training args nest without end; the file is damaged") from None


def _plain(value: Any, visited: Iterator[int]) -> Any:
    if next(visited) > _MAX_VALUES:  # parts that are shared can multiply without end
        raise CheckpointError("the training args are too large", expected=f"at most {_MAX_VALUES} values")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict):
        return {_key(key): _plain(item, visited) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item, visited) for item in value]
    return inert.text(value)[:_MAX_TEXT]


def _key(key: Any) -> str:
    is_simple = key is None or isinstance(key, (bool, int, float, str))
    return str(key) if is_simple else inert.text(key)[:_MAX_TEXT]
