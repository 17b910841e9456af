"""What is in a reference folder, and which of it is copied into the export. Called on rank 0."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pp_export.core import config_keys
from pp_export.core.config_keys import without
from pp_export.core.digest import json_digest, tensor_digest
from pp_export.core.errors import ReferenceFolderError
from pp_export.core.file_names import CONFIG
from pp_export.core.json_values import to_json_value
from pp_export.disk.files import copy_file, write_file
from pp_export.reference.auto_map import check_code, names_of_code
from pp_export.reference.config_json import to_bytes
from pp_export.reference.own_weights import read_weight_map
from pp_export.reference.safe_files import check_inside, read_json, real_file
from pp_export.reference.tokenizer import TokenizerFacts, read_tokenizer

TEMPLATES = "additional_chat_templates"

_COPIED = re.compile(
    r"""tokenizer.*\.(json|txt|tiktoken) | tokenizer.*\.model(\.v\w+)? | .*\.(model|tiktoken) | tekken\.json
    | (special_tokens_map|added_tokens)\.json | vocab\.\w+ | merges\.txt | chat_template\.\w+ | .*\.jinja
    | generation_config\.json | .*processor_config\.json | .*(licen[cs]e|notice|use_policy).*""",
    re.VERBOSE | re.IGNORECASE,
)
# These go first, so that no pickle travels as `vocab.bin` and no second `*.index.json` misleads a loader.
_LEFT = (
    (
        re.compile(r".*\.(safetensors|bin|pth?|pkl|pickle|ckpt|gguf|onnx|h5|msgpack|np[yz]|zip|tar|gz)"),
        "weights",
    ),
    (re.compile(r".*\.index\.json"), "an index of weights"),
    (re.compile(r".*(quant|quantize|quantization)_config\.json"), "quantization of other weights"),
    (re.compile(r"README.*", re.IGNORECASE), "describes another model"),
)
_MAY_REFER_TO_CODE = re.compile(r"tokenizer_config\.json|.*processor_config\.json")
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+ -]*")


@dataclass(frozen=True)
class Reference:
    """What a reference folder says, and what of it goes into the export; or what stands for one, where none
    was given.
    """

    folder: Path | None
    """None where there is none, and so nothing to copy."""
    config: Mapping[str, Any]
    """config.json, without `auto_map` where code is left out."""
    assets: tuple[str, ...]
    """Relative paths of the files to copy; config.json isn't one of them."""
    left: tuple[str, ...]
    """`name: reason` for each entry that isn't copied."""
    weights: Mapping[str, str] | None
    """Tensor name -> file of the reference's own weights; None where it has none."""
    notes: tuple[str, ...] = ()
    """Sentences for the report."""
    rewritten: Mapping[str, bytes] = field(default_factory=dict)
    """New content of the assets that lose their `auto_map`; all others are copied byte for byte."""
    tokenizer: TokenizerFacts = TokenizerFacts()
    """What its files say of ids and special tokens; its notes are in `notes`."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """Where each key of a config.json that was made comes from; empty where it is the reference's own."""

    @property
    def is_made(self) -> bool:
        """Whether config.json was made of the training args."""
        return bool(self.origins)

    @property
    def config_file(self) -> Path | str:
        """Where config.json is, for messages."""
        return CONFIG if self.folder is None or self.is_made else self.folder / CONFIG

    @classmethod
    def nothing(cls) -> Reference:
        """What there is of a reference where none is named: no config.json and no files."""
        return cls(None, {}, (), (), None)

    @property
    def is_there(self) -> bool:
        """Whether there is a folder."""
        return bool(self.config)


def read_reference(folder: Path, *, code: bool = True) -> Reference:
    """Read a reference folder; raises ReferenceFolderError where it isn't complete and safe to copy from.

    With `code`, the folder's Python files are assets if an `auto_map` refers to code. Without, none is, and
    `auto_map` is taken out of every config file, since it would refer to files that aren't there.
    """
    with _readable(folder, "reference"):
        return _read(folder, read_json(folder, CONFIG), code)


def read_tokenizer_folder(folder: Path, *, code: bool = True) -> Reference:
    """Read a folder for its tokenizer, and what else is copied beside one; its config.json and weights, if
    it has any, say nothing. Raises ReferenceFolderError where it isn't safe to copy from.
    """
    with _readable(folder, "tokenizer"):
        return _read(folder, None, code)


def check_folder(folder: Path, whose: str = "reference") -> None:
    """Raise ReferenceFolderError where there is no such folder."""
    with _readable(folder, whose):
        """It is there."""


@contextmanager
def _readable(folder: Path, whose: str) -> Iterator[None]:
    try:
        if not folder.is_dir():
            raise _no_folder(folder, whose)
        yield
    except OSError as error:
        raise ReferenceFolderError(
            f"the {whose} folder can't be read: {error.strerror}", where={"file": error.filename}
        ) from error


