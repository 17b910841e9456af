"""Claims of `pp_export.torch_file.unpickler`: a pickle is read as data, and nothing that it names is ever
run.
"""

from __future__ import annotations

import argparse
import builtins
import collections
import functools
import io
import json
import operator
import os
import pathlib
import pickle
import pickletools
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import (
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from pp_export.checkpoint.formats import describe_checkpoint
from pp_export.core.errors import CheckpointError, UnsafePickleError
from pp_export.torch_file import unpickler
from pp_export.torch_file.inert import InertDict, InertObject
from tests.fixtures.audit.watch import BAIT
from tests.fixtures.models import MODELS
from tests.fixtures.stored import write_stored

Checkpoint = Callable[[str, str], Path]
ORIGIN = "some/.metadata"


class Call:
    """Pickles as the call of `function` with `arguments`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


def payloads(marker: Path) -> dict[str, Any]:
    """Objects that write `marker` when any ordinary unpickler meets them; the global that each must name
    first.
    """
    touch = f"touch {marker}"
    python = f"open({str(marker)!r}, 'w').close()"
    return {
        "posix.system": Call(os.system, touch),
        "builtins.eval": Call(builtins.eval, python),
        "builtins.exec": Call(builtins.exec, python),
        "functools.partial": Call(functools.partial(os.system, touch)),
        "subprocess.Popen": Call(subprocess.Popen, ["touch", str(marker)]),
        "operator.methodcaller": Call(operator.methodcaller("touch"), marker),
        "io.open": Call(open, str(marker), "w"),
        "builtins.map": Call(list, Call(map, os.system, [touch])),
    }


PAYLOADS = list(payloads(Path("marker")))


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """A file that exists after the test only if a payload ran."""
    path = tmp_path / "marker"
    yield path
    assert not path.exists(), "a payload ran"


def test_the_payloads_work_where_they_are_trusted(tmp_path: Path) -> None:
    """Each payload does write its marker under an ordinary unpickler, so that the tests below prove
    something.
    """
    for name in PAYLOADS:
        path = tmp_path / name
        image = pickle.dumps(payloads(path)[name])
        loaded = pickle.loads(image)
        if isinstance(loaded, subprocess.Popen):
            loaded.wait()
        assert path.exists(), name


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("name", PAYLOADS)
def test_a_payload_is_refused_by_the_name_of_its_global(marker: Path, name: str, protocol: int) -> None:
    """No global outside the table is looked up, whatever protocol the pickle has; the error names it and the
    file.
    """
    image = pickle.dumps({"harmless": 1, "evil": payloads(marker)[name]}, protocol)
    named = {f"{module}.{of}".replace("__builtin__", "builtins") for module, of in globals_of(image)}
    with pytest.raises(UnsafePickleError, match="not on the allow-list") as caught:
        unpickler.load(image, ORIGIN)
    assert str(caught.value.got).replace("__builtin__", "builtins") in named
    assert caught.value.where == {"file": ORIGIN}


def globals_of(image: bytes) -> list[tuple[str, str]]:
    """The globals that a pickle names, found without running it."""
    found: list[tuple[str, str]] = []
    strings: list[str] = []
    for opcode, argument, _ in pickletools.genops(image):
        if opcode.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            found.append((module, name))
        elif opcode.name == "STACK_GLOBAL":
            found.append((strings[-2], strings[-1]))
        elif isinstance(argument, str):
            strings.append(argument)
    return found


@pytest.mark.parametrize(
    "value",
    [
        Call(dict),
        Call(list, "ab"),
        Call(str, 5),
        Call(range, 10**12),
        Call(bytearray, 3),
        Call(getattr, "a", "upper"),
        collections.Counter("ab"),
        argparse.ArgumentParser,
        pathlib.PureWindowsPath("a"),
        torch.nn.Linear,
        torch.load,
        json.loads,
    ],
)
def test_harmless_globals_are_refused_too(value: Any) -> None:
    """What is not in the table is refused even if it could do no harm: the table is closed."""
    with pytest.raises(UnsafePickleError, match="not on the allow-list"):
        unpickler.load(pickle.dumps(value), ORIGIN)


@pytest.mark.parametrize("name", BAIT)
def test_a_module_that_a_pickle_names_is_not_imported(name: str) -> None:
    """Naming a module imports nothing: it isn't there afterwards, and the watch over all tests saw no try."""
    assert name not in sys.modules
    with pytest.raises(UnsafePickleError, match="not on the allow-list"):
        unpickler.load(b"\x80\x02c" + f"{name}\nA\n.".encode(), ORIGIN)
    assert name not in sys.modules


@pytest.mark.parametrize("name", PAYLOADS)
def test_a_payload_in_metadata_does_not_run(tmp_path: Path, marker: Path, name: str) -> None:
    """A checkpoint whose `.metadata` carries a payload is refused, naming the global and the file."""
    folder = write_stored(tmp_path / "iter_0000010", {"x": torch.ones(2, 2)}, {"num_layers": 1})
    describe_checkpoint(folder, None)
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    metadata.planner_data = payloads(marker)[name]
    image = pickle.dumps(metadata)
    (folder / ".metadata").write_bytes(image)
    with pytest.raises(UnsafePickleError) as caught:
        describe_checkpoint(folder, None)
    assert str(caught.value.got) in {f"{module}.{of}" for module, of in globals_of(image)}
    assert caught.value.where == {"file": str(folder / ".metadata")}


@pytest.mark.parametrize("name", PAYLOADS)
def test_a_payload_in_common_pt_does_not_run(tmp_path: Path, marker: Path, name: str) -> None:
    """A checkpoint whose `common.pt` carries a payload is refused, naming the global and the file."""
    folder = write_stored(tmp_path / "iter_0000010", {"x": torch.ones(2, 2)}, {"num_layers": 1})
    torch.save({"args": argparse.Namespace(a=1), "evil": payloads(marker)[name]}, folder / "common.pt")
    with pytest.raises(UnsafePickleError) as caught:
        describe_checkpoint(folder, None)
    assert caught.value.where == {"file": str(folder / "common.pt")}


def build(target: str, state: bytes) -> bytes:
    """A pickle that applies BUILD with `state` to the global `target` ("module name") itself."""
    module, name = target.split()
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + state + b"b."


@pytest.mark.parametrize("target", ["_codecs encode", "torch Size", "torch.serialization _get_layout"])
def test_a_pickle_cannot_change_what_it_names(target: str) -> None:
    """A pickle that sets attributes of a function of ours, such as its defaults, is refused and changes
    nothing.
    """
    before = pickle.dumps(["ä".encode("latin1"), torch.Size([2])], 2)
    for attribute in ("__defaults__", "__dict__", "_function", "__doc__", "fresh"):
        state = b"(N}X" + len(attribute).to_bytes(4, "little") + attribute.encode() + b"(X\x05\0\0\0utf-8tst"
        with pytest.raises(UnsafePickleError, match="tries to change a function") as caught:
            unpickler.load(build(target, state), ORIGIN)
        assert caught.value.where == {"file": ORIGIN}
    assert unpickler.load(before, ORIGIN) == ["ä".encode("latin1"), (2,)]


@pytest.mark.parametrize(
    "target",
    ["builtins set", "collections OrderedDict", "argparse Namespace", "torch float32", "torch device"],
)
def test_classes_and_names_cannot_be_changed_either(target: str) -> None:
    """BUILD on a class or a plain value of ours fails, and the next pickle is read as before."""
    for state in (b"(N}X\x05\0\0\0fresh(K\x01st", b"}X\x05\0\0\0freshK\x01s"):
        with pytest.raises(CheckpointError):
            unpickler.load(build(target, state), ORIGIN)
    assert not hasattr(InertObject, "fresh")
    assert not hasattr(InertDict, "fresh")


def test_other_codecs_are_refused() -> None:
    """`_codecs.encode`, which protocol 2 needs for bytes, runs no codec but latin1."""
    image = b"\x80\x02c_codecs\nencode\nX\x01\0\0\0aX\x06\0\0\0base64\x86R."
    with pytest.raises(UnsafePickleError, match="codec 'base64'"):
        unpickler.load(image, ORIGIN)


def test_nested_names_are_refused() -> None:
    """A name with dots, by which protocol 4 walks into objects, is refused also below an allowed module."""
    for module, name in (("megatron.core.enums", "ModelType.__init__"), ("megatron.core", "a b")):
        image = (
            b"\x80\x04"
            + b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name))
            + b"\x93."
        )
        with pytest.raises(UnsafePickleError, match="not on the allow-list"):
            unpickler.load(image, ORIGIN)


