"""What people get with the package beside its code: pages of the documentation, and files to start jobs from.

setup.py copies both below `pp_export/_shipped` when it builds a wheel. In a clone they lie where they are
edited: `docs`, `launch` and `configs`. Imports `core`; called by `cli`, on any rank.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from pp_export.core.errors import OptionError

_PACKAGE = Path(__file__).parent
_TROUBLE = "troubleshooting"
_OF_A_CLONE = ("demo",)
"""Jobs for what `make demo` writes: of no use elsewhere."""
_KINDS = MappingProxyType({"launch/*.sbatch": "slurm-", "launch/*.sh": "", "configs/*.yaml": "job-"})
"""Which files are templates, and how the names of each kind begin."""


def pages() -> dict[str, Path]:
    """Pages by name (`verify`, `integrations/verl`, `slurm`), without the decision records."""
    root = _folder("docs")
    files = sorted(root.glob("*.md")) + sorted((root / "integrations").glob("*.md"))
    named = {path.relative_to(root).with_suffix("").as_posix(): path for path in files}
    return {**named, "slurm": _folder("launch") / "README.md"}


def page(topic: str) -> str:
    """A page's text; of the class of an error, what is told of it. Raises OptionError if there is none."""
    known = pages()
    sections = _sections(_text(known[_TROUBLE]))
    if topic in sections:
        return sections[topic]
    if topic not in known:
        raise _unknown("the documentation has no such page", topic, [*known, *sections])
    return _text(known[topic])


def title(path: Path) -> str:
    """The heading of a page."""
    return _text(path).partition("\n")[0].lstrip("# ")


def templates() -> dict[str, Path]:
    """Files to start jobs from, by name: `slurm-many-nodes`, `torchrun`, `job-large-moe`."""
    return {
        prefix + path.stem.replace("_", "-"): path
        for pattern, prefix in _KINDS.items()
        for path in sorted(_folder(pattern.partition("/")[0]).glob(pattern.partition("/")[2]))
        if path.stem not in _OF_A_CLONE
    }


def template(name: str) -> str:
    """The text of a template. Raises OptionError if there is none of this name."""
    known = templates()
    if name not in known:
        raise _unknown("there is no such template", name, known)
    return _text(known[name])


def purpose(path: Path) -> str:
    """What the first comment of a template says that it is for."""
    comments = re.findall(r"^# ?(.*)$", _text(path).removeprefix("#!"), re.MULTILINE)
    return " ".join(comments).partition(". ")[0].partition(": ")[0]


def show(arguments: argparse.Namespace) -> int:
    """The commands `docs` and `launch-template`: print what is named, or the list of all; the exit status."""
    if arguments.command == "docs":
        text = _listed(pages(), title) if arguments.name is None else page(arguments.name)
    else:
        text = _listed(templates(), purpose) if arguments.name is None else template(arguments.name)
    sys.stdout.write(text)
    return 0


def _listed(paths: Mapping[str, Path], told: Callable[[Path], str]) -> str:
    return "".join(f"{name:28}{told(path)}\n" for name, path in paths.items())


def _folder(name: str) -> Path:
    installed = _PACKAGE / "_shipped" / name
    return installed if installed.is_dir() else _PACKAGE.parent / name


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _sections(text: str) -> dict[str, str]:
    """The parts of a page by their headings of the second level."""
    parts = re.split(r"^## (\w+)\n", text, flags=re.MULTILINE)[1:]
    return {name: f"## {name}\n{body.rstrip()}\n" for name, body in zip(parts[::2], parts[1::2])}


def _unknown(what: str, name: str, known: Iterable[str]) -> OptionError:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return OptionError(what, expected=" or ".join(near) or f"one of {', '.join(known)}", got=name[:80])