def _no_folder(folder: Path, whose: str) -> ReferenceFolderError:
    if folder.exists():
        return ReferenceFolderError(
            f"the {whose} is a file, not a folder",
            where={whose: folder},
            advice="give the folder that it lies in",
        )
    advice = "check the path: it must be a folder on this machine, or on a filesystem that it mounts"
    if _HUB_ID.fullmatch(str(folder)):
        advice = (
            "pp_export downloads nothing; if this is a name on the Hub, get its files first, and give DIR:"
            f" hf download {folder} --exclude '*.safetensors' --local-dir DIR"
        )
    return ReferenceFolderError(f"the {whose} folder does not exist", where={whose: folder}, advice=advice)


def copy_assets(reference: Reference, staging: Path) -> None:
    """Copy the assets into `staging`, byte for byte but for `reference.rewritten`."""
    for name in reference.assets:
        if name in reference.rewritten:
            write_file(staging / name, [reference.rewritten[name]])
            continue
        source = _source_of(reference, name)
        try:
            copy_file(source, staging / name)
        except OSError as error:
            what = f"an asset can't be read: {error.strerror}"
            raise ReferenceFolderError(what, where={"file": source}) from error


def digests_of(reference: Reference) -> dict[str, str]:
    """A digest of config.json and of each asset, by name, as they go into the export."""
    found = {CONFIG: json_digest(to_json_value(reference.config))}  # Mamba configs have infinities
    for name in reference.assets:
        if name in reference.rewritten:
            found[name] = tensor_digest(reference.rewritten[name])
            continue
        path = _source_of(reference, name)
        try:
            found[name] = tensor_digest(path.read_bytes())
        except OSError as error:
            what = f"an asset can't be read: {error.strerror}"
            raise ReferenceFolderError(what, where={"file": path}) from error
    return found


def _source_of(reference: Reference, name: str) -> Path:
    assert reference.folder is not None, "what is copied lies somewhere"
    return real_file(reference.folder, name)


def _read(folder: Path, own: dict[str, Any] | None, code: bool) -> Reference:
    """What a folder says; without its `own` config.json it is one of a tokenizer."""
    config = own or {}
    assets, left = _sort_entries(folder)
    scripts = [name for name in assets if name.endswith(".py")]
    configs = {CONFIG: config}
    configs |= {name: read_json(folder, name) for name in assets if _MAY_REFER_TO_CODE.fullmatch(name)}
    referring = {name: found for name, value in configs.items() if (found := list(names_of_code(value)))}
    notes: list[str] = []
    if code and referring:
        notes += check_code(folder, referring, scripts)
    else:
        assets = [name for name in assets if name not in scripts]
        why = "code is left out" if referring else "no auto_map refers to it"
        left += [f"{name}: {why}" for name in scripts]
    stripped = {} if code else {name: without(value, config_keys.CODE) for name, value in configs.items()}
    stripped = {name: value for name, value in stripped.items() if value != configs[name]}
    notes += [f"{name}: auto_map is removed, because code is left out." for name in stripped]
    config = stripped.pop(CONFIG, config)
    templates = [name for name in assets if name.endswith(".jinja") or name.startswith("chat_template.")]
    if templates:
        notes.append(f"{', '.join(templates)}: copied and never rendered here; loaders do render templates.")
    tokenizer = read_tokenizer(folder, assets, config, "reference" if own is not None else "tokenizer folder")
    return Reference(
        folder=folder,
        config=config,
        assets=tuple(assets),
        left=tuple(left),
        weights=None if own is None else read_weight_map(folder),
        notes=(*notes, *tokenizer.notes),
        tokenizer=tokenizer,
        rewritten={name: to_bytes(value) for name, value in stripped.items()},
    )


def _sort_entries(folder: Path) -> tuple[list[str], list[str]]:
    """The files to copy, code among them, and the other entries, each with the reason why it is left."""
    assets, left = [], []
    for name in sorted(os.listdir(folder)):
        if name == TEMPLATES and (folder / name).is_dir():
            for file in sorted(os.listdir(check_inside(folder, name))):
                if file.endswith(".jinja") and _SAFE_NAME.fullmatch(file):
                    assets.append(f"{name}/{file}")
                else:
                    left.append(f"{name}/{ascii(file)[1:-1]}: no template")
        elif why := _why_left(folder, name):
            left.append(f"{ascii(name)[1:-1]}: {why}")
        elif name != CONFIG:
            assets.append(name)
    findings = []
    for name in assets:
        try:
            real_file(folder, name)
        except ReferenceFolderError as error:
            findings.append(f"{name}: {error.what}: {error.got}")
    if findings:
        raise ReferenceFolderError(
            "files of the reference folder can't be copied",
            where={"reference": folder},
            findings=findings,
            advice="replace links that lead elsewhere by the files themselves",
        )
    return assets, left


def _why_left(folder: Path, name: str) -> str | None:
    if name.startswith("."):
        return "hidden"
    if (folder / name).is_dir():
        return "a subfolder"
    if not _SAFE_NAME.fullmatch(name):
        return "unusual characters in its name"
    for pattern, why in _LEFT:
        if pattern.fullmatch(name):
            return why
    is_listed = name == CONFIG or name.endswith(".py") or _COPIED.fullmatch(name)
    return None if is_listed else "not on the list of files to copy"
