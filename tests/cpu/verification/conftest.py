"""A whole folder to look at, and one to damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.fixtures.hf_folders import write_whole_folder


@pytest.fixture(scope="session")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole folder as pp_export publishes it; nobody may write to it."""
    folder = tmp_path_factory.mktemp("sealed") / "model"
    folder.mkdir()
    write_whole_folder(folder)
    return folder


@pytest.fixture
def folder(sealed: Path, tmp_path: Path) -> Path:
    """A copy of the whole folder, to be damaged."""
    return Path(shutil.copytree(sealed, tmp_path / "model"))
