"""The Hugging Face reference folder, read as data: what it says about the model, which files are copied.

Nothing of it is imported, rendered or trusted: config files are strict JSON, code is only looked at with
`ast.parse`, every name that could become a path is checked, and a link is followed only inside the folder
or the Hub cache that the folder belongs to. Called on rank 0.
"""

from __future__ import annotations

import ast
import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pp_export.core import dtypes
from pp_export.core.errors import ReferenceFolderError
from pp_export.core.tensors import Shape, TensorSpec
from pp_export.disk.files import copy_file, is_regular, write_file
from pp_export.reference.config_json import to_bytes, without

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TEMPLATES = "additional_chat_templates"
MAX_JSON_BYTES, MAX_JSON_DEPTH = 64 << 20, 64
MAX_CODE_BYTES = 4 << 20

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
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+ -]*")
_SHARD = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*\.safetensors")
_CLASS = re.compile(r"([A-Za-z_][A-Za-z0-9_-]*)\.[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Reference:
    """What a reference folder says, and what of it goes into the export."""

    folder: Path
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


def read_reference(folder: Path, *, code: bool = True) -> Reference:
    """Read a reference folder; raises ReferenceFolderError where it isn't complete and safe to copy from.

    With `code`, the folder's Python files are assets if an `auto_map` refers to code. Without, none is, and
    `auto_map` is taken out of every config file, since it would refer to files that aren't there.
    """
    if not folder.is_dir():
        raise ReferenceFolderError("the reference folder doesn't exist", where={"reference": folder})
    try:
        return _read(folder, code)
    except OSError as error:
        raise ReferenceFolderError(
            f"the reference folder can't be read: {error.strerror}", where={"file": error.filename}
        ) from error


def copy_assets(reference: Reference, staging: Path) -> None:
    """Copy the assets into `staging`, byte for byte but for `reference.rewritten`."""
    for name in reference.assets:
        if name in reference.rewritten:
            write_file(staging / name, [reference.rewritten[name]])
            continue
        source = _real_file(reference.folder, name)
        try:
            copy_file(source, staging / name)
        except OSError as error:
            what = f"an asset can't be read: {error.strerror}"
            raise ReferenceFolderError(what, where={"file": source}) from error


def reference_specs(reference: Reference) -> dict[str, TensorSpec] | None:
    """Shape and element type of the reference's own weights, from the headers of its files.

    None where it has no weights, or where a file that its index names is absent.
    """
    weights, folder = reference.weights, reference.folder
    if weights is None or not all(os.path.lexists(folder / file) for file in set(weights.values())):
        return None
    headers = {file: _read_header(folder, file) for file in sorted(set(weights.values()))}
    specs, findings = {}, []
    for name, file in weights.items():
        shape, type_name = headers[file].get(name, ((), ""))
        dtype = dtypes.from_safetensors(type_name)
        if dtype is not None:
            specs[name] = TensorSpec(shape, dtype)
        else:
            findings.append(f"{name}: " + (f"unknown type {type_name}" if type_name else f"not in {file}"))
    if findings:
        raise ReferenceFolderError(
            "the reference's own weights can't tell what the model consists of",
            where={"reference": folder},
            findings=findings,
        )
    return specs


def _read(folder: Path, code: bool) -> Reference:
    config = _read_json(folder, CONFIG)
    assets, left = _sort_entries(folder)
    scripts = [name for name in assets if name.endswith(".py")]
    configs = {CONFIG: config}
    configs |= {name: _read_json(folder, name) for name in assets if _MAY_REFER_TO_CODE.fullmatch(name)}
    referring = {name: found for name, value in configs.items() if (found := list(_auto_map(value)))}
    notes: list[str] = []
    if code and referring:
        notes += _check_code(folder, referring, scripts)
    else:
        assets = [name for name in assets if name not in scripts]
        why = "code is left out" if referring else "no auto_map refers to it"
        left += [f"{name}: {why}" for name in scripts]
    stripped = {} if code else {name: without(value, ["auto_map"]) for name, value in configs.items()}
    stripped = {name: value for name, value in stripped.items() if value != configs[name]}
    notes += [f"{name}: auto_map is removed, because code is left out." for name in stripped]
    config = stripped.pop(CONFIG, config)
    templates = [name for name in assets if name.endswith(".jinja") or name.startswith("chat_template.")]
    if templates:
        notes.append(f"{', '.join(templates)}: copied and never rendered here; loaders do render templates.")
    return Reference(
        folder=folder,
        config=config,
        assets=tuple(assets),
        left=tuple(left),
        weights=_read_weights(folder),
        notes=tuple(notes),
        rewritten={name: to_bytes(value) for name, value in stripped.items()},
    )


def _sort_entries(folder: Path) -> tuple[list[str], list[str]]:
    """The files to copy, code among them, and the other entries, each with the reason why it is left."""
    assets, left = [], []
    for name in sorted(os.listdir(folder)):
        if name == TEMPLATES and (folder / name).is_dir():
            for file in sorted(os.listdir(_check_inside(folder, name))):
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
            _real_file(folder, name)
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


def _auto_map(value: Any) -> Iterator[str]:
    """Every string under a key `auto_map`, at any depth: a composite model has one for each part."""
    if isinstance(value, dict) and "auto_map" in value:
        yield from _strings(value["auto_map"])
    for inner in _inner(value):
        yield from _auto_map(inner)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for inner in _inner(value):
        yield from _strings(inner)


def _check_code(folder: Path, referring: Mapping[str, Sequence[str]], scripts: Sequence[str]) -> list[str]:
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
        tree = ast.parse(_read_bytes(folder, script, MAX_CODE_BYTES))
    imported = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level > 0:
            above = "../" * (node.level - 1)
            if node.module is not None:
                imported.append(f"{above}{node.module.replace('.', '/')}.py")
            elif above or "__init__.py" not in scripts:
                imported += [f"{above}{alias.name}.py" for alias in node.names if alias.name != "*"]
    return imported


def _read_weights(folder: Path) -> dict[str, str] | None:
    """Tensor name -> file, from the index or, first as in loaders, from the single file."""
    indexed = _read_index(folder) if os.path.lexists(folder / INDEX) else None
    if os.path.lexists(folder / WEIGHTS):
        return dict.fromkeys(_read_header(folder, WEIGHTS), WEIGHTS)
    return indexed


def _read_index(folder: Path) -> dict[str, str]:
    weight_map = _read_json(folder, INDEX).get("weight_map")
    entries = weight_map.items() if isinstance(weight_map, dict) else ()
    bad = {name: file for name, file in entries if not isinstance(file, str) or not _SHARD.fullmatch(file)}
    if bad or not isinstance(weight_map, dict):
        raise ReferenceFolderError(
            "the index of the weights has no weight_map, or names files that can't be files of this folder",
            where={"file": folder / INDEX},
            expected="tensor name: NAME.safetensors, of letters, digits, dots, hyphens and underscores",
            findings=[f"{name!r}: {file!r}" for name, file in bad.items()],
        )
    return weight_map


def _read_header(folder: Path, file: str) -> dict[str, tuple[Shape, str]]:
    """Tensor name -> shape and the element type's safetensors name."""
    path = _real_file(folder, file)
    try:
        with safe_open(path, framework="numpy") as weights:
            names = weights.keys()
            tensors = {name: weights.get_slice(name) for name in names}
            return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in tensors.items()}
    except (SafetensorError, OSError) as error:
        raise ReferenceFolderError(
            "a file of the reference's weights can't be read", where={"file": folder / file}, got=error
        ) from error


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object by the strict grammar, except for Infinity, which Mamba configs on the Hub have."""
    data = _read_bytes(folder, name, MAX_JSON_BYTES)
    try:
        value = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_constant)
        _check_depth(value)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair can be read but not written
        if not isinstance(value, dict):
            raise ValueError(f"a {type(value).__name__} and not an object")
    except (ValueError, RecursionError) as error:
        raise ReferenceFolderError(
            "a file of the reference folder is not a valid JSON object",
            where={"file": folder / name},
            got=error,
        ) from error
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {key!r} twice in one object")
        result[key] = value
    return result


def _constant(text: str) -> float:
    if text == "NaN":
        raise ValueError("NaN")
    return float(text)


def _check_depth(value: Any) -> None:
    layer, depth = [value], 0
    while layer := [inner for outer in layer for inner in _inner(outer)]:
        depth += 1
        if depth > MAX_JSON_DEPTH:
            raise ValueError(f"nested more than {MAX_JSON_DEPTH} deep")


def _inner(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _read_bytes(folder: Path, name: str, max_bytes: int) -> bytes:
    with _real_file(folder, name).open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ReferenceFolderError(
            "a file of the reference folder is larger than such a file can be",
            where={"file": folder / name},
            expected=f"at most {max_bytes:,} bytes",
        )
    return data


def _real_file(folder: Path, name: str) -> Path:
    """The regular file that `name` leads to, inside the folder or the Hub cache that it belongs to."""
    real = _check_inside(folder, name)
    if not is_regular(real):
        raise ReferenceFolderError(
            "a file of the reference folder is missing or not a regular file",
            where={"file": folder / name},
            got=real,
        )
    return real


def _check_inside(folder: Path, name: str) -> Path:
    real, root = Path(os.path.realpath(folder / name)), Path(os.path.realpath(folder))
    # In the Hub's cache, snapshots/REVISION/NAME is a link to blobs/HASH.
    blobs = [root.parents[1] / "blobs"] if root.parent.name == "snapshots" else []
    if not any(real.is_relative_to(allowed) for allowed in (root, *blobs)):
        what = "a link leads out of the reference folder"
        raise ReferenceFolderError(what, where={"file": folder / name}, got=real)
    return real
