"""What a pickle says of objects that are never made, as records, and how these are searched and told.

Making them takes memory in proportion to the pickle: see `allowance`.
"""

from __future__ import annotations

import reprlib
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from pp_export.torch_file.opcodes import MAX_IN_KEY

_PLAIN = (str, int, float, complex, bytes, type(None))
_MAX_DEPTH, _MAX_ITEMS, _MAX_BITS = 4, 6, 4000
_POINTER_BYTES, _MAX_KEY_BITS = 8, 64
_BYTES_PER_BYTE, _BYTES_FREE = 16, 1 << 20

CLASS_BYTES = 1000
"""About what a class takes that stands for one of the pickle."""


class _Allowance(threading.local):
    left: int | None = None


_allowance = _Allowance()


@contextmanager
def allowance(num_bytes: int) -> Iterator[None]:
    """While a pickle of `num_bytes` is read by this thread: what calls in it may copy, all together.

    A pickle names a value again in two bytes, and a call copies all of it.
    """
    _allowance.left = _BYTES_PER_BYTE * num_bytes + _BYTES_FREE
    try:
        yield
    finally:
        _allowance.left = None


def charge(num_bytes: int) -> None:
    """Count what a call takes; ValueError where all calls together take too much for their pickle."""
    if _allowance.left is not None:
        _allowance.left -= num_bytes
        if _allowance.left < 0:
            raise ValueError("calls in it copy the same values again and again, far beyond its size")


def charge_call(args: Collection[object]) -> None:
    """Count the arguments of a call, and what is in them."""
    charge(_POINTER_BYTES * len(args) + sum(map(_num_bytes, args)))


def _num_bytes(value: object) -> int:
    if isinstance(value, (str, bytes)):
        return len(value)
    return _POINTER_BYTES * len(value) if isinstance(value, (list, tuple, dict, set, frozenset)) else 0


def checked_keys(values: Any) -> Any:
    """`values`, if all of them can be hashed in no time."""
    for value in values:
        spelled = [value]
        for item in spelled:  # grows while it is walked
            if isinstance(item, tuple) and len(item) <= MAX_IN_KEY:
                spelled += item
            is_huge = isinstance(item, int) and item.bit_length() > _MAX_KEY_BITS
            if is_huge or (isinstance(item, tuple) and len(item) > MAX_IN_KEY) or len(spelled) > MAX_IN_KEY:
                raise ValueError(f"a key spells out more than {MAX_IN_KEY} values, or is a huge number")
    return values


class InertObject:
    """An object of the pickle as it described itself: the global it named, its arguments and its state.

    `kind` is the global's dotted name, `module` where it is from. Where `is_foreign`, only training args may
    hold it; `outer` is the class that a nested one was reached through.
    """

    kind = ""
    module = ""
    is_foreign = False
    outer: Any = None

    def __new__(cls, *args: object, **named: object) -> InertObject:
        if args or named:
            charge(_POINTER_BYTES * (len(args) + 2 * len(named)))
        found = super().__new__(cls)
        found.__dict__["args"] = args
        if named:
            found.__dict__["named"] = named
        return found

    def __init__(self, *args: object, **named: object) -> None:
        """Arguments are kept by `__new__`, which pickle may call alone."""

    def __setstate__(self, state: object) -> None:
        self.__dict__["state"] = state

    def attributes(self) -> dict[Any, Any] | None:
        """What the object's state says of its attributes; None where it has no such state."""
        state = self.__dict__.get("state")
        if type(state) is dict:
            return state
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
            first = state[0] if isinstance(state[0], dict) else {}
            state = first | state[1]  # an object with __slots__ pickles as (dict, slots)
        return state if isinstance(state, dict) else None

    def __getattr__(self, name: str) -> Any:
        """Attribute `name`; who wants several of one of very many objects takes its `attributes`."""
        attributes = self.attributes()
        if attributes is not None and name in attributes:
            return attributes[name]
        raise AttributeError(name)

    def get(self, name: str, default: Any = None) -> Any:
        """Attribute `name` of the pickled object, or `default`."""
        return getattr(self, name, default)

    def __repr__(self) -> str:
        return text(self)


class RecordingObject(InertObject):
    """An inert object that also keeps what a pickle puts into a list, set or dict of a class of its own, and
    that may be called, as bound methods are.
    """

    def append(self, item: object) -> None:
        self.extend([item])

    def extend(self, items: Any) -> None:
        self.__dict__.setdefault("items", []).extend(items)

    add = append

    def __setitem__(self, key: object, value: object) -> None:
        self.__dict__.setdefault("pairs", []).append((key, value))

    def __call__(self, *args: object, **named: object) -> Any:
        return RESULT(self, *args, **named)


