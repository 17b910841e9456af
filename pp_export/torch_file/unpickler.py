"""Reads the pickles of a checkpoint as data.

Nothing that a pickle names is ever imported. A global is looked up in the table below: a few become plain
Python values, all others become inert objects that remember what they were called with. A name outside the
table stops the export. The names are those that megatron-core and torch write
(torch/distributed/checkpoint/metadata.py, torch/serialization.py, megatron/core/safe_globals.py).
"""

from __future__ import annotations

import io
import itertools
import pickle
import posixpath
import reprlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

from pp_export.core import dtypes
from pp_export.core.errors import CheckpointError, UnsafePickleError


class InertObject:
    """An object of the pickle as it described itself: the global it named, its arguments and its state."""

    kind = ""

    def __new__(cls, *args: object) -> InertObject:
        found = super().__new__(cls)
        found.__dict__["args"] = args
        return found

    def __init__(self, *args: object) -> None:
        """Arguments are kept by `__new__`, which pickle may call alone."""

    def __setstate__(self, state: object) -> None:
        self.__dict__["state"] = state

    def __getattr__(self, name: str) -> Any:
        state = self.__dict__.get("state")
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
            state = (state[0] or {}) | state[1]  # an object with __slots__ pickles as (dict, slots)
        if isinstance(state, dict) and name in state:
            return state[name]
        raise AttributeError(name)

    def get(self, name: str, default: Any = None) -> Any:
        """Attribute `name` of the pickled object, or `default`."""
        return getattr(self, name, default)

    def __repr__(self) -> str:
        return f"{self.kind}{reprlib.repr(self.__dict__.get('args', ()))}"


class _InertDict(dict[Any, Any]):
    def __new__(cls, *args: object) -> _InertDict:
        return super().__new__(cls)

    def __init__(self, *args: object) -> None:
        super().__init__(args[0] if args and isinstance(args[0], (dict, list)) else ())

    def __setstate__(self, state: object) -> None:
        """Attributes of a dict subclass carry nothing that is needed."""


class _Function:
    """A function of ours that a pickle may call. Its BUILD opcode could set attributes of a plain one."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: object) -> Any:
        return self._function(*args)

    def __setstate__(self, state: object) -> None:
        raise UnsafePickleError("the pickle tries to change a function that it names; nothing of it was run")


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise UnsafePickleError(f"a pickle asks for the codec {encoding!r}", expected="latin1")
    return text.encode("latin1")


def _size(dims: Any = ()) -> tuple[int, ...]:
    return tuple(int(dim) for dim in dims)


def _layout(name: str) -> str:
    return name


def _path(*parts: str) -> str:
    """Releases of Python pickle a path as its parts, or as they were joined."""
    return posixpath.join("", *map(str, parts))


def _signal(number: int) -> str:
    """The name of a signal. Releases before 3.11 pickle it as a global of its module (see `find_class`)."""
    return next((known.name for known in signal.Signals if known == number), f"signal {number}")


_VALUES: dict[tuple[str, str], Any] = {
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "slice"): slice,
    ("builtins", "complex"): complex,
    ("collections", "OrderedDict"): _InertDict,
    ("collections", "defaultdict"): _InertDict,
    ("_codecs", "encode"): _Function(_encode),
    **{
        (module, name): _Function(_path)
        for module in ("pathlib", "pathlib._local")  # the second from Python 3.13 on
        for name in ("PosixPath", "PurePosixPath", "Path")
    },
    ("signal", "Signals"): _Function(_signal),
    **{("signal", known.name): known.name for known in signal.Signals},
    ("torch", "Size"): _Function(_size),
    ("torch.serialization", "_get_layout"): _Function(_layout),
}

_INERT: dict[str, tuple[str, ...]] = {
    "argparse": ("Namespace",),
    "types": ("SimpleNamespace",),
    "_io": ("BytesIO",),
    "torch": (
        "device",
        "Tensor",
        *(
            f"{kind}Storage"
            for kind in [
                "Float",
                "Half",
                "BFloat16",
                "Double",
                "Byte",
                "Char",
                "Short",
                "Int",
                "Long",
                "Bool",
            ]
        ),
    ),
    "torch.storage": ("UntypedStorage", "TypedStorage", "_load_from_bytes"),
    "torch._utils": (
        *("_rebuild_tensor_v2", "_rebuild_tensor_v3"),
        *("_rebuild_parameter", "_rebuild_parameter_with_state"),
    ),
    "torch._tensor": ("_rebuild_from_type_v2",),
    "torch._C": ("Generator",),
    "torch.distributed.checkpoint.metadata": (
        *(
            "Metadata",
            "TensorStorageMetadata",
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "TensorProperties",
        ),
        *("_MEM_FORMAT_ENCODING", "MetadataIndex", "StorageMeta"),
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo", "_StoragePrefix"),
    "torch.distributed.checkpoint.planner": (
        *("SavePlan", "WriteItem", "WriteItemType", "TensorWriteData", "BytesIOWriteData"),
    ),
    "torch.distributed._shard.sharded_tensor.metadata": ("TensorProperties", "MEM_FORMAT_ENCODING"),
    "numpy": ("ndarray", "dtype"),
    "numpy.dtypes": ("UInt32DType",),
    "numpy.core.multiarray": ("_reconstruct", "scalar"),
    "numpy._core.multiarray": ("_reconstruct", "scalar"),
}
_MAX_VALUES, _MAX_TEXT = 1_000_000, 1000
_INERT_PREFIXES = ("megatron.",)  # enums and plan classes of any release; inert, they run nothing


class _AllowListUnpickler(pickle.Unpickler):
    def __init__(self, data: bytes, origin: str) -> None:
        super().__init__(io.BytesIO(data))
        self._origin = origin
        self._kinds: dict[tuple[str, str], type[InertObject]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "__builtin__":  # what protocols below 3, which torch.save uses, call it
            module = "builtins"
        if (module, name) in _VALUES:
            return _VALUES[module, name]
        if module == "torch" and dtypes.is_torch_name(name):
            return name
        if name in _INERT.get(module, ()) or (module.startswith(_INERT_PREFIXES) and name.isidentifier()):
            if (module, name) not in self._kinds:
                self._kinds[module, name] = type(name, (InertObject,), {"kind": f"{module}.{name}"})
            return self._kinds[module, name]
        raise UnsafePickleError(
            f"the pickle names {module}.{name}, which is not on the allow-list; nothing of it was run",
            where={"file": self._origin},
            expected="only what torch and megatron-core write into a checkpoint",
            got=f"{module}.{name}",
            advice="do not load this file with torch either, unless you trust who wrote it",
        )

    def persistent_load(self, pid: Any) -> Any:
        return pid


def load(data: bytes, origin: str) -> Any:
    """The value that the pickle `data` describes, made of plain values and inert objects; `origin` is named
    in errors.
    """
    find: Callable[[], Any] = _AllowListUnpickler(data, origin).load
    try:
        return find()
    except UnsafePickleError as error:
        raise error.at(file=origin) from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise CheckpointError(
            f"the pickle can't be read: {type(error).__name__}: {error}",
            where={"file": origin},
            advice="the file is damaged or not finished; save or copy the checkpoint again",
        ) from error


def plain(value: Any) -> Any:
    """`value` as JSON: inert objects become the text of their name and arguments, tuples and sets become
    lists.
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
        return {str(key): _plain(item, visited) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item, visited) for item in value]
    return repr(value)[:_MAX_TEXT]