def test_plain_values_come_as_they_are() -> None:
    """Numbers, text, bytes and containers are read as themselves by every protocol."""
    value = {"a": [1, 2.5, None, True], "b": ({1, 2}, frozenset({3}), b"\xff\0", 1j), "c": slice(1, 2)}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert unpickler.load(pickle.dumps(value, protocol), ORIGIN) == value
    ordered = collections.OrderedDict(b=1, a=2)
    assert list(unpickler.load(pickle.dumps(ordered), ORIGIN).items()) == [("b", 1), ("a", 2)]
    assert unpickler.load(pickle.dumps((torch.bfloat16, torch.Size([2, 3]))), ORIGIN) == ("bfloat16", (2, 3))


def test_objects_become_records_of_what_they_said() -> None:
    """An object of an allowed class becomes a record with its name, arguments and attributes, and no
    behaviour.
    """
    image = pickle.dumps(argparse.Namespace(lr=0.1, device=torch.device("cpu", 1)))
    record = unpickler.load(image, ORIGIN)
    assert isinstance(record, InertObject)
    assert record.kind == "argparse.Namespace"
    assert record.lr == 0.1
    assert record.get("absent") is None
    assert record.get("absent", 3) == 3
    with pytest.raises(AttributeError):
        _ = record.absent
    assert (record.device.kind, record.device.args) == ("torch.device", ("cpu", 1))
    assert unpickler.plain({1: (record.device, {2})}) == {"1": ["torch.device('cpu', 1)", [2]]}


