"""Which globals a pickle may name, and what they stand for. Nothing in here is ever imported for a pickle.

The names of `VALUES` and `INERT` are those that megatron-core and torch write into a checkpoint
(torch/distributed/checkpoint/metadata.py, torch/serialization.py, megatron/core/safe_globals.py). Training
args hold objects of whatever framework made them besides: of any module, but of the standard library, torch
and numpy only what is listed in `IN_ARGS`.
"""

from __future__ import annotations

import posixpath
import re
import signal
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable
from typing import Any

from pp_export.core.errors import UnsafePickleError
from pp_export.torch_file import inert


class Function:
    """A function of ours that a pickle may call. Its BUILD opcode could set attributes of a plain one."""

    __slots__ = ("_function", "_name", "is_foreign")

    def __init__(self, name: str, function: Callable[..., Any], *, is_foreign: bool = False) -> None:
        self._name, self._function, self.is_foreign = name, function, is_foreign

    def __call__(self, *args: object) -> Any:
        inert.charge_call(args)
        return self._function(*args)

    def __repr__(self) -> str:
        return self._name

    def __setstate__(self, state: object) -> None:
        raise UnsafePickleError("the pickle tries to change a function that it names; nothing of it was run")


def refused(name: str, where: str = "") -> UnsafePickleError:
    """For a pickle that names the global `name`."""
    return UnsafePickleError(
        f"the pickle names {name}, which is not on the allow-list{where}; nothing of it was run",
        expected="only what torch and megatron-core write into a checkpoint",
        got=name,
        advice="do not load this file with torch either, unless you trust who wrote it",
    )


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise UnsafePickleError(f"a pickle asks for the codec {encoding!r}", expected="latin1")
    return text.encode("latin1")


def _size(dims: Any = ()) -> tuple[int, ...]:
    if not isinstance(dims, tuple):  # whose length `opcodes` knows
        raise ValueError("a torch.Size is made of what is no tuple")
    return tuple(map(int, dims))


def _set(*of: Any) -> set[Any]:
    return set(*map(inert.checked_keys, of))


def _frozenset(*of: Any) -> frozenset[Any]:
    return frozenset(*map(inert.checked_keys, of))


def _layout(name: str) -> str:
    return name


def _path(*parts: str) -> str:
    """Releases of Python pickle a path as its parts, or as they were joined."""
    return posixpath.join("", *map(str, parts))


def _signal(number: int) -> str:
    """The name of a signal. Releases before 3.11 pickle it as a global of its module (see `VALUES`)."""
    return next((known.name for known in signal.Signals if known == number), f"signal {number}")


def _attribute(holder: object, name: str) -> Any:
    """How protocol 2 pickles nested classes and methods, and Python 3.11 members of enums. No attribute of
    anything is looked up.
    """
    if not (isinstance(name, str) and _is_public(name)):
        raise refused("builtins.getattr")
    try:
        return inert.attribute_of(holder, name)
    except LookupError:
        raise refused("builtins.getattr") from None


def _nested(holder: Any, name: object) -> Any:
    """How protocol 2 pickles a nested class: of those that torch stores with a tensor."""
    if (getattr(holder, "kind", ""), name) not in _NESTED or not inert.is_kind(holder):
        raise refused("builtins.getattr")
    inert.charge(inert.CLASS_BYTES)
    return inert.kind_of(inert.InertObject, holder.kind, str(name))


def _reconstructed(kind: Any, *rest: object) -> Any:
    """How an object of a class with a `__reduce__` of its own pickles, that falls back on `object`'s."""
    if not (inert.is_kind(kind)):
        raise refused("copyreg._reconstructor")
    return kind(*rest)


