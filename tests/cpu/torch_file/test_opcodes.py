"""Claims of `pp_export.torch_file.opcodes` and of the allowance in `inert`: a pickle takes time and memory in
proportion to its size, whatever it says.
"""

from __future__ import annotations

import collections
import contextlib
import copyreg
import gc
import pickle
import resource
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pp_export.checkpoint import training_args
from pp_export.core.errors import CheckpointError, UnsafePickleError
from pp_export.torch_file import opcodes, unpickler
from pp_export.torch_file.opcodes import MAX_IN_KEY
from tests.fixtures.mutations import FUZZ, JSON_VALUES
from tests.fixtures.pickle_bombs import CLAIMS, COPIES, KEYS, NESTED_NAMES, NEVER_WRITTEN

ORIGIN = "some/.metadata"
BOMBS = CLAIMS | KEYS | COPIES


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_a_damaged_file(name: str) -> None:
    """It is refused as damaged, by name, within seconds and 200 MB."""
    begun, taken = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="the pickle in the file can't be read") as caught:
        unpickler.load(BOMBS[name], ORIGIN)
    assert caught.value.where == {"file": ORIGIN}
    assert time.process_time() - begun < 20  # a bomb takes minutes, or all memory
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - taken < 200 << 10


@pytest.mark.parametrize("name", ["a memo of 32 GB", "a key nested a million deep"])
def test_bombs_go_off_elsewhere(name: str, tmp_path: Path) -> None:
    """Python's own unpickler dies of them, in 4 GB: what refuses them here is needed."""
    (tmp_path / "bomb").write_bytes(BOMBS[name])
    code = (
        "import pickle, resource, sys; resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30));"
        " pickle.loads(open(sys.argv[1], 'rb').read())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "bomb")]
    assert subprocess.run(command, check=False, capture_output=True).returncode != 0


def test_nested_names_are_counted_too() -> None:
    """Names that are nested in names, each longer than the one before, among training args."""
    with pytest.raises(CheckpointError, match="copy the same values"):
        unpickler.load(NESTED_NAMES, ORIGIN, training_args.split)


@pytest.mark.parametrize("name", NEVER_WRITTEN)
def test_instructions_that_nobody_writes_are_refused(name: str) -> None:
    """Old instances, the extension registry (which a name could slip through), buffers from elsewhere."""
    with pytest.raises(CheckpointError, match="no pickler of Python 3 writes"):
        unpickler.load(NEVER_WRITTEN[name], ORIGIN)


def test_the_extension_registry_is_no_way_around_the_list() -> None:
    """A code that an application registered, and that Python has looked up before, names nothing here."""
    copyreg.add_extension("os", "system", 77)
    try:
        assert pickle.loads(b"\x80\x02\x82\x4d.").__name__ == "system"
        with pytest.raises(CheckpointError, match="no pickler"):
            unpickler.load(b"\x80\x02\x82\x4d.", ORIGIN)
    finally:
        copyreg.remove_extension("os", "system", 77)


VALUES: list[Any] = [
    {("a", 1): 2, (torch.bfloat16, torch.float32): {frozenset({1, (2, 3)})}},
    [(1, (2, (3, [4, {5: {6}}])))] * 3,
    {tuple(range(MAX_IN_KEY - 1)): 0},
    {2**63 - 1: 1, -(2**62): 2, 1.5: 3, None: 4, b"x": 5, 1j: 6},
    [10**500, "a" * 70_000, b"b" * 70_000, bytearray(b"c")],
    [Namespace(**{f"a{i}": i % 3 for i in range(3000)}), collections.OrderedDict.fromkeys(range(2000))],
    [{str(i): (i, str(i % 7)) for i in range(3000)}, set(range(5000)), frozenset(range(300))],
    [torch.Size([2, 3, 4]), Path("/a/b/c"), [[], {}, ()], True, False, None],
    [list(range(3)) for _ in range(400)],
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("number", range(len(VALUES)))
def test_real_values_are_read(number: int, protocol: int) -> None:
    """Nothing that checkpoints hold is refused, whatever protocol wrote it, by Python's picklers or C's."""
    for dumps in (pickle.dumps, pickle._dumps):  # type: ignore[attr-defined]
        image = dumps(VALUES[number], protocol)
        opcodes.check(image)
        with contextlib.suppress(UnsafePickleError):  # old protocols need calls that are not on the list
            unpickler.load(image, ORIGIN)


def test_a_value_that_is_named_again_is_no_copy() -> None:
    """A long tuple that ten thousand places share takes ten thousand pointers: it is read."""
    shared = tuple(range(10_000))
    assert unpickler.load(pickle.dumps([shared] * 10_000), ORIGIN)[-1] == shared


@FUZZ
@given(JSON_VALUES, st.integers(0, 5))
def test_what_python_pickles_passes(value: Any, protocol: int) -> None:
    """Any plain value, by any protocol."""
    assert unpickler.load(pickle.dumps(value, protocol), ORIGIN) == value


def test_garbage_is_looked_for_again_afterwards() -> None:
    """Reading switches the collection of garbage off and on again, also where it fails."""
    for image in (pickle.dumps([1]), b"\x80\x02"):
        with contextlib.suppress(CheckpointError):
            unpickler.load(image, ORIGIN)
        assert gc.isenabled()