@pytest.mark.parametrize(
    "path",
    [
        pathlib.PosixPath("/a/b"),
        pathlib.PurePosixPath("a/b"),
        b"\x80\x02cpathlib\nPosixPath\n(X\x01\x00\x00\x00/X\x01\x00\x00\x00aX\x01\x00\x00\x00btR.",
        b"\x80\x02cpathlib._local\nPosixPath\n(X\x04\x00\x00\x00/a/btR.",
    ],
    ids=["this Python", "relative", "Python 3.10", "Python 3.13"],
)
def test_paths_of_every_python_are_their_text(path: bytes | pathlib.PurePath) -> None:
    """Whatever release of Python pickled a path, it is read as its text."""
    image = path if isinstance(path, bytes) else pickle.dumps(path)
    assert unpickler.load(image, ORIGIN) == ("a/b" if path == pathlib.PurePosixPath("a/b") else "/a/b")


@pytest.mark.parametrize(
    ("image", "name"),
    [
        (pickle.dumps(signal.SIGTERM), "SIGTERM"),
        (b"\x80\x02csignal\nSIGTERM\n.", "SIGTERM"),
        (b"\x80\x02csignal\nSignals\nK\x0f\x85R.", "SIGTERM"),
        (b"\x80\x02csignal\nSignals\nK\xfa\x85R.", "signal 250"),
    ],
    ids=["this Python", "Python 3.10", "Python 3.11", "unknown here"],
)
def test_signals_of_every_python_are_their_names(image: bytes, name: str) -> None:
    """Whatever release of Python pickled a signal, it is read as its name."""
    assert unpickler.load(image, ORIGIN) == name


def test_classes_of_megatron_become_records_without_megatron() -> None:
    """Any class below `megatron.` is recorded, whether or not it exists in an installed release."""
    image = b"\x80\x02cmegatron.core.of_another_release\nNewEnum\nK\x03\x85R."
    record = unpickler.load(image, ORIGIN)
    assert record.kind == "megatron.core.of_another_release.NewEnum"
    assert record.args == (3,)


@pytest.mark.parametrize("num_fields", [5, 6])
def test_tensor_properties_of_every_torch_are_read(tmp_path: Path, num_fields: int) -> None:
    """The five-field state of older releases and the six-field one of newer are read alike."""
    folder = write_stored(tmp_path / "iter_0000010", {"x": torch.ones(3, 2, dtype=torch.bfloat16)}, None)
    metadata: Metadata = pickle.loads((folder / ".metadata").read_bytes())
    properties: Any = TensorProperties(dtype=torch.bfloat16)
    state = properties.__getstate__()
    assert len(state) == 5

    class Stated:
        def __reduce__(self) -> Any:
            return TensorProperties, (), (*state, (2, 1))[:num_fields]

    tensor = metadata.state_dict_metadata["x"]
    assert isinstance(tensor, TensorStorageMetadata)
    tensor.properties = Stated()  # type: ignore[assignment]
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    stored = describe_checkpoint(folder, None).tensors[0]
    assert (stored.key, stored.shape, stored.dtype.torch_name) == ("x", (3, 2), "bfloat16")


@pytest.mark.parametrize(("model", "layout"), [("qwen2", "tp2pp2"), ("qwen3_moe", "pp2ep2")])
def test_real_metadata_says_what_torch_reads_from_it(checkpoint: Checkpoint, model: str, layout: str) -> None:
    """Of a checkpoint by megatron-core, all items, sizes, types, boxes and places equal those of torch's
    reader.
    """
    folder = checkpoint(model, layout) / "iter_0000010"
    mine = unpickler.load((folder / ".metadata").read_bytes(), ORIGIN)
    truth = FileSystemReader(folder).read_metadata()
    assert mine.state_dict_metadata.keys() == truth.state_dict_metadata.keys()
    num_boxes = 0
    for key, meta in truth.state_dict_metadata.items():
        found = mine.state_dict_metadata[key]
        assert found.kind.rpartition(".")[2] == type(meta).__name__
        if isinstance(meta, TensorStorageMetadata):
            assert found.size == tuple(meta.size)
            assert f"torch.{found.properties.__dict__['state'][0]}" == str(meta.properties.dtype)
            boxes = [(tuple(box.offsets), tuple(box.sizes)) for box in meta.chunks]
            assert [(box.offsets, box.sizes) for box in found.chunks] == boxes
            num_boxes += len(boxes)
    places = {
        MetadataIndex(index.fqn, index.get("offset"), index.get("index")): info
        for index, info in mine.storage_data.items()
    }
    assert places.keys() == truth.storage_data.keys()
    for index, info in truth.storage_data.items():
        found = places[index]
        assert (found.relative_path, found.offset, found.length) == (
            info.relative_path,
            info.offset,
            info.length,
        )
    assert num_boxes > 100


