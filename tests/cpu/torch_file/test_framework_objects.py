"""Claims of `pp_export.torch_file`: training args may hold objects of any framework, as inert records;
nothing else of a pickle may, and what hostile pickles use is refused there too.
"""

from __future__ import annotations

import builtins
import collections
import copyreg
import ctypes
import functools
import importlib
import io
import json
import operator
import os
import pathlib
import pickle
import runpy
import shutil
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from pp_export.checkpoint.training_args import split
from pp_export.core.errors import CheckpointError, UnsafePickleError
from pp_export.torch_file import allow_list, archive, inert, unpickler
from tests.fixtures import foreign
from tests.fixtures.foreign import MODULE

PROTOCOLS = (2, 4)
ORIGIN = "common.pt"


@pytest.fixture(autouse=True)
def framework() -> Iterator[None]:
    foreign.place()
    yield
    foreign.forget()


class Call:
    """Pickles as the call of `function` with `arguments`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


def loaded(state: Any, protocol: int = 2) -> Any:
    """`state` as it is read where the framework is not installed."""
    image = pickle.dumps(state, protocol)
    foreign.forget()
    value = unpickler.load(image, ORIGIN, split)
    assert not [name for name in sys.modules if name.startswith("swift")]
    return value


def args_of(protocol: int = 2, **args: Any) -> dict[str, Any]:
    """The args, in a namespace, as JSON values."""
    found = loaded({"args": Namespace(**args)}, protocol)["args"].attributes()
    return dict(json.loads(json.dumps(unpickler.plain(found))))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", foreign.objects())
def test_objects_of_a_framework_are_records(name: str, protocol: int) -> None:
    """Dataclasses, classes, functions, enums, containers, slots, circles: each is read, and becomes JSON."""
    value = args_of(protocol, lr=0.5, it=foreign.objects()[name])
    assert value["lr"] == 0.5
    assert value["it"]


def test_what_becomes_of_them() -> None:
    """Classes and functions are their dotted names, objects their class and what it was called with."""
    assert args_of(**foreign.objects()) == {
        "meta": f"{MODULE}.Meta()",
        "class": f"{MODULE}.Bridge",
        "function": f"{MODULE}.provider",
        "nested": f"{MODULE}.Bridge.Options",
        "of_nested": f"{MODULE}.Bridge.Options()",
        "enum": _enum(),
        "list": f"{MODULE}.Names([1, {_enum()}],)",
        "one": f"{MODULE}.Names([1],)",
        "dict": f"{MODULE}.Tree(){{'a': 1, 'b': {_enum()}}}",
        "set": f"{MODULE}.Marks([1],)",
        "slots": f"{MODULE}.Slotted()",
        "reduced": f"{MODULE}.Reduced([1, 2, 3],){{'k': 4}}",
        "old": f"{MODULE}.Old(builtins.object, None)",
        "method": f"pickle.call({MODULE}.WithMethod(), 'method')",
        "circular": f"{MODULE}.Meta()",
        "factory": {"a": 1},
        "key": {_enum(): 1},
    }


def _enum() -> str:
    """A member, as this Python pickles it: by its value, or by its name."""
    by_name = foreign.Kind.DENSE.__reduce_ex__(2)[0] is getattr
    return f"{MODULE}.Kind.DENSE" if by_name else f"{MODULE}.Kind('dense',)"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_state_is_kept(protocol: int) -> None:
    """A record still has its attributes, of a dict, of slots, and those that lead back to itself."""
    made = {name: foreign.objects()[name] for name in ("meta", "of_nested", "slots", "circular", "list")}
    args = loaded({"args": Namespace(**made)}, protocol)["args"]
    assert (args.meta.kind, args.meta.get("kind")) == (f"{MODULE}.Meta",) * 2
    assert args.meta.attributes()["kind"] == "gpt"
    assert args.meta.bridge.kind == f"{MODULE}.Bridge"
    assert args.of_nested.depth == 3
    assert (args.slots.left, args.slots.right is args.slots) == (1, True)
    assert args.circular.provider[1]["me"] is args.circular


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", foreign.harmless())
def test_values_of_configs_are_records_too(name: str, protocol: int) -> None:
    """Times, numbers, identifiers, activations and initializers may be among the args, and nowhere else."""
    value = foreign.harmless()[name]
    assert args_of(protocol, it=value)["it"]
    for state in ({"args": Namespace(), "it": value}, {"args": Namespace(it=value), "it": [value]}):
        with pytest.raises(UnsafePickleError, match="not on the allow-list outside of the training args"):
            unpickler.load(pickle.dumps(state, protocol), ORIGIN, split)


def test_subnormal_results_are_called_like_functions() -> None:
    """What a pickle calls need not be a class: a bound `partial` or method gives a record of the call."""
    bound = functools.partial(foreign.provider)
    assert args_of(it=Call(bound, 3))["it"] == (f"pickle.call(functools.partial({MODULE}.provider,), 3)")


@pytest.mark.parametrize("name", foreign.objects())
def test_outside_of_args_they_are_refused(name: str) -> None:
    """Beside the args, in tensors, optimizer or model, an object of a framework stops the export, by name."""
    value = foreign.objects()[name]
    for state in (
        {"args": Namespace(a=1), "optimizer": {"deep": [value]}},
        {"args": Namespace(a=value), "model": collections.OrderedDict(a=value)},
        {"args": Namespace(a=1), "optimizer": {(1, value) if name == "class" else "a": [(value,)]}},
        [{"args": Namespace(a=1)}, value],
        value,
    ):
        image = pickle.dumps(state, 2)
        with pytest.raises(
            UnsafePickleError, match="not on the allow-list outside of the training"
        ) as caught:
            unpickler.load(image, ORIGIN, split)
        assert caught.value.where == {"file": ORIGIN}
        with pytest.raises(UnsafePickleError, match="not on the allow-list;"):
            unpickler.load(image, ORIGIN)


@pytest.mark.parametrize(
    "state",
    [
        {"args": Namespace(a=1), "o": collections.defaultdict(foreign.Bridge)},
        {"args": Namespace(a=foreign.Bridge), "o": collections.defaultdict(foreign.Bridge)},
        collections.defaultdict(foreign.provider, {"args": Namespace(a=1)}),  # type: ignore[arg-type]
    ],
)
def test_what_is_dropped_does_not_hide_them(state: Any) -> None:
    """The factory of a defaultdict, which is never looked at, is no place for them either."""
    foreign.place()
    with pytest.raises(UnsafePickleError, match="outside of the training args"):
        loaded(state)


@pytest.mark.parametrize(
    "image",
    [
        b"\x80\x02cswift.x\ny\n0}X\x04\0\0\0args}s.",
        b"\x80\x02}(X\x04\0\0\0args}X\x01\0\0\0ac__builtin__\ngetattr\nu.",
        b"\x80\x02}(X\x04\0\0\0args}X\x01\0\0\0ac__builtin__\ngetattr\ncmegatron.a\nB\nX\x01\0\0\0c\x86Ru.",
    ],
    ids=["named and dropped", "getattr itself", "a member of an allowed class"],
)
def test_nothing_is_named_outside_of_args(image: bytes) -> None:
    """A name that is not found among the args is refused, wherever it was lost."""
    with pytest.raises(UnsafePickleError, match="outside of the training args"):
        unpickler.load(image, ORIGIN, split)


HOSTILE: dict[str, Any] = {
    "system": Call(os.system, "false"),
    "eval": Call(builtins.eval, "1"),
    "exec": Call(builtins.exec, ""),
    "open": Call(open, "/dev/null"),
    "import": Call(__import__, "os"),
    "getattr": Call(getattr, "a", "upper"),
    "getattr of a path": Call(getattr, pathlib.PurePosixPath, "joinpath"),
    "compile": Call(compile, "1", "", "eval"),
    "map": Call(map, foreign.provider, [1]),
    "partial": functools.partial(os.system, "false"),
    "Popen": Call(subprocess.Popen, ["false"]),
    "methodcaller": operator.methodcaller("touch"),
    "attrgetter": operator.attrgetter("a"),
    "import_module": Call(importlib.import_module, "os"),
    "run_path": Call(runpy.run_path, "x"),
    "rmtree": Call(shutil.rmtree, "x"),
    "CDLL": Call(ctypes.CDLL, "x"),
    "sleep": Call(time.sleep, 0),
    "loads": Call(pickle.loads, b""),
    "json": json.loads,
    "torch.load": torch.load,
    "hub": torch.hub.load,
    "Linear": torch.nn.Linear,
    "numpy.load": numpy.load,
    "fromfile": numpy.fromfile,
    "extension": Call(copyreg.add_extension, "a", "b", 1),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", HOSTILE)
def test_what_hostile_pickles_use_is_refused_inside_args_too(name: str, protocol: int) -> None:
    """Of the standard library, torch and numpy only what is listed may be named, also among the args."""
    with pytest.raises(UnsafePickleError, match="not on the allow-list;"):
        unpickler.load(pickle.dumps({"args": Namespace(a=HOSTILE[name])}, protocol), ORIGIN, split)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        *(("commands", "getoutput"), ("imp", "load_source"), ("pipes", "Template"), ("test.support", "run")),
        *(("cloudpickle.cloudpickle", "_make_function"), ("dill._dill", "_create_code"), ("pip", "main")),
        *(("__builtins__", "eval"), ("exceptions", "SystemExit"), ("urllib2", "urlopen"), ("nt", "system")),
        *(("swift.x", "A.__init__"), ("swift.x", "a b"), ("swift.x", ""), ("swift x", "a"), ("", "a")),
        *(("torchgen.x", "a"), ("a/b", "c"), ("x" * 400, "a"), ("megatron.core", "A.__class__")),
    ],
)
def test_no_other_name_passes_for_a_framework(module: str, name: str) -> None:
    """Modules of other Pythons, loaders of code and names that no class has are refused among the args."""
    texts = b"".join(b"X" + len(t).to_bytes(4, "little") + t.encode() for t in (module, name))
    image = b"\x80\x04}X\x04\0\0\0args}X\x01\0\0\0a" + texts + b"\x93ss."
    with pytest.raises(UnsafePickleError, match="not on the allow-list;"):
        unpickler.load(image, ORIGIN, split)


@pytest.mark.parametrize(
    "module", ["swift", "__main__", "transformers_modules.Qwen2.5-7B.configuration_x", "megatron.core.y"]
)
def test_names_of_frameworks_pass(module: str) -> None:
    """Scripts, downloaded code with hyphens and nested classes are what frameworks name."""
    assert allow_list.is_of_args(module, "Outer.Inner")
    assert allow_list.is_of_framework(module) == (not module.startswith("megatron"))


@pytest.mark.parametrize("attribute", ["__class__", "__globals__", "a.b", ""])
def test_no_attribute_is_looked_up(attribute: str) -> None:
    """`getattr` of an inert class makes another inert class, and of private names nothing."""
    text = b"X" + len(attribute).to_bytes(4, "little") + attribute.encode()
    image = b"\x80\x02}X\x04\0\0\0args}X\x01\0\0\0ac__builtin__\ngetattr\ncswift\nA\n" + text + b"\x86Rss."
    with pytest.raises(UnsafePickleError, match=r"builtins\.getattr, which is not on the allow-list;"):
        unpickler.load(image, ORIGIN, split)


def test_without_args_to_look_for_nothing_is_tolerated() -> None:
    """Where there are no training args, as in `.metadata`, records take no items and can't be called."""
    for end in (b"(K\x01K\x02e.", b"K\x01K\x02s.", b"K\x01\x85R."):
        image = b"\x80\x02cmegatron.a\nB\n)\x81" + end
        with pytest.raises(CheckpointError, match="can't be read"):
            unpickler.load(image, ORIGIN)
        whole = b"\x80\x02}X\x04\0\0\0args}X\x01\0\0\0a" + image[2:-1] + b"ss."
        assert unpickler.load(whole, ORIGIN, split)["args"]["a"].kind in ("megatron.a.B", "pickle.call")


