"""What an older folder must be to be replaced: it is removed with everything in it, so it must be a model and
nothing else.

A folder is a model's by our manifest, or by config.json beside weights. Whatever no model folder has (photos,
another run's checkpoint, a `.git`) is somebody's, at any depth.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from pp_export.core import file_names
from pp_export.core.errors import TargetError

_OF_A_MODEL = re.compile(
    r"""
    [^/]*\.safetensors(\.index\.json)? | (pytorch_model|model)[^/]*\.bin(\.index\.json)? | [^/]*\.gguf
    | [^/]*config\.json | export_manifest\.json | SHA256SUMS | model\.sig
    | [^/]*(tokenizer|vocab|tokens|merges|chat_template)[^/]*\.(json|txt) | [^/]*\.(model|tiktoken|jinja)
    | additional_chat_templates/[^/]*\.jinja
    | (configuration|modeling|modular|tokenization|processing|image_processing)_[^/]*\.py
    | (README|LICENSE|LICENCE|NOTICE|USE_POLICY|COPYING)[^/]* | \.gitattributes
    | \.cache/huggingface/.*
    """,
    re.VERBOSE,
)


def check_replaceable(folder: Path) -> None:
    """Raise TargetError unless `folder` is empty, or a model's and nothing else lies in it."""
    foreign, names = [], set()
    for name in _files(folder):
        names.add(name)
        if not _OF_A_MODEL.fullmatch(name):
            foreign.append(name)
    if not names:
        return
    if foreign:
        raise TargetError(
            "the output holds files that are no part of a model, and replacing it would remove them",
            where={"output": folder},
            expected="a model folder and nothing else, or an empty one",
            got=f"{len(foreign)} of {len(names)} files",
            advice="choose another --output, move them away, or put the model beside them (--contents model)",
            findings=sorted(foreign),
        )
    has_weights = any(name.endswith((".safetensors", ".bin", ".gguf")) for name in names)
    if file_names.MANIFEST not in names and not (file_names.CONFIG in names and has_weights):
        raise TargetError(
            "the output exists and is no model folder",
            where={"output": folder},
            expected=f"{file_names.MANIFEST}, or {file_names.CONFIG} beside weights",
            got=f"{len(names)} files, neither of them",
            advice="choose another --output, or remove the folder yourself",
        )


def _files(folder: Path) -> Iterator[str]:
    """Everything below `folder` that is no folder, by relative path; links to folders count as files."""
    for at, folders, files in os.walk(folder, onerror=_raise):
        inside = Path(at).relative_to(folder)
        for name in (*files, *(each for each in folders if (Path(at) / each).is_symlink())):
            yield (inside / name).as_posix()


def _raise(error: OSError) -> None:
    raise TargetError(
        "the output can't be looked through, so it can't be replaced",
        where={"folder": error.filename},
        got=error.strerror,
        advice="choose another --output",
    ) from error