def test_args_keep_their_values(tmp_path: Path) -> None:
    """Args of every kind that training stores come out as the JSON values they were, objects as their
    names.
    """
    args = {
        "plain": [1, 2.5, "a", None, True],
        "nested": {"a": {"b": (1, 2)}},
        "set": {3},
        "params_dtype": torch.bfloat16,
        "path": pathlib.PosixPath("/a"),
        "signal": signal.SIGTERM,
        "shape": torch.Size([2, 3]),
        "values": torch.ones(2),
    }
    folder = write_stored(tmp_path / "iter_0000010", {"x": torch.ones(2, 2)}, args)
    found = dict(describe_checkpoint(folder, None).description.args or {})
    assert found.pop("values").startswith("torch._utils._rebuild_tensor_v2(")
    assert found == {
        "plain": [1, 2.5, "a", None, True],
        "nested": {"a": {"b": [1, 2]}},
        "set": [3],
        "params_dtype": "bfloat16",
        "path": "/a",
        "signal": "SIGTERM",
        "shape": [2, 3],
    }


def test_args_of_a_real_checkpoint(checkpoint: Checkpoint) -> None:
    """The args that a training run stores, Megatron's own enums among them, are read with the values they
    had.
    """
    toy, args = MODELS["qwen2"], describe_checkpoint(checkpoint("qwen2", "tp2pp2"), None).description.args
    assert args is not None
    assert (args["num_layers"], args["hidden_size"]) == (toy.num_layers, toy.hidden_size)
    assert (args["num_attention_heads"], args["num_query_groups"]) == (toy.num_heads, toy.num_query_groups)
    assert (args["tensor_model_parallel_size"], args["pipeline_model_parallel_size"]) == (2, 2)
    assert args["norm_epsilon"] == toy.norm_epsilon
    assert any("megatron.core" in str(value) for value in args.values())


@pytest.mark.parametrize("length", [0, 10, 500, 1000])
def test_a_cut_off_common_pt_is_a_checkpoint_error(tmp_path: Path, length: int) -> None:
    """A `common.pt` that is cut off is a damaged file, named, and not a checkpoint without args."""
    folder = write_stored(tmp_path / "iter_0000010", {"x": torch.ones(2, 2)}, {"a": 1})
    path = folder / "common.pt"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"common\.pt is (damaged: truncated|empty)") as caught:
        describe_checkpoint(folder, None)
    assert caught.value.where == {"file": str(path)}


@pytest.mark.parametrize(
    "image", [b"", b"garbage", b"\x80\x04.", b"\x80\x04K\x01", b"\x80\x02c_codecs\nencode\n)R."]
)
def test_damaged_pickles_are_checkpoint_errors(image: bytes) -> None:
    """A pickle that ends early or makes no sense is a damaged file, named, and no crash."""
    with pytest.raises(CheckpointError, match="the pickle in the file can't be read") as caught:
        unpickler.load(image, ORIGIN)
    assert caught.value.where == {"file": ORIGIN}


def test_cut_off_metadata_is_a_checkpoint_error(tmp_path: Path) -> None:
    """Wherever `.metadata` is cut off, reading it ends in an error that names it."""
    folder = write_stored(tmp_path / "iter_0000010", {"x": torch.ones(2, 2)}, None)
    image = (folder / ".metadata").read_bytes()
    for length in range(0, len(image), 7):
        (folder / ".metadata").write_bytes(image[:length])
        with pytest.raises(CheckpointError) as caught:
            describe_checkpoint(folder, None)
        assert caught.value.where["file"] == str(folder / ".metadata")


def test_args_that_contain_themselves_are_refused(tmp_path: Path) -> None:
    """Args that nest without end are a damaged file, and no endless recursion."""
    folder = write_stored(tmp_path / "iter_0000010", {"x": torch.ones(2, 2)}, None)
    endless: list[Any] = []
    endless.append(endless)
    buffer = io.BytesIO()
    torch.save({"args": argparse.Namespace(a=endless)}, buffer)
    (folder / "common.pt").write_bytes(buffer.getvalue())
    with pytest.raises(CheckpointError, match="nest without end"):
        describe_checkpoint(folder, None)
