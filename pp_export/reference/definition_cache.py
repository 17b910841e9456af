"""Answers of the model's own definition, kept in the user's cache folder.

An answer is found by everything that decides it: the config.json that was asked about, and the code that
answered. Versions alone don't tell code apart that was patched where it lies, so the times of its files count
too; where it may change unseen, nothing is kept.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pp_export.core.strict_json import JsonError, parse_object
from pp_export.core.version import VERSION
from pp_export.disk.cache import UserCache
from pp_export.reference import definition
from pp_export.reference.definition import LIBRARIES, Definition

MAX_BYTES = 256 << 20
"""Of all answers together; one of a thousand tensors has 100 KB."""


@dataclass(frozen=True)
class Answer:
    """What transformers says of a config.json: its definition, or None where it has no such class."""

    definition: Definition | None
    is_cached: bool = False


@dataclass(frozen=True)
class CachePlace:
    """Where the answer to one question is, or will be; `asked` is what decides it."""

    cache: UserCache
    asked: str

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> CachePlace | None:
        """The place for a config.json; None where nothing can be kept."""
        cache, code = UserCache.of_user("definitions", MAX_BYTES), _code(config)
        if cache is None or code is None:
            return None
        return cls(cache, json.dumps({"config": config, "code": code}, sort_keys=True))

    def read(self) -> Answer | None:
        """The answer, if it was kept; what isn't exactly such an entry is none."""
        image = self.cache.read(self._name)
        try:
            entry = {} if image is None else parse_object(image, allow_infinity=True)
            if entry.get("asked") != self.asked:
                return None
            found = entry["definition"]
            return Answer(None if found is None else Definition.from_json(found), is_cached=True)
        except (JsonError, KeyError, ValueError):
            return None

    def keep(self, answer: Answer) -> None:
        """Keep an answer; that it can't be kept is no error."""
        found = answer.definition
        entry = {"asked": self.asked, "definition": None if found is None else found.to_json()}
        self.cache.keep(self._name, json.dumps(entry).encode())

    @property
    def _name(self) -> str:
        return f"{hashlib.sha256(self.asked.encode()).hexdigest()}.definition"


def _code(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The code that answers; None where it may change without a trace."""
    own = [Path(definition.__file__), Path(definition.__file__).parents[1] / "core" / "config_keys.py"]
    code: dict[str, Any] = {"python": platform.python_version(), "pp_export": [VERSION, _times(own)]}
    for library in (*LIBRARIES, "torch"):
        spec = importlib.util.find_spec(library)
        try:
            installed = metadata.distribution(library)
        except metadata.PackageNotFoundError:
            return None
        is_editable = '"editable"' in (installed.read_text("direct_url.json") or "")
        if spec is None or spec.origin is None or is_editable:
            return None
        files = list(_files(Path(spec.origin).parent, config)) if library in LIBRARIES else []
        code[library] = [installed.version, spec.origin, _times(files)]
    return code


def _files(package: Path, config: Mapping[str, Any]) -> Iterator[Path]:
    """The modules of a library that may take part: those of the package itself, and those of the model."""
    model_type = config.get("model_type")
    folders = [package]
    if isinstance(model_type, str) and re.fullmatch(r"\w+([-.]\w+)*", model_type):
        folders.append(package / "models" / re.sub("[-.]", "_", model_type))
    for folder in folders:
        if folder.is_dir():
            yield from (folder / name for name in sorted(os.listdir(folder)) if name.endswith(".py"))


def _times(files: list[Path]) -> str:
    """A digest of names, sizes and times."""
    found = [(file.name, status.st_size, status.st_mtime_ns) for file in files for status in [file.stat()]]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()