VALUES: dict[tuple[str, str], Any] = {
    ("builtins", "set"): Function("builtins.set", _set),
    ("builtins", "frozenset"): Function("builtins.frozenset", _frozenset),
    ("builtins", "slice"): slice,
    ("builtins", "complex"): complex,
    ("collections", "OrderedDict"): inert.InertDict,
    ("collections", "defaultdict"): inert.InertDict,
    ("_codecs", "encode"): Function("_codecs.encode", _encode),
    **{
        (module, name): Function(f"{module}.{name}", _path)
        for module in ("pathlib", "pathlib._local")  # the second from Python 3.13 on
        for name in ("PosixPath", "PurePosixPath", "Path")
    },
    ("signal", "Signals"): Function("signal.Signals", _signal),
    **{("signal", known.name): known.name for known in signal.Signals},
    ("torch", "Size"): Function("torch.Size", _size),
    ("torch.serialization", "_get_layout"): Function("torch.serialization._get_layout", _layout),
}

INERT: dict[str, tuple[str, ...]] = {
    "argparse": ("Namespace",),
    "types": ("SimpleNamespace",),
    "_io": ("BytesIO",),
    "torch": (
        *("device", "Tensor"),
        *("FloatStorage", "HalfStorage", "BFloat16Storage", "DoubleStorage", "ByteStorage", "CharStorage"),
        *("ShortStorage", "IntStorage", "LongStorage", "BoolStorage"),
    ),
    "torch.storage": ("UntypedStorage", "TypedStorage", "_load_from_bytes"),
    "torch._utils": (
        *("_rebuild_tensor_v2", "_rebuild_tensor_v3"),
        *("_rebuild_parameter", "_rebuild_parameter_with_state", "_rebuild_wrapper_subclass"),
    ),
    "torch._tensor": ("_rebuild_from_type_v2",),
    "torch._C": ("Generator",),
    "torch.distributed.checkpoint.metadata": (
        *("Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata"),
        *("TensorProperties", "_MEM_FORMAT_ENCODING", "MetadataIndex", "StorageMeta"),
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo", "_StoragePrefix"),
    "torch.distributed.checkpoint.planner": (
        *("SavePlan", "WriteItem", "WriteItemType", "TensorWriteData", "BytesIOWriteData"),
    ),
    "torch.distributed._shard.sharded_tensor.metadata": (
        *("TensorProperties", "MEM_FORMAT_ENCODING", "ShardedTensorMetadata"),
    ),
    # What a rank of FSDP holds of a tensor, under the names that releases since 2.0 give it.
    **{
        f"torch.distributed.{tensor}": ("DTensor", "DTensorSpec", "TensorMeta", "ShardOrderEntry")
        for tensor in ("tensor", "tensor._dtensor_spec", "tensor._api", "_tensor", "_tensor.api")
    },
    **{
        f"torch.distributed.{tensor}.placement_types": (
            *("Shard", "_StridedShard", "Replicate", "Partial", "_Partial", "DTensorSpec", "TensorMeta"),
        )
        for tensor in ("tensor", "_tensor")
    },
    "torch.distributed._mesh_layout": ("_MeshLayout", "_FlatLayout"),
    "torch.distributed.device_mesh": ("DeviceMesh",),
    "torch.distributed._device_mesh": ("DeviceMesh",),
    "torch.distributed._shard.metadata": ("ShardMetadata",),
    "torch.distributed._shard.sharded_tensor.api": ("ShardedTensor",),
    "torch.distributed._shard.sharded_tensor.shard": ("Shard",),
    "torch.distributed._shard.sharding_spec.chunk_sharding_spec": ("ChunkShardingSpec",),
    "torch.distributed._shard.sharding_spec.api": ("EnumerableShardingSpec",),
    "torch.distributed.remote_device": ("_remote_device",),
    "numpy": ("ndarray", "dtype"),
    "numpy.dtypes": ("UInt32DType",),
    "numpy.core.multiarray": ("_reconstruct", "scalar"),
    "numpy._core.multiarray": ("_reconstruct", "scalar"),
}
_INERT_PREFIXES = ("megatron.",)  # enums and plan classes of any release; inert, they run nothing

# Values of configs: times, numbers, identifiers, containers; types that a field may have; the activations and
# initializers that a TransformerConfig holds, bound to their arguments by `partial`.
IN_ARGS: dict[str, tuple[str, ...]] = {
    "builtins": ("object", "bool", "int", "float", "str", "bytes", "list", "tuple", "dict", "range"),
    "collections": ("deque", "Counter"),
    "datetime": ("date", "datetime", "time", "timedelta", "timezone"),
    "decimal": ("Decimal",),
    "fractions": ("Fraction",),
    "functools": ("partial",),
    "uuid": ("UUID", "SafeUUID"),
    "torch._C": ("_VariableFunctionsClass",),
    "torch._C._nn": ("gelu", "softplus"),
    "torch.nn.functional": ("gelu", "relu", "sigmoid", "silu", "softplus", "tanh"),
    "torch.nn.modules.activation": ("GELU", "ReLU", "Sigmoid", "SiLU", "Tanh"),
    "torch.nn.init": (
        *("constant_", "kaiming_normal_", "kaiming_uniform_", "normal_", "ones_", "trunc_normal_"),
        *("uniform_", "xavier_normal_", "xavier_uniform_", "zeros_"),
    ),
}
_NESTED = {("torch.distributed._shard.sharded_tensor.api.ShardedTensor", "ProcessGroupState")}
FUNCTIONS: dict[tuple[str, str], Function] = {
    ("builtins", "getattr"): Function("builtins.getattr", _nested),
}
"""What a pickle may call that is refused for nearly all arguments; in args, the next ones come first."""

FUNCTIONS_IN_ARGS: dict[tuple[str, str], Function] = {
    ("builtins", "getattr"): Function("builtins.getattr", _attribute, is_foreign=True),
    ("copyreg", "_reconstructor"): Function("copyreg._reconstructor", _reconstructed, is_foreign=True),
}

# What is no framework: the standard library of any Python, torch and numpy, and what exists to run things.
_NO_FRAMEWORKS = {
    *sys.stdlib_module_names,
    *("aifc", "asynchat", "asyncore", "audioop", "binhex", "cgi", "cgitb", "chunk", "compression", "crypt"),
    *("distutils", "imghdr", "imp", "lib2to3", "mailcap", "msilib", "nis", "nntplib", "ossaudiodev", "pipes"),
    *("smtpd", "sndhdr", "spwd", "sunau", "telnetlib", "test", "tomllib", "uu", "xdrlib", "exceptions"),
    *("torch", "torchgen", "functorch", "caffe2", "numpy"),
    *("cloudpickle", "dill", "joblib", "pip", "pkg_resources", "setuptools"),
}
_MODULE = re.compile(r"[\w.-]{1,300}")  # modules of downloaded code have hyphens in their names


def known_as(module: str, name: str) -> tuple[str, str]:
    """What Python 3 calls a global that may have the name of Python 2, as protocols below 3 write it, which
    torch.save uses.
    """
    return NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))


def is_inert(module: str, name: str) -> bool:
    """Whether the global may be named anywhere, and stands for a record."""
    return name in INERT.get(module, ()) or (module.startswith(_INERT_PREFIXES) and name.isidentifier())


def is_of_args(module: str, name: str) -> bool:
    """Whether the global may be named by training args, and stands for a record."""
    if name in IN_ARGS.get(module, ()):
        return True
    top = module.partition(".")[0]
    is_private = top.startswith("__") and top not in ("__main__", "__mp_main__")
    return (
        bool(_MODULE.fullmatch(module))
        and top not in _NO_FRAMEWORKS
        and not is_private
        and all(map(_is_public, name.split(".")))
    )


def is_of_framework(module: str) -> bool:
    """Whether objects of `module` are worth a word to the user."""
    return module.partition(".")[0] not in {*_NO_FRAMEWORKS, "megatron", "pickle"}


def _is_public(name: str) -> bool:
    return name.isidentifier() and not name.startswith("__")
