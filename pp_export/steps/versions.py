"""Versions of what makes the bytes."""

from __future__ import annotations

import platform
from importlib import metadata

from pp_export.core.version import VERSION


def versions() -> dict[str, str]:
    """Name -> version; `absent` where a library isn't installed."""
    known = {"pp_export": VERSION}
    for name in ("torch", "safetensors", "transformers"):
        try:
            known[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            known[name] = "absent"
    return {**known, "python": platform.python_version()}
