"""Claims of what `setup.py` builds: whoever installs a package has all that commands need and name."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest

from pp_export import shipped
from pp_export.core.version import VERSION
from tests.fixtures.processes import ROOT

_BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
_HOME = "https://host.example/owner/pp_export"


@dataclass(frozen=True)
class Built:
    """Both packages: names of what they hold, without the top folder; the wheel's metadata."""

    wheel: Path
    in_wheel: frozenset[str]
    in_sources: frozenset[str]
    metadata: Message


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A wheel built from the sources that are built from this tree, as where there is no wheel."""
    root = tmp_path_factory.mktemp("packages")
    tree, dist = root / "tree", root / "dist"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".*", "build", "__pycache__", "*.egg-info"))
    dist.mkdir()
    sources = dist / build("build_sdist", tree, dist)
    with tarfile.open(sources) as archive:
        names = frozenset(member.name.partition("/")[2] for member in archive)
        archive.extractall(root / "unpacked", filter="data")
    [unpacked] = (root / "unpacked").iterdir()
    wheel = dist / build("build_wheel", unpacked, dist, PP_EXPORT_HOME=_HOME)
    with zipfile.ZipFile(wheel) as files:
        [name] = [name for name in files.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = message_from_string(files.read(name).decode())
        return Built(wheel, frozenset(files.namelist()), names, metadata)


def build(what: str, tree: Path, dist: Path, **env: str) -> str:
    """The name of the package that setuptools builds in `tree`."""
    command = [sys.executable, "-c", _BUILD, what, str(dist)]
    return run(command, tree, **env).splitlines()[-1]


def run(command: Sequence[str | Path], folder: Path, **env: str) -> str:
    others = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(
        command, cwd=folder, env=others | env, capture_output=True, text=True, check=False, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def below(folder: str, *suffixes: str) -> set[str]:
    """Files of this tree with these endings, as the packages name them."""
    found = {path for path in (ROOT / folder).rglob("*") if path.suffix in suffixes}
    return {path.relative_to(ROOT).as_posix() for path in found if "__pycache__" not in path.parts}


def test_the_wheel_has_code_and_data(built: Built) -> None:
    """Every module, table and schema is in the wheel, and nothing of tests and benchmarks."""
    assert below("pp_export", ".py", ".yaml", ".json", ".html", ".css", ".js", ".typed") <= built.in_wheel
    assert {name.partition("/")[0] for name in built.in_wheel if ".dist-info" not in name} == {"pp_export"}


def test_the_wheel_has_pages_and_templates(built: Built) -> None:
    """What `docs` and `launch-template` show in a clone is in the wheel, and so is the licence."""
    paths = [*shipped.pages().values(), *shipped.templates().values()]
    there = {path.relative_to(ROOT).as_posix() for path in paths}
    assert {f"pp_export/_shipped/{name}" for name in there} <= built.in_wheel
    assert [name for name in built.in_wheel if name.endswith("/LICENSE")]


def test_the_sources_have_what_builds_and_proves_them(built: Built) -> None:
    """Sources have code, data, tests, docs and templates, and what the Makefile reads."""
    shown = (
        below("docs", ".md", ".svg") | below("launch", ".sbatch", ".sh", ".md") | below("configs", ".yaml")
    )
    assert shown | below("tests", ".py", ".txt") | below("bench", ".py") <= built.in_sources
    tops = {"setup.py", "pyproject.toml", "Makefile", "README.md", "LICENSE", "CHANGELOG.md"}
    assert tops <= built.in_sources


def test_the_metadata_says_where_the_project_is(built: Built) -> None:
    """A release that is told its home names it, and no link of its description leads nowhere."""
    urls = dict(url.split(", ", 1) for url in built.metadata.get_all("Project-URL", []))
    assert set(urls) >= {"Documentation", "Changelog", "Issues"}
    assert all(url.startswith(_HOME) for url in urls.values())
    links = re.findall(r"\]\(([^)]*)\)", str(built.metadata.get_payload()))
    assert links
    assert all(link.startswith((f"{_HOME}/blob/v{VERSION}/", "#")) for link in links), links
    assert set(built.metadata.get_all("Provides-Extra", [])) >= {"megatron", "test", "check", "docs"}


def test_an_installation_has_its_commands(built: Built, tmp_path: Path) -> None:
    """Installed into an environment of its own, away from the clone, both commands run, and show what is
    in the clone.
    """
    run([sys.executable, "-m", "venv", "--without-pip", "env"], tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(built.wheel)], tmp_path)
    [packages] = (tmp_path / "env" / "lib").glob("python*/site-packages")
    # What pp_export depends on is that of this environment.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    assert str(packages) in run([python, "-c", "import pp_export; print(pp_export.__file__)"], tmp_path)
    for command in ("pp_export", "pp-export"):
        assert run([python.parent / command, "--version"], tmp_path) == f"pp_export {VERSION}\n"
    pp_export = python.parent / "pp_export"
    listed = [line.split()[0] for line in run([pp_export, "launch-template"], tmp_path).splitlines()]
    assert listed == list(shipped.templates())
    printed = run([pp_export, "launch-template", "slurm-many-nodes"], tmp_path)
    assert printed == (ROOT / "launch" / "many_nodes.sbatch").read_text()
    assert run([pp_export, "docs", "verify"], tmp_path) == (ROOT / "docs" / "verify.md").read_text()
