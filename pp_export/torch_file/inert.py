"""What a pickle says of objects that are never made, as records, and how these are searched and told."""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Iterator
from typing import Any

_PLAIN = (str, int, float, complex, bytes, type(None))
_MAX_DEPTH, _MAX_ITEMS, _MAX_BITS = 4, 6, 4000


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
        super().__init__(args[0] if args and isinstance(args[0], (dict, list)) else ())

    def __setstate__(self, state: object) -> None:
        self.__dict__["state"] = state


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
