"""Claims about what is no plain file where one should be, and about names that lead elsewhere: an error at
once, and nothing is waited for, read without end or opened outside.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from pp_export.checkpoint.formats import describe_checkpoint
from pp_export.core.errors import CheckpointError, ExportError, ReferenceFolderError
from pp_export.reference.reference_folder import read_reference
from pp_export.verification import verify_folder
from tests.fixtures.bounds import bounded
from tests.fixtures.hf_folders import INDEX, MANIFEST, MIDDLE, SUMS, write_whole_folder
from tests.fixtures.reference_files import CONFIG, write_files
from tests.fixtures.stored import edit_metadata, read_all, write_stored

LIMIT_SECONDS = 20


def become_a_loop(path: Path) -> None:
    path.symlink_to(path.name)


def become_sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


KINDS: dict[str, Callable[[Path], Any]] = {
    "pipe": os.mkfifo,
    "endless device": lambda path: path.symlink_to("/dev/zero"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
    "folder": lambda path: path.mkdir(),
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "loop": become_a_loop,
    "sparse terabyte": become_sparse,
}


@contextmanager
def soon() -> Iterator[None]:
    """What is done in the block waits for nobody."""

    def late(*_: object) -> None:
        raise AssertionError(f"nothing came in {LIMIT_SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LIMIT_SECONDS)
    try:
        with bounded():
            yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    tensors = {"output_layer.weight": torch.ones(4, 4), "decoder.final_layernorm.weight": torch.ones(4)}
    folder = write_stored(tmp_path / "root" / "iter_0000010", tensors, {"num_layers": 1})
    (folder.parent / "latest_checkpointed_iteration.txt").write_text("10")
    return folder


def replace(path: Path, kind: str) -> None:
    path.unlink()
    KINDS[kind](path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name",
    [".metadata", "common.pt", "metadata.json", "__0_0.distcp", "../latest_checkpointed_iteration.txt"],
)
def test_files_of_a_checkpoint(stored: Path, name: str, kind: str) -> None:
    """Each file of a checkpoint as a pipe, a device, a folder, a link to nowhere, or without end."""
    assert describe_checkpoint(stored.parent, None).tensors
    replace(stored / name, kind)
    with soon(), pytest.raises(CheckpointError):
        read_all(describe_checkpoint(stored.parent, None))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", INDEX, "modeling_x.py", "chat_template.jinja"]
)
def test_files_of_a_reference(tmp_path: Path, name: str, kind: str) -> None:
    """Each file of a reference in the same ways. One that is only copied may be as large as it likes."""
    config = CONFIG | {"auto_map": {"AutoModel": "modeling_x.X"}}
    files = {"config.json": config, "tokenizer.json": {}, INDEX: {"weight_map": {}, "metadata": {}}}
    folder = write_files(tmp_path / "ref", files | {"modeling_x.py": "", "chat_template.jinja": "x"})
    read_reference(folder)
    replace(folder / name, kind)
    is_only_copied = name in ("tokenizer.json", "chat_template.jinja")
    with soon():
        if kind == "sparse terabyte" and is_only_copied:
            assert any("copied unread" in note for note in read_reference(folder).notes)
        elif kind == "folder" and is_only_copied:
            assert f"{name}: a subfolder" in read_reference(folder).left
        else:
            with pytest.raises(ReferenceFolderError):
                read_reference(folder)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["config.json", INDEX, MANIFEST, SUMS, MIDDLE])
def test_files_of_a_folder_to_verify(tmp_path: Path, name: str, kind: str) -> None:
    """Each file of an export in the same ways: faults."""
    folder = tmp_path / "model"
    folder.mkdir()
    write_whole_folder(folder)
    replace(folder / name, kind)
    with soon():
        assert verify_folder(folder, quick=True).faults


@pytest.mark.parametrize(
    "name",
    [
        "../out.distcp",
        "/etc/passwd",
        "a/b.distcp",
        "a\\b.distcp",
        "a\0.distcp",
        "..",
        ".",
        "",
        ".distcp",
        "a\n.distcp",
    ],
    ids=["above", "absolute", "below", "backslash", "null", "parent", "here", "empty", "hidden", "line"],
)
def test_names_of_record_files(stored: Path, name: str) -> None:
    """No name in `.metadata` leads out of the checkpoint's folder."""
    shutil.copyfile(stored / "__0_0.distcp", stored.parent / "out.distcp")

    def rename(metadata: Any) -> None:
        for info in metadata.storage_data.values():
            info.relative_path = name

    edit_metadata(stored, rename)
    with soon(), pytest.raises(ExportError, match="names a file outside the checkpoint"):
        describe_checkpoint(stored, None)
