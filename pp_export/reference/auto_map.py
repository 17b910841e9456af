"""The Python files that an `auto_map` needs: looked at with `ast.parse`, never imported or run."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pp_export.core.errors import ReferenceFolderError
from pp_export.reference.safe_files import read_bytes

MAX_CODE_BYTES = 4 << 20

_CLASS = re.compile(r"([A-Za-z_][A-Za-z0-9_-]*)\.[A-Za-z_][A-Za-z0-9_]*")


def names_of_code(value: Any) -> Iterator[str]:
    """Every string under a key `auto_map`, at any depth: a composite model has one for each part."""
    if isinstance(value, dict) and "auto_map" in value:
        yield from _strings(value["auto_map"])
    for inner in _inner(value):
        yield from names_of_code(inner)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for inner in _inner(value):
        yield from _strings(inner)


def check_code(folder: Path, referring: Mapping[str, Sequence[str]], scripts: Sequence[str]) -> list[str]:
    """Notes for the report; raises with all that `auto_map`, or a module that it needs, names in vain."""
    notes = [f"{', '.join(scripts)}: code, copied and never run here."] if scripts else []
    findings: list[str] = []
    needed: list[tuple[str, str]] = []
    for name, reference in ((name, reference) for name, found in referring.items() for reference in found):
        if "--" in reference:
            notes.append(f"{name}: auto_map names {reference!r}, code of another repository, not copied.")
        elif match := _CLASS.fullmatch(reference):
            needed.append((f"{match[1]}.py", f"auto_map of {name}"))
        else:
            findings.append(f"{name}: auto_map names {reference!r}, which isn't module.Class")
    seen: set[str] = set()
    for script, named_by in needed:  # grows while it is walked
        if script in seen:
            continue
        seen.add(script)
        if script not in scripts:
            findings.append(f"{script} is missing, named by {named_by}")
            continue
        try:
            needed += [(other, script) for other in _relative_imports(folder, script, scripts)]
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            notes.append(f"{script}: can't be parsed, so what it imports isn't known.")
    if findings:
        raise ReferenceFolderError(
            "the reference's auto_map needs code that its folder doesn't have",
            where={"reference": folder},
            findings=findings,
            advice="add the files, or leave all code out with --no-code",
        )
    return list(dict.fromkeys(notes))


def _relative_imports(folder: Path, script: str, scripts: Sequence[str]) -> list[str]:
    """The files that `script` imports relatively, also inside functions and `try`: loaders want them all."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(read_bytes(folder, script, MAX_CODE_BYTES))
    imported = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level > 0:
            above = "../" * (node.level - 1)
            if node.module is not None:
                imported.append(f"{above}{node.module.replace('.', '/')}.py")
            elif above or "__init__.py" not in scripts:
                imported += [f"{above}{alias.name}.py" for alias in node.names if alias.name != "*"]
    return imported


def _inner(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