class InertDict(dict[Any, Any]):
    """A dict subclass of the standard library: its items count, factory and attributes are kept unread."""

    def __new__(cls, *args: object) -> InertDict:
        found = super().__new__(cls)
        found.__dict__["args"] = args
        return found

    def __init__(self, *args: object) -> None:
        super().__init__(_items(args[0]) if args else ())

    def __setstate__(self, state: object) -> None:
        self.__dict__["state"] = state


def _items(first: object) -> Any:
    """What a dict is made of: another one, or a list of pairs."""
    if isinstance(first, list):
        checked_keys(pair[0] for pair in first)
    charge_call((first,))
    return first if isinstance(first, (dict, list)) else ()


def kind_of(base: type[InertObject], module: str, name: str, **fields: object) -> type[Any]:
    """A class of inert objects that stand for those of the global `name` of `module`."""
    return type(name, (base,), {"kind": f"{module}.{name}", "module": module, **fields})


RESULT: type[Any] = kind_of(RecordingObject, "pickle", "call", is_foreign=True)


def is_kind(value: object) -> bool:
    """Whether `value` stands for a class or a function that a pickle names."""
    return isinstance(value, type) and issubclass(value, InertObject)


def attribute_of(holder: Any, name: str) -> Any:
    """What stands for attribute `name` of an inert class (a class or a member in it) or object (a method);
    LookupError where `holder` is neither.
    """
    if is_kind(holder):
        charge(CLASS_BYTES + len(holder.kind) + len(name))
        nested = kind_of(RecordingObject, holder.kind, name, is_foreign=True, outer=holder)
        nested.module = holder.module
        return nested
    if isinstance(holder, RecordingObject):
        return RESULT(holder, name)
    raise LookupError(name)


def everything_in(*values: Any) -> Iterator[Any]:
    """All that values of the pickle refer to, however deep, each once, but for numbers and texts."""
    seen: set[int] = set()
    left = list(values)
    while left:
        item = left.pop()
        if isinstance(item, _PLAIN) or id(item) in seen:
            continue
        seen.add(id(item))
        yield item
        if isinstance(item, type):
            left.append(getattr(item, "outer", None))
            continue
        if isinstance(item, dict):
            left += item.keys()
            left += item.values()
        elif isinstance(item, (list, tuple, set, frozenset)):
            left += item
        elif isinstance(item, slice):
            left += [item.start, item.stop, item.step]
        if isinstance(item, (InertObject, InertDict)):
            left.append(type(item))
            left += item.__dict__.values()


def text(value: object, depth: int = _MAX_DEPTH) -> str:
    """`value` in a few words, however large or circular it is: classes and functions are their names."""
    if isinstance(value, type):
        return str(getattr(value, "kind", "") or value.__name__)
    if isinstance(value, slice):
        value = ("slice", value.start, value.stop, value.step)
    if isinstance(value, InertObject):
        items = value.__dict__.get("items")
        told = text((*value.args, *([] if items is None else [items])), depth)
        return (
            value.kind + told + (_pairs(value.__dict__["pairs"], depth) if "pairs" in value.__dict__ else "")
        )
    if isinstance(value, dict):
        return _pairs(value.items(), depth)
    if isinstance(value, (list, tuple, set, frozenset)):
        return _sequence(value, depth)
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        return "..."  # Python does not spell out numbers of that size
    return reprlib.repr(value)


def _sequence(items: Collection[object], depth: int) -> str:
    opening, closing = "[]" if isinstance(items, list) else "()" if isinstance(items, tuple) else "{}"
    told = _listed((text(item, depth - 1) for item in items), len(items), depth)
    return opening + told + ("," if isinstance(items, tuple) and len(items) == 1 else "") + closing


def _listed(texts: Iterator[str], count: int, depth: int) -> str:
    if depth <= 0 and count:
        return "..."
    shown = [each for each, _ in zip(texts, range(_MAX_ITEMS))]
    return ", ".join([*shown, "..."] if count > _MAX_ITEMS else shown)


def _pairs(pairs: Collection[tuple[object, object]], depth: int) -> str:
    texts = (f"{text(key, depth - 1)}: {text(item, depth - 1)}" for key, item in pairs)
    return f"{{{_listed(texts, len(pairs), depth)}}}"
