"""Versions of what makes the bytes."""

from __future__ import annotations

import platform
from functools import cache
from importlib import metadata

from pp_export.core.version import VERSION


def versions() -> dict[str, str]:
    """Name -> version; `absent` where a library isn't installed."""
    libraries = {name: _installed(name) for name in ("torch", "safetensors", "transformers")}
    return {"pp_export": VERSION, **libraries, "python": platform.python_version()}


@cache
def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"