def test_text_is_bounded() -> None:
    """However often parts are shared or lead back, and however large a number is, the text is short."""
    kind = inert.kind_of(inert.RecordingObject, "a", "B")
    value = kind()
    for _ in range(60):
        value = kind(*[value] * 9)
    assert len(unpickler.plain({"a": value})["a"]) <= 1000
    circular = kind([])
    circular.args[0].append(circular)
    assert unpickler.plain(circular).startswith("a.B([a.B(")
    assert unpickler.plain([kind(1 << 100_000)]) == ["a.B(...,)"]
    assert unpickler.plain({kind(2): set, "b": slice(kind, 1)}) == {
        "a.B(2,)": "set",
        "b": "('slice', a.B, 1, None)",
    }


def test_everything_is_found_once() -> None:
    """Keys, factories, attributes, classes and what nested classes are in are all reached, circles too."""
    args = loaded({"args": foreign.objects()})["args"]
    kinds = [item.kind for item in inert.everything_in(args) if inert.is_kind(item)]
    expected = {f"{MODULE}.{thing.__name__}" for thing in (*foreign.CLASSES, foreign.provider)}
    assert expected <= set(kinds)
    assert len(kinds) == len(set(kinds))


@pytest.mark.parametrize("is_part", [False, True])
def test_archives_take_them_too(tmp_path: Path, is_part: bool) -> None:
    """A file that torch.save wrote is read with or without objects among its args, as its reader asks."""
    buffer = io.BytesIO()
    torch.save({"args": Namespace(meta=foreign.objects()["meta"]), "x": torch.ones(2)}, buffer)
    foreign.forget()
    path = tmp_path / ORIGIN
    path.write_bytes(buffer.getvalue())
    part = (path, 0, len(buffer.getvalue()))
    if is_part:
        assert archive.read_part(*part, split)["args"].meta.kind == f"{MODULE}.Meta"
    else:
        assert archive.read(path, split).value["args"].meta.kind == f"{MODULE}.Meta"
    with pytest.raises(UnsafePickleError, match=MODULE):
        archive.read_part(*part) if is_part else archive.read(path)
