"""Claims of `pp_export.verification`: every damage to a folder is found and named, and no input makes it
fall over.

The folders are made by the safetensors library and by the code below, not by pp_export's own writer.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pp_export.core.errors import OptionError, VerificationError
from pp_export.verification import KINDS, Verification, content, verify_folder, verify_shard, verify_structure
from pp_export.verification.header import read_header

INDEX = "model.safetensors.index.json"
MANIFEST = "export_manifest.json"
SUMS = "SHA256SUMS"
SHARDS = [f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]
_, MIDDLE, LAST = SHARDS
EMBED, NORM, HEAD = "model.embed_tokens.weight", "model.layers.0.input_layernorm.weight", "lm_head.weight"
DOWN, STEPS = "model.layers.0.mlp.down_proj.weight", "model.layers.0.steps"


# --- making folders


def tensors_by_file() -> dict[str, dict[str, torch.Tensor]]:
    """Three shards with several dtypes, a scalar and an empty tensor."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    return {
        SHARDS[0]: {EMBED: random(40, 8)},
        MIDDLE: {
            NORM: random(8, dtype=torch.float32),
            DOWN: random(8, 24),
            "model.layers.0.mlp.scale": torch.tensor(0.5),
            "model.layers.0.empty": torch.empty(0, 8),
            STEPS: torch.arange(5),
            "model.layers.0.fp8": random(3, 5).to(torch.float8_e4m3fn),
        },
        LAST: {HEAD: random(40, 8), "model.norm.weight": random(8)},
    }


def header_of(path: Path) -> tuple[dict[str, Any], int]:
    """The header as JSON and the position of the data."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), 8 + length


def sha256(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()


def shard_record(path: Path) -> dict[str, Any]:
    """An entry of the manifest's `shards`, from the file as it is."""
    data, (header, start) = path.read_bytes(), header_of(path)
    return {
        "file": path.name,
        "bytes": len(data),
        "sha256": sha256(data),
        "tensors": [
            {
                "name": name,
                "dtype": entry["dtype"],
                "shape": entry["shape"],
                "begin": entry["data_offsets"][0],
                "end": entry["data_offsets"][1],
                "xxh3_128": xxhash.xxh3_128(
                    data[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]]
                ).hexdigest(),
            }
            for name, entry in header.items()
            if name != "__metadata__"
        ],
    }


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest with a digest that is right for what it says."""
    manifest = {key: value for key, value in manifest.items() if key != "digest"}
    image = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    (folder / MANIFEST).write_text(json.dumps(manifest | {"digest": sha256(image)}))


def make_index(folder: Path) -> None:
    """Write the index that fits the weight files which are there."""
    records = [shard_record(path) for path in sorted(folder.glob("model-*.safetensors"))]
    tensors = [(tensor, record["file"]) for record in records for tensor in record["tensors"]]
    metadata = {
        "total_parameters": sum(torch.Size(tensor["shape"]).numel() for tensor, _ in tensors),
        "total_size": sum(tensor["end"] - tensor["begin"] for tensor, _ in tensors),
    }
    weight_map = {tensor["name"]: file for tensor, file in tensors}
    (folder / INDEX).write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}))


def seal(folder: Path) -> None:
    """Write SHA256SUMS and the manifest that fit the files which are there, as an export would."""
    for name in (SUMS, MANIFEST):
        (folder / name).unlink(missing_ok=True)
    paths = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    data = {path: (folder / path).read_bytes() for path in paths}
    (folder / SUMS).write_text("".join(f"{sha256(data[path])}  {path}\n" for path in paths))
    records = [shard_record(path) for path in sorted(folder.glob("model-*.safetensors"))]
    tensors = [tensor for record in records for tensor in record["tensors"]]
    write_manifest(
        folder,
        {
            "format": "pp_export manifest 1",
            "files": {path: {"bytes": len(data[path]), "sha256": sha256(data[path])} for path in paths},
            "shards": records,
            "total_size": sum(tensor["end"] - tensor["begin"] for tensor in tensors),
            "total_parameters": sum(torch.Size(tensor["shape"]).numel() for tensor in tensors),
            "provenance": {"made by": "the test"},
        },
    )


@pytest.fixture(scope="session")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole folder as pp_export publishes it; nobody may write to it."""
    folder = tmp_path_factory.mktemp("sealed") / "model"
    folder.mkdir()
    for file, tensors in tensors_by_file().items():
        save_file(tensors, folder / file, metadata={"format": "pt"})
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "hidden_size": 8}\n')
    (folder / "tokenizer.json").write_text('{"model": {}}\n')
    (folder / "assets").mkdir()
    (folder / "assets" / "template.jinja").write_text("{{ messages }}\n")
    make_index(folder)
    seal(folder)
    return folder


@pytest.fixture
def folder(sealed: Path, tmp_path: Path) -> Path:
    """A copy of the whole folder, to be damaged."""
    return Path(shutil.copytree(sealed, tmp_path / "model"))


# --- one defect each

Damage = Callable[[Path], object]


def flip(file: str, where: Callable[[Path], int], bit: int = 0) -> Damage:
    def damage(folder: Path) -> None:
        data = bytearray((folder / file).read_bytes())
        data[where(folder / file)] ^= 1 << bit
        (folder / file).write_bytes(data)

    return damage


def in_tensor(name: str) -> Callable[[Path], int]:
    def where(path: Path) -> int:
        header, start = header_of(path)
        return int(start + header[name]["data_offsets"][1] - 1)

    return where


def in_header(text: bytes) -> Callable[[Path], int]:
    return lambda path: path.read_bytes().index(text)


def edit(file: str, change: Callable[[bytes], bytes]) -> Damage:
    def damage(folder: Path) -> None:
        before = (folder / file).read_bytes()
        after = change(before)
        assert after != before
        (folder / file).write_bytes(after)

    return damage


def edit_json(file: str, change: Callable[[Any], None], *, resealed: bool = False) -> Damage:
    def damage(folder: Path) -> None:
        value = json.loads((folder / file).read_bytes())
        change(value)
        (folder / file).write_text(json.dumps(value))
        if resealed and file == MANIFEST:
            write_manifest(folder, value)
        elif resealed:
            seal(folder)

    return damage


def rewrite(file: str, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Damage:
    """A weight file written anew by the library, and everything sealed again around it."""

    def damage(folder: Path) -> None:
        save_file(change(load_file(folder / file)), folder / file, metadata={"format": "pt"})
        seal(folder)

    return damage


def rewrite_header(file: str, change: Callable[[bytes], bytes]) -> Damage:
    """Other header bytes before the same data, and everything sealed again around them."""

    def damage(folder: Path) -> None:
        data = (folder / file).read_bytes()
        start = 8 + struct.unpack("<Q", data[:8])[0]
        header = change(data[8:start])
        (folder / file).write_bytes(struct.pack("<Q", len(header)) + header + data[start:])
        seal(folder)

    return damage


def with_tensors_reversed(header: bytes) -> bytes:
    fields = list(json.loads(header).items())
    return json.dumps(dict([*fields[:1], *fields[:0:-1]])).encode().ljust(len(header) + 200)


def add(file: str, content: bytes = b"left here") -> Damage:
    return lambda folder: (folder / file).write_bytes(content)


def add_weights(file: str) -> Damage:
    return lambda folder: save_file({"another": torch.ones(2)}, folder / file, metadata={"format": "pt"})


def swap_for_link(file: str) -> Damage:
    def damage(folder: Path) -> None:
        shutil.move(folder / file, folder.parent / "elsewhere")
        (folder / file).symlink_to(folder.parent / "elsewhere")

    return damage


def rename_last_shard(folder: Path) -> None:
    (folder / LAST).rename(folder / "model-00004-of-00003.safetensors")
    make_index(folder)
    seal(folder)


def double_a_record(manifest: Any) -> None:
    manifest["shards"].insert(1, manifest["shards"][1])


def remove(file: str) -> Damage:
    return lambda folder: (folder / file).unlink()


def set_key(*keys: Any, value: object) -> Callable[[Any], None]:
    def change(root: Any) -> None:
        for key in keys[:-1]:
            root = root[key]
        root[keys[-1]] = value

    return change


DIGEST_A, DIGEST_B = "a" * 64, "b" * 32


def sealed_edit(file: str, *keys: str, value: object) -> Damage:
    """One value of a JSON file changed, and everything sealed again around it."""
    return edit_json(file, set_key(*keys, value=value), resealed=True)


def record_edit(key: str, value: object, *, resealed: bool = True) -> Damage:
    """One value in the manifest's record of the tensor DOWN changed."""

    def change(manifest: Any) -> None:
        next(each for each in manifest["shards"][1]["tensors"] if each["name"] == DOWN)[key] = value

    return edit_json(MANIFEST, change, resealed=resealed)


# fmt: off
DEFECTS: dict[str, tuple[str, str | None, str, Damage]] = {  # name: file, tensor, kind, damage
    "bit in a name": (MIDDLE, DOWN, "missing-tensor", flip(MIDDLE, in_header(b"down_proj"))),
    "bit in a dtype": (MIDDLE, DOWN, "bad-header", flip(MIDDLE, in_header(b"BF16"))),
    "bit in a shape": (MIDDLE, DOWN, "bad-header", flip(MIDDLE, in_header(b"8,24]"))),
    "bit in the braces": (MIDDLE, None, "bad-header", flip(MIDDLE, in_header(b'{"__'))),
    "bit in the padding": (LAST, None, "bad-header", flip(LAST, lambda path: header_of(path)[1] - 1)),
    "bit in the length": (MIDDLE, None, "bad-header", flip(MIDDLE, lambda _: 0)),
    "high bit in the length": (MIDDLE, None, "bad-header", flip(MIDDLE, lambda _: 7, 7)),
    "byte appended": (MIDDLE, None, "wrong-size", edit(MIDDLE, lambda data: data + b"\0")),
    "byte cut off": (LAST, "model.norm.weight", "wrong-size", edit(LAST, lambda data: data[:-1])),
    "cut in the header": (MIDDLE, None, "bad-header", edit(MIDDLE, lambda data: data[:20])),
    "cut in the length": (MIDDLE, None, "bad-header", edit(MIDDLE, lambda data: data[:7])),
    "cut to nothing": (MIDDLE, None, "wrong-size", edit(MIDDLE, lambda data: b"")),
    **{
        f"{file} removed": (file, None, "missing-file", remove(file))
        for file in [*SHARDS, INDEX, MANIFEST, SUMS, "config.json", "tokenizer.json", "assets/template.jinja"]
    },
    **{
        f"extra {file}": (file, None, "unindexed-file", add_weights(file))
        for file in ["extra.safetensors", "model.safetensors", "consolidated.safetensors"]
    },
    "the library's leftover": (".tmpA1b2C3", None, "leftover-file", add(".tmpA1b2C3")),
    "our leftover": (f".{LAST}.tmp", None, "leftover-file", add(f".{LAST}.tmp")),
    "extra file": ("notes.txt", None, "unlisted-file", add("notes.txt")),
    "second index": ("other.index.json", None, "second-index", add("other.index.json")),
    "index key removed": (MIDDLE, DOWN, "unindexed-tensor",
        edit_json(INDEX, lambda index: index["weight_map"].pop(DOWN), resealed=True)),
    "index key moved": (INDEX, DOWN, "misplaced-tensor", sealed_edit(INDEX, "weight_map", DOWN, value=LAST)),
    "index key moved to no file": ("model-9.safetensors", None, "missing-file",
        sealed_edit(INDEX, "weight_map", DOWN, value="model-9.safetensors")),
    "index key invented": (MIDDLE, "mtp", "missing-tensor",
        sealed_edit(INDEX, "weight_map", "mtp", value=MIDDLE)),
    "index edited, not sealed": (INDEX, None, "wrong-size", edit_json(INDEX, set_key("note", value="x"))),
    "index total_size": (INDEX, None, "wrong-total", sealed_edit(INDEX, "metadata", "total_size", value=1)),
    "index total_size as text": (INDEX, None, "wrong-total",
        sealed_edit(INDEX, "metadata", "total_size", value="1")),
    "index total_parameters": (INDEX, None, "wrong-total",
        sealed_edit(INDEX, "metadata", "total_parameters", value=1)),
    "index without metadata": (INDEX, None, "bad-index", sealed_edit(INDEX, "metadata", value=None)),
    "index without weight_map": (INDEX, None, "bad-index", sealed_edit(INDEX, "weight_map", value=[])),
    "index key twice": (INDEX, None, "bad-json",
        edit(INDEX, lambda data: data.replace(b'"weight_map":', b'"weight_map": {}, "weight_map":'))),
    "NaN in the index": (INDEX, None, "bad-json", edit(INDEX, lambda data: b'{"note": NaN, ' + data[1:])),
    "manifest file digest": (MANIFEST, None, "bad-manifest",
        edit_json(MANIFEST, set_key("files", MIDDLE, "sha256", value=DIGEST_A))),
    "manifest file digest, sealed": (MIDDLE, None, "manifest-mismatch",
        sealed_edit(MANIFEST, "files", MIDDLE, "sha256", value=DIGEST_A)),
    "manifest shard digest, sealed": (MIDDLE, None, "manifest-mismatch",
        edit_json(MANIFEST, set_key("shards", 1, "sha256", value=DIGEST_A), resealed=True)),
    "manifest tensor digest, not sealed": (MANIFEST, None, "bad-manifest",
        record_edit("xxh3_128", DIGEST_B, resealed=False)),
    "manifest tensor digest malformed": (MIDDLE, DOWN, "bad-manifest", record_edit("xxh3_128", "?")),
    "manifest shape": (MIDDLE, DOWN, "manifest-mismatch", record_edit("shape", [24, 8], resealed=False)),
    "manifest shape, sealed": (MIDDLE, DOWN, "manifest-mismatch", record_edit("shape", [24, 8])),
    "manifest dtype, sealed": (MIDDLE, DOWN, "manifest-mismatch", record_edit("dtype", "F16")),
    "manifest begin, sealed": (MIDDLE, DOWN, "manifest-mismatch", record_edit("begin", 0)),
    "manifest end, sealed": (MIDDLE, DOWN, "manifest-mismatch", record_edit("end", 10**6)),
    "manifest name, sealed": (MIDDLE, DOWN, "manifest-mismatch", record_edit("name", "other")),
    "manifest total_size": (MANIFEST, None, "wrong-total",
        edit_json(MANIFEST, set_key("total_size", value=1))),
    "manifest total_size, sealed": (MANIFEST, None, "wrong-total",
        sealed_edit(MANIFEST, "total_size", value=1)),
    "manifest total_parameters, sealed": (MANIFEST, None, "wrong-total",
        sealed_edit(MANIFEST, "total_parameters", value=True)),
    "manifest provenance": (MANIFEST, None, "bad-manifest",
        edit_json(MANIFEST, set_key("provenance", value="x"))),
    "manifest of the future": (MANIFEST, None, "bad-manifest", sealed_edit(MANIFEST, "format", value="2")),
    "manifest key twice": (MANIFEST, None, "bad-manifest",
        edit(MANIFEST, lambda data: b'{"digest": 1,' + data[1:])),
    "manifest without a shard": (MIDDLE, None, "manifest-mismatch",
        edit_json(MANIFEST, lambda manifest: manifest["shards"].pop(1), resealed=True)),
    "manifest with a shard twice": (MIDDLE, None, "bad-manifest",
        edit_json(MANIFEST, double_a_record, resealed=True)),
    "manifest shards unsorted": (MANIFEST, None, "bad-manifest",
        edit_json(MANIFEST, lambda manifest: manifest["shards"].reverse(), resealed=True)),
    "manifest without a file": ("tokenizer.json", None, "unlisted-file",
        edit_json(MANIFEST, lambda manifest: manifest["files"].pop("tokenizer.json"), resealed=True)),
    "manifest with a tensor twice": (MIDDLE, STEPS, "bad-manifest",
        edit_json(MANIFEST, lambda manifest: manifest["shards"][1]["tensors"].append(
            manifest["shards"][1]["tensors"][0]), resealed=True)),
    "manifest file digest malformed": (MIDDLE, None, "bad-manifest",
        sealed_edit(MANIFEST, "files", MIDDLE, "sha256", value="A" * 64)),
    "manifest files a list": (MANIFEST, None, "bad-manifest", sealed_edit(MANIFEST, "files", value=[])),
    "manifest shards a map": (MANIFEST, None, "bad-manifest", sealed_edit(MANIFEST, "shards", value={})),
    "manifest shard a number": (MANIFEST, None, "bad-manifest",
        edit_json(MANIFEST, set_key("shards", 1, value=5), resealed=True)),
    "manifest file a number": ("config.json", None, "bad-manifest",
        sealed_edit(MANIFEST, "files", "config.json", value=5)),
    "manifest path leads out": (MANIFEST, None, "unsafe-name",
        sealed_edit(MANIFEST, "files", "../x", value={"bytes": 1, "sha256": DIGEST_A})),
    "SHA256SUMS digest": ("assets/template.jinja", None, "manifest-mismatch",
        edit(SUMS, lambda data: DIGEST_A.encode() + data[64:])),
    "SHA256SUMS line removed": ("assets/template.jinja", None, "unlisted-file",
        edit(SUMS, lambda data: data.split(b"\n", 1)[1])),
    "SHA256SUMS line added": ("zzz", None, "missing-file",
        edit(SUMS, lambda data: data + DIGEST_A.encode() + b"  zzz\n")),
    "SHA256SUMS unsorted": (SUMS, None, "bad-sums",
        edit(SUMS, lambda data: b"".join(reversed(data.splitlines(True))))),
    "SHA256SUMS cut off": (SUMS, None, "bad-sums", edit(SUMS, lambda data: data[:-1])),
    "SHA256SUMS in capitals": (SUMS, None, "bad-sums",
        edit(SUMS, lambda data: data[:64].upper() + data[64:])),
    "config.json longer": ("config.json", None, "wrong-size", edit("config.json", lambda data: data + b"\n")),
    "config.json no object": ("config.json", None, "bad-json", edit("config.json", lambda data: b"[]")),
    "tensor in two files": (LAST, EMBED, "duplicate-tensor",
        rewrite(LAST, lambda tensors: tensors | {EMBED: torch.ones(2)})),
    "shard without tensors": (LAST, None, "empty-shard", rewrite(LAST, lambda tensors: {})),
    "numbers with a gap": (INDEX, None, "wrong-numbering", rename_last_shard),
    "header without format": (MIDDLE, None, "bad-header",
        rewrite_header(MIDDLE, lambda header: header.replace(b'"format":"pt"', b" " * 13))),
    "header with two metadata keys": (MIDDLE, None, "bad-header",
        rewrite_header(MIDDLE, lambda header: header.replace(b'"pt"}', b'"pt","abc":"abcdefghi"}'))),
    "header unaligned": (MIDDLE, None, "bad-header",
        rewrite_header(MIDDLE, lambda header: header + b" ")),
    "header starts with a blank": (MIDDLE, None, "bad-header",
        rewrite_header(MIDDLE, lambda header: b" " * 8 + header)),
    "header in another order": (MIDDLE, None, "bad-header", rewrite_header(MIDDLE, with_tensors_reversed)),
    "link leads out": (MIDDLE, None, "unsafe-link", swap_for_link(MIDDLE)),
    "link to a folder": ("here", None, "unsafe-link",
        lambda folder: (folder / "here").symlink_to("assets")),
    "link to nothing": ("here", None, "unsafe-link",
        lambda folder: (folder / "here").symlink_to("nothing")),
    "pipe": ("pipe", None, "not-a-file", lambda folder: os.mkfifo(folder / "pipe")),
}
DEFECTS_OF_BYTES: dict[str, tuple[str, str | None, str, Damage]] = {  # the same, only in what is read
    "bit in a tensor": (MIDDLE, DOWN, "wrong-digest", flip(MIDDLE, in_tensor(DOWN), 3)),
    "bit in integers": (MIDDLE, STEPS, "wrong-digest", flip(MIDDLE, in_tensor(STEPS))),
    "blank in the padding": (LAST, None, "wrong-digest",
        edit(LAST, lambda data: data.replace(b"}} ", b"}}\n", 1))),
    "manifest tensor digest": (MIDDLE, DOWN, "wrong-digest",
        record_edit("xxh3_128", DIGEST_B, resealed=False)),
    "manifest tensor digest, sealed": (MIDDLE, DOWN, "wrong-digest", record_edit("xxh3_128", DIGEST_B)),
    "config.json edited": ("config.json", None, "wrong-digest",
        edit("config.json", lambda data: data.replace(b"8", b"9"))),
}
# fmt: on
ALL_DEFECTS = {**DEFECTS, **DEFECTS_OF_BYTES}
SHARD_DEFECTS = [
    name
    for name, (file, *_) in ALL_DEFECTS.items()
    if file == MIDDLE and not name.startswith(("index", "manifest file", "manifest with"))
]


def found(result: Verification) -> set[tuple[str, str | None, str]]:
    return {(fault.file, fault.tensor, fault.kind) for fault in result.faults}


def test_whole_folder_is_whole(sealed: Path) -> None:
    """A folder without a defect has no fault at any depth; every byte of every recorded file is read once."""
    result = verify_folder(sealed)
    recorded = json.loads((sealed / MANIFEST).read_bytes())["files"]
    assert result.faults == ()
    assert result.ok
    assert result.made_by_us
    assert result.notes == ()
    assert result.depth == "full"
    assert result.num_tensors == 9
    assert result.num_files == len(recorded) + 2
    assert result.num_bytes_read == sum(record["bytes"] for record in recorded.values())
    quick = verify_folder(sealed, quick=True)
    assert quick.ok
    assert quick.depth == "structure"
    assert quick.num_bytes_read == 0
    assert verify_structure(sealed) == []


@pytest.mark.parametrize("name", ALL_DEFECTS)
def test_defect_is_found(folder: Path, name: str) -> None:
    """Every single defect is found; a fault names its kind, its file, and the tensor where there is one."""
    file, tensor, kind, damage = ALL_DEFECTS[name]
    damage(folder)
    result = verify_folder(folder, threads=1)
    assert (file, tensor, kind) in found(result), "\n".join(map(str, result.faults))
    assert not result.ok
    assert {fault.kind for fault in result.faults} <= KINDS.keys()
    assert json.loads(json.dumps(result.to_json()))["ok"] is False


@pytest.mark.parametrize("name", DEFECTS)
def test_structure_suffices(folder: Path, name: str) -> None:
    """Whatever is wrong outside the tensor bytes is found, and named, without reading them."""
    file, tensor, kind, damage = DEFECTS[name]
    damage(folder)
    assert (file, tensor, kind) in {
        (fault.file, fault.tensor, fault.kind) for fault in verify_structure(folder)
    }


@pytest.mark.parametrize("name", ["config.json", INDEX, MANIFEST, SUMS])
def test_huge_text_is_not_read(folder: Path, name: str) -> None:
    """A file of a size that no honest one has is a fault, not a gigabyte in memory."""
    os.truncate(folder / name, 1 << 40)
    started = time.process_time()
    faults = verify_structure(folder)
    assert time.process_time() - started < 1
    assert any(fault.file == name and "are not read" in fault.message for fault in faults)


def test_manifest_of_a_later_release_is_one_fault(folder: Path) -> None:
    """A manifest that can't be understood is compared with nothing, so other files get no blame."""
    sealed_edit(MANIFEST, "format", value="pp_export manifest 2")(folder)
    assert found(verify_folder(folder)) == {(MANIFEST, None, "bad-manifest")}


def test_one_defect_is_not_blamed_on_others(folder: Path) -> None:
    """One flipped bit gives exactly one fault: that tensor of that file."""
    flip(MIDDLE, in_tensor(NORM))(folder)
    assert found(verify_folder(folder)) == {(MIDDLE, NORM, "wrong-digest")}


HEADERS = {
    "gap": (b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}', 3),
    "overlap": (
        b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}',
        3,
    ),
    "key twice": (
        b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}',
        2,
    ),
    "inner key twice": (b'{"a":{"dtype":"U8","dtype":"U8","shape":[2],"data_offsets":[0,2]}}', 2),
    "unknown key": (b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2],"x":1}}', 2),
    "missing key": (b'{"a":{"dtype":"U8","data_offsets":[0,2]}}', 2),
    "unknown dtype": (b'{"a":{"dtype":"Q8","shape":[2],"data_offsets":[0,2]}}', 2),
    "unknown dtype of nothing": (b'{"a":{"dtype":"Q8","shape":[0],"data_offsets":[0,0]}}', 0),
    "dtype a list": (b'{"a":{"dtype":["U8"],"shape":[2],"data_offsets":[0,2]}}', 2),
    "shape a number": (b'{"a":{"dtype":"U8","shape":2,"data_offsets":[0,2]}}', 2),
    "three offsets": (b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2,2]}}', 2),
    "offsets a map": (b'{"a":{"dtype":"U8","shape":[2],"data_offsets":{"0":0,"2":2}}}', 2),
    "entry a number": (b'{"a":2}', 0),
    "metadata a list": (b'{"__metadata__":[],"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}', 2),
    "minus zero": (b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[-0,2]}}', 2),
    "negative size": (b'{"a":{"dtype":"U8","shape":[-2,-1],"data_offsets":[0,2]}}', 2),
    "size true": (b'{"a":{"dtype":"U8","shape":[true],"data_offsets":[0,1]}}', 1),
    "size float": (b'{"a":{"dtype":"U8","shape":[2.0],"data_offsets":[0,2]}}', 2),
    "overflow": (b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}', 0),
    "overflow beside zero": (
        b'{"a":{"dtype":"U8","shape":[4294967296,4294967296,0],"data_offsets":[0,0]}}',
        0,
    ),
    "huge number": (b'{"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,0]}}', 0),
    "backwards": (b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[2,0]}}', 0),
    "wrong size": (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', 4),
    "metadata with a number": (
        b'{"__metadata__":{"n":1},"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}',
        2,
    ),
    "not UTF-8": (b'{"\xff":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}', 2),
    "lone surrogate": (b'{"\\ud800":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}', 2),
    "deep": (b'{"a":' + b"[" * 200_000, 0),
    "infinite": (b'{"a":1e999}', 0),
    "not an object": (b"[]", 0),
    "no tensors": (b"{}", 0),
}


@pytest.mark.parametrize("name", HEADERS)
def test_bad_header_is_refused(tmp_path: Path, name: str) -> None:
    """Each rule of the format holds in any folder, ours or not; a broken one is a fault of that file."""
    header, num_bytes = HEADERS[name]
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * num_bytes)
    faults = verify_folder(tmp_path).faults
    assert faults
    assert {fault.file for fault in faults} == {"model.safetensors"}
    assert {fault.kind for fault in faults} <= {"bad-header", "empty-shard"}


@pytest.mark.parametrize(
    ("length", "num_bytes", "words"),
    [
        (10**8 + 1, 10**8 + 9, "the format allows 100000000"),
        (2**63, 1000, "the format allows 100000000"),
        (993, 1000, "the file has 1000"),
        (0, 7, "too few"),
        (0, 8, "starts with"),
        (10**8, 10**8 + 8, "starts with"),
    ],
)
def test_bad_header_length(tmp_path: Path, length: int, num_bytes: int, words: str) -> None:
    """A length that the format or the file does not allow is a fault, and nothing of that size is parsed."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length))
    os.truncate(path, num_bytes)
    (fault,) = (fault for fault in verify_structure(tmp_path) if fault.file == path.name)
    assert fault.kind == "bad-header"
    assert words in fault.message


# --- folders that others made


def as_stranger(folder: Path) -> Path:
    for name in (MANIFEST, SUMS):
        (folder / name).unlink()
    return folder


def test_folder_of_another_maker(folder: Path) -> None:
    """A folder without our manifest is checked in structure; the result says that no bytes were compared."""
    result = verify_folder(as_stranger(folder))
    assert result.ok
    assert not result.made_by_us
    assert result.depth == "structure"
    assert result.num_tensors == 9
    assert any(MANIFEST in note for note in result.notes)
    assert any("digests" in note for note in result.notes)
    (folder / MIDDLE).unlink()
    assert (MIDDLE, None, "missing-file") in found(verify_folder(folder))


def test_folder_with_other_habits(folder: Path) -> None:
    """What only our own folders promise is no fault elsewhere: metadata, alignment, total_parameters."""
    tensors = {"b": torch.ones(3), "a": torch.ones(3, dtype=torch.uint8)}
    save_file(tensors, folder / SHARDS[0], metadata={"a": "b"})
    rewrite_header(LAST, with_tensors_reversed)(folder)
    make_index(folder)
    rewrite_header(SHARDS[0], lambda header: header.rstrip() + b" ")(folder)
    edit_json(INDEX, lambda index: index["metadata"].pop("total_parameters"))(folder)
    edit_json(
        INDEX, lambda index: index["metadata"].update(total_size=float(index["metadata"]["total_size"]))
    )(folder)
    (folder / "config.json").write_text('{"time_step_limit": [0.0, Infinity]}')
    (folder / ".gitattributes").write_text("")
    (folder / "pytorch_model.bin.index.json").write_text("{}")
    result = verify_folder(as_stranger(folder))
    assert result.faults == ()
    assert any("second index" in note for note in result.notes)
    assert any(".gitattributes" in note for note in result.notes)


def test_single_file_needs_no_index(tmp_path: Path) -> None:
    """One model.safetensors without an index is whole."""
    save_file({"a": torch.ones(3)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert verify_folder(tmp_path).ok


def test_folder_without_weights(tmp_path: Path) -> None:
    """A folder without weights is never whole, and neither is an empty one."""
    assert {(fault.kind, fault.file) for fault in verify_folder(tmp_path).faults} == {
        ("missing-file", "model.safetensors"),
        ("missing-file", "config.json"),
    }


def test_what_loaders_would_not_find_is_noted(tmp_path: Path) -> None:
    """A single file of another name and an index too large for the Hub's loader are notes."""
    (tmp_path / "config.json").write_text("{}")
    save_file({"a": torch.ones(3)}, tmp_path / "adapter.safetensors")
    result = verify_folder(tmp_path)
    assert result.ok
    assert any("adapter.safetensors" in note for note in result.notes)
    index = {
        "metadata": {"total_size": 12, "x": "x" * (11 << 20)},
        "weight_map": {"a": "adapter.safetensors"},
    }
    (tmp_path / INDEX).write_text(json.dumps(index))
    result = verify_folder(tmp_path)
    assert result.ok
    assert any("10 MiB" in note for note in result.notes)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.safetensors", "instead of the index"),
        ("consolidated.1.safetensors", "vLLM"),
        ("x.safetensors", ""),
    ],
)
def test_why_an_unindexed_file_matters(folder: Path, name: str, words: str) -> None:
    """The fault of an unindexed weight file says what a loader would make of it."""
    add_weights(name)(as_stranger(folder))
    (fault,) = verify_folder(folder).faults
    assert fault.message == "the index does not name it" if not words else words in fault.message


def test_two_files_need_an_index(tmp_path: Path) -> None:
    """Two weight files without an index are a fault: no loader would read both."""
    for name in ("a", "b"):
        save_file({name: torch.ones(3)}, tmp_path / f"{name}.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert found(verify_folder(tmp_path)) == {(INDEX, None, "missing-file")}


# --- weights beside files of others


@pytest.fixture
def mixed(folder: Path) -> Path:
    """A folder whose weights alone are pp_export's, as `contents: weights` makes it."""
    others = ["config.json", "tokenizer.json", "assets/template.jinja"]
    for name in others:
        (folder / name).unlink()
    seal(folder)
    sealed_edit(MANIFEST, "contents", value="weights")(folder)
    return folder


def add_others(folder: Path) -> None:
    """What a framework puts beside the weights."""
    for name in ("config.json", "tokenizer.json", "notes.txt", "assets/more/template.jinja"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")


def test_files_of_others_are_noted(mixed: Path) -> None:
    """Files that the manifest doesn't cover are named in a note, each, and are no fault, at both depths."""
    add_others(mixed)
    for quick in (True, False):
        result = verify_folder(mixed, quick=quick)
        assert (result.faults, result.ok) == ((), True)
        (note,) = result.notes
        assert note.startswith(f"not covered by {MANIFEST}: ")
        names = "assets/more/template.jinja, config.json, notes.txt, tokenizer.json"
        assert note.endswith(names)


def test_weights_alone_need_no_config_yet(mixed: Path) -> None:
    """Before others have added it, a missing config.json is a note; in a whole export it is a fault."""
    result = verify_folder(mixed)
    assert (result.faults, result.ok) == ((), True)
    assert any("config.json" in note and "weights only" in note for note in result.notes)
    sealed_edit(MANIFEST, "contents", value="folder")(mixed)
    assert found(verify_folder(mixed)) == {("config.json", None, "missing-file")}


def test_a_config_of_others_must_be_one(mixed: Path) -> None:
    """A config.json that is there is read, also where it is not ours."""
    (mixed / "config.json").write_text("{")
    assert found(verify_folder(mixed)) == {("config.json", None, "bad-json")}


@pytest.mark.parametrize(
    "name", ["model.safetensors", "pytorch_model.bin", "pytorch_model-00001-of-00002.bin"]
)
def test_weights_of_others_are_a_fault(mixed: Path, name: str) -> None:
    """Weights that the manifest doesn't list are no other file: a loader might take them."""
    add_others(mixed)
    add_weights(name)(mixed)
    assert (name, None, "unlisted-file") in found(verify_folder(mixed))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ((MIDDLE, DOWN, "wrong-digest"), flip(MIDDLE, in_tensor(DOWN))),
        ((MIDDLE, None, "missing-file"), remove(MIDDLE)),
        ((MIDDLE, None, "wrong-size"), edit(MIDDLE, lambda data: data + b"\0")),
        ((INDEX, None, "missing-file"), remove(INDEX)),
        ((SUMS, None, "missing-file"), remove(SUMS)),
        ((".tmpA1b2C3", None, "leftover-file"), add(".tmpA1b2C3")),
    ],
    ids=lambda value: value[2] if isinstance(value, tuple) else "",
)
def test_damaged_weights_beside_others_are_found(
    mixed: Path, name: tuple[str, str | None, str], damage: Damage
) -> None:
    """What the manifest does cover is checked as in any export, whatever lies beside it."""
    add_others(mixed)
    damage(mixed)
    assert name in found(verify_folder(mixed))


@pytest.mark.parametrize("contents", ["folder", "", None, 1, ["weights"]])
def test_only_known_words_allow_files_of_others(mixed: Path, contents: object) -> None:
    """With any other value of `contents` an unlisted file is a fault."""
    add_others(mixed)
    sealed_edit(MANIFEST, "contents", value=contents)(mixed)
    assert ("notes.txt", None, "unlisted-file") in found(verify_folder(mixed))


@pytest.mark.parametrize("flipped", [False, True])
def test_snapshot_of_the_hub_cache(sealed: Path, tmp_path: Path, flipped: bool) -> None:
    """A cache snapshot's links to its own blobs are followed; a blob must have the digest that names it."""
    snapshot, blobs = tmp_path / "models--x" / "snapshots" / "abc", tmp_path / "models--x" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in [*SHARDS, INDEX, "config.json"]:
        data = bytearray((sealed / name).read_bytes())
        blob = blobs / sha256(data)
        if flipped and name == SHARDS[0]:
            data[-1] ^= 1
        blob.write_bytes(data)
        (snapshot / name).symlink_to(f"../../blobs/{blob.name}")
    result = verify_folder(snapshot)
    assert found(result) == ({(SHARDS[0], None, "wrong-digest")} if flipped else set())
    assert result.depth == "full"
    assert not result.made_by_us


# --- names that lead out

opened: list[str] = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "/etc/outside.safetensors",
        "sub/outside.safetensors",
        ".outside.safetensors",
        "outside.safetensors\n",
        "out\\side.safetensors",
        "outside\x00.safetensors",
        "outside.bin",
        "x" * 300 + "outside.safetensors",
        7,
        None,
        ["x"],
    ],
)
def test_unsafe_name_is_never_opened(folder: Path, name: object) -> None:
    """An index entry that is no plain weight file name is a fault, and what it names is not opened."""
    save_file({DOWN: torch.ones(2)}, folder.parent / "outside.safetensors")
    edit_json(INDEX, set_key("weight_map", DOWN, value=name), resealed=True)(folder)
    opened.clear()
    result = verify_folder(folder)
    assert (INDEX, DOWN, "unsafe-name") in found(result)
    assert opened
    assert not any("outside" in path or "side." in path for path in opened)


def test_unsafe_record_is_never_opened(folder: Path) -> None:
    """A shard record that names a file outside the folder is a fault, and the file is not opened."""
    save_file({DOWN: torch.ones(2)}, folder.parent / "outside.safetensors")
    record = shard_record(folder.parent / "outside.safetensors") | {"file": "../outside.safetensors"}
    edit_json(MANIFEST, lambda manifest: manifest["shards"].append(record), resealed=True)(folder)
    opened.clear()
    assert verify_shard(folder, record)
    assert (MANIFEST, None, "bad-manifest") in found(verify_folder(folder))
    assert opened
    assert not any("outside" in path for path in opened)


def test_link_out_is_never_opened(folder: Path) -> None:
    """A symbolic link that leads out of the folder is a fault and is not followed."""
    swap_for_link(MIDDLE)(folder)
    opened.clear()
    verify_folder(folder)
    assert opened
    assert not any(path.endswith((MIDDLE, "elsewhere")) for path in opened)


def test_names_are_shown_safely(folder: Path) -> None:
    """A fault's text is bounded and has no control characters, whatever a header or folder is called."""
    name = "\x1b[2J" + "x" * 10_000
    rewrite(SHARDS[0], lambda tensors: {name: torch.ones(2)})(folder)
    (folder / "odd\nname\udcff").write_bytes(b"")
    result = verify_folder(folder)
    assert any(fault.tensor == name for fault in result.faults)
    assert all(str(fault).isprintable() and len(str(fault)) < 1000 for fault in result.faults)
    json.dumps(result.to_json()).encode()


# --- reading


def faulty_reads(patch: pytest.MonkeyPatch, file: str, damage: Callable[[memoryview, int], None]) -> None:
    """Let every read of `file` pass through `damage`, which gets the bytes and the number of the read."""
    read, count = content._read_step, iter(range(1000))

    def faulty(opened_file: Any, buffer: memoryview) -> int:
        num_bytes = read(opened_file, buffer)
        if num_bytes and os.readlink(f"/proc/self/fd/{opened_file.fileno()}").endswith(file):
            damage(buffer[:num_bytes], next(count))
        return num_bytes

    patch.setattr(content, "_read_step", faulty)


def test_bad_read_once_is_transient(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that gives wrong bytes once is told from a damaged file, and still reported."""

    def damage(data: memoryview, count: int) -> None:
        data[-1] ^= 1 if count == 0 else 0

    faulty_reads(monkeypatch, LAST, damage)
    result = verify_folder(sealed)
    assert found(result) == {(LAST, None, "transient-read")}
    assert not result.ok
    assert "model.norm.weight" in result.faults[0].message


def test_failed_read_once_is_transient(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that fails once is transient too; one that fails twice is an unreadable file."""

    def damage(data: memoryview, count: int) -> None:
        if count < limit:
            raise OSError(5, "Input/output error")

    limit = 1
    faulty_reads(monkeypatch, LAST, damage)
    assert found(verify_folder(sealed)) == {(LAST, None, "transient-read")}
    limit = 100
    assert found(verify_folder(sealed)) == {(LAST, None, "unreadable-file")}


def test_bad_read_always_is_a_wrong_digest(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that are wrong in the same way twice are blamed on the file, not on the way to it."""

    def damage(data: memoryview, count: int) -> None:
        data[-1] ^= 1

    faulty_reads(monkeypatch, LAST, damage)
    assert found(verify_folder(sealed)) == {(LAST, "model.norm.weight", "wrong-digest")}


def test_subsets_are_all_files(folder: Path) -> None:
    """The n subsets read every recorded file once between them, and exactly one finds a damage."""
    full = verify_folder(folder)
    for num_subsets in (1, 2, 5, 20):
        shares = [verify_folder(folder, subset=(i + 1, num_subsets)) for i in range(num_subsets)]
        assert sum(share.num_bytes_read for share in shares) == full.num_bytes_read
    for file in [*SHARDS, "config.json", "tokenizer.json", "assets/template.jinja"]:
        edit(file, lambda data: data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])(folder)
        num_finders = 0
        for i in range(3):
            share = verify_folder(folder, subset=(i + 1, 3))
            num_finders += any(fault.file == file and fault.kind == "wrong-digest" for fault in share.faults)
        assert num_finders == 1
        assert share.depth == "subset 3/3"


def test_small_steps_and_threads_change_nothing(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensor digests are right wherever the steps of reading fall, and with any number of threads."""
    for step in (1, 7, 64, 1000):
        monkeypatch.setattr(content, "STEP_BYTES", step)
        assert verify_folder(sealed, threads=3).ok


def test_progress_is_told(sealed: Path) -> None:
    """on_bytes hears of every byte, and what it raises ends the verification."""
    seen: list[int] = []
    assert verify_folder(sealed, on_bytes=seen.append, threads=2).num_bytes_read == sum(seen) > 0

    def stop(num_bytes: int) -> None:
        raise OSError(28, "told to stop")

    with pytest.raises(OSError, match="told to stop"):
        verify_folder(sealed, on_bytes=stop)
    with pytest.raises(OSError, match="told to stop"):
        verify_shard(sealed, shard_record(sealed / SHARDS[0]), on_bytes=stop)


def test_options_that_make_no_sense(sealed: Path) -> None:
    """Wrong options and a missing folder are errors of the tree, not faults."""
    for options in (
        {"subset": (0, 3)},
        {"subset": (4, 3)},
        {"quick": True, "subset": (1, 2)},
        {"threads": 0},
    ):
        with pytest.raises(OptionError):
            verify_folder(sealed, **options)
    with pytest.raises(VerificationError):
        verify_folder(sealed / "absent")
    with pytest.raises(VerificationError):
        verify_structure(sealed / "config.json")


# --- one shard, inside an export


def test_whole_shard(sealed: Path) -> None:
    """A shard that equals its record has no fault, and every byte of it is read once."""
    for name in SHARDS:
        seen: list[int] = []
        assert verify_shard(sealed, shard_record(sealed / name), seen.append) == []
        assert sum(seen) == (sealed / name).stat().st_size


def test_cached_pages_are_dropped(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel is asked to forget the file before the first byte is digested."""
    asked: list[tuple[int, int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, *rest: asked.append(rest))
    verify_shard(sealed, shard_record(sealed / SHARDS[0]))
    assert (0, 0, os.POSIX_FADV_DONTNEED) in asked


@pytest.mark.parametrize("name", SHARD_DEFECTS)
def test_damaged_shard(folder: Path, name: str) -> None:
    """What is wrong with a shard or with its record is found by a rank that has only these two."""
    _, tensor, _, damage = ALL_DEFECTS[name]
    record = shard_record(folder / MIDDLE)
    damage(folder)
    if name.startswith("manifest"):
        record = json.loads((folder / MANIFEST).read_bytes())["shards"][1]
    faults = verify_shard(folder, record)
    assert {fault.file for fault in faults} == {MIDDLE}
    assert tensor is None or tensor in {fault.tensor for fault in faults}


@pytest.mark.parametrize("size", [0, 5, 100, -1])
def test_cut_shard_names_what_is_cut(folder: Path, size: int) -> None:
    """A truncated shard has a wrong size, and what is cut is named."""
    record, path = shard_record(folder / MIDDLE), folder / MIDDLE
    path.write_bytes(path.read_bytes()[:size])
    faults = verify_shard(folder, record)
    assert "wrong-size" in {fault.kind for fault in faults}
    assert record["tensors"][-1]["name"] in {fault.tensor for fault in faults}


def test_pipe_under_a_shard_name_does_not_block(folder: Path) -> None:
    """A pipe in the place of a shard is a fault at once; nobody waits for a writer."""
    record = shard_record(folder / MIDDLE)
    (folder / MIDDLE).unlink()
    os.mkfifo(folder / MIDDLE)
    assert {fault.kind for fault in verify_shard(folder, record)} == {"unreadable-file"}


def test_bad_records_are_faults(sealed: Path) -> None:
    """A record of the wrong form, or one that names a file outside, is a fault and opens nothing."""
    record = shard_record(sealed / SHARDS[0])
    values: tuple[Any, ...] = (None, 1.5, "../x.safetensors", [], [None], {}, -1, "x", 10**30)
    for key in record:
        for value in values:
            faults = verify_shard(sealed, record | {key: value})
            assert faults
            assert {fault.kind for fault in faults} <= KINDS.keys()
    for key in record["tensors"][0]:
        for value in values:
            changed = record | {"tensors": [record["tensors"][0] | {key: value}]}
            assert verify_shard(sealed, changed)


def test_swapped_shards_are_found(folder: Path) -> None:
    """Two shard files under each other's names are both faulty."""
    records = [shard_record(folder / name) for name in SHARDS]
    (folder / SHARDS[0]).rename(folder / "x")
    (folder / LAST).rename(folder / SHARDS[0])
    (folder / "x").rename(folder / LAST)
    assert verify_shard(folder, records[0])
    assert verify_shard(folder, records[2])
    assert {SHARDS[0], LAST} <= {fault.file for fault in verify_folder(folder).faults}


# --- fuzzing

FUZZ = settings(
    max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def mutations(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """Functions that damage bytes: replace, insert, remove, repeat or cut."""
    kind = draw(st.sampled_from(["replace", "insert", "remove", "repeat", "cut"]))
    place, length = draw(st.floats(0, 0.999)), draw(st.integers(1, 12))
    filling = draw(
        st.binary(min_size=1, max_size=12) | st.sampled_from([b'"', b"{", b"[[", b"-", b"9" * 30, b"e9"])
    )

    def mutate(data: bytes) -> bytes:
        at = int(place * len(data))
        if kind == "replace":
            return data[:at] + filling + data[at + len(filling) :]
        if kind == "insert":
            return data[:at] + filling + data[at:]
        if kind == "remove":
            return data[:at] + data[at + length :]
        return data[:at] + data[at : at + length] * 2 + data[at + length :] if kind == "repeat" else data[:at]

    return mutate


@st.composite
def json_mutations(draw: st.DrawFn) -> Callable[[Any], Any]:
    """Functions that put another value somewhere into a JSON value."""
    turns = draw(st.lists(st.floats(0, 0.999), min_size=1, max_size=6))
    value: Any = draw(JSON_VALUES)

    def mutate(root: Any) -> Any:
        here: Any = root
        last: Any = None
        for turn in turns:
            if not isinstance(here, (dict, list)) or not here:
                break
            keys = list(here) if isinstance(here, dict) else list(range(len(here)))
            last, here = (here, keys[int(turn * len(keys))]), here[keys[int(turn * len(keys))]]
        assert last is not None
        last[0][last[1]] = value
        return root

    return mutate


def check_fuzzed(folder: Path, *, changed: bool) -> None:
    """Verification of a fuzzed folder returns known kinds in bounded time, and sees the change."""
    started = time.process_time()
    quick, full = verify_folder(folder, quick=True), verify_folder(folder, threads=1)
    assert time.process_time() - started < 1
    assert set(quick.faults) <= set(full.faults)
    for fault in full.faults:
        assert fault.kind in KINDS
        assert str(fault).isprintable()
    assert not (changed and full.ok)
    json.dumps(full.to_json())


def fuzz(sealed: Path, file: str, change: Callable[[bytes], bytes], *, resealed: bool = False) -> None:
    with tempfile.TemporaryDirectory(dir=sealed.parent) as parent:
        folder = Path(shutil.copytree(sealed, Path(parent) / "model", copy_function=os.link))
        before = (folder / file).read_bytes()
        after = change(before)
        (folder / file).unlink()
        (folder / file).write_bytes(after)
        same = before == after
        if file == MANIFEST:  # its digest is over the JSON value, and where it came from is anybody's text
            was, now = json.loads(before), _json_or_none(after)
            if resealed:
                write_manifest(folder, now)
                ignored = dict.fromkeys(("digest", "provenance"))
                was, now = was | ignored, now | ignored
            same = was == now
        elif resealed:
            seal(folder)
            same = json.loads(before) == json.loads(after)
        check_fuzzed(folder, changed=not same)


def _json_or_none(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


@FUZZ
@given(mutations())
def test_fuzzed_bytes(sealed: Path, mutate: Callable[[bytes], bytes]) -> None:
    """Damaged bytes in a shard, the index, the manifest or SHA256SUMS: a fault, never a traceback."""
    for file in (MIDDLE, INDEX, MANIFEST, SUMS):
        fuzz(sealed, file, mutate)


@settings(FUZZ, max_examples=60)
@given(json_mutations())
def test_fuzzed_values(sealed: Path, mutate: Callable[[Any], Any]) -> None:
    """Any JSON value anywhere in index or manifest is found, in a correctly sealed manifest too."""

    def change(data: bytes) -> bytes:
        return json.dumps(mutate(json.loads(data))).encode()

    fuzz(sealed, INDEX, change)
    fuzz(sealed, INDEX, change, resealed=True)
    fuzz(sealed, MANIFEST, change)
    fuzz(sealed, MANIFEST, change, resealed=True)


@settings(FUZZ, max_examples=400)
@given(mutations(), st.booleans())
def test_header_that_we_accept_is_accepted_by_the_library(
    sealed: Path, mutate: Callable[[bytes], bytes], fix_length: bool
) -> None:
    """Our header rules are no weaker than the library's: it opens whatever we find no fault with."""
    data = (sealed / MIDDLE).read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    header = mutate(data[8:start])
    fuzzed = (struct.pack("<Q", len(header)) if fix_length else data[:8]) + header + data[start:]
    with tempfile.TemporaryDirectory(dir=sealed.parent) as parent:
        path = Path(parent) / "fuzzed.safetensors"
        path.write_bytes(fuzzed)
        with path.open("rb", buffering=0) as file:
            ours, faults = read_header(file, path.name, len(fuzzed), ours=False)
    if not faults:
        assert ours is not None
        library = safetensors.deserialize(fuzzed)  # type: ignore[no-untyped-call]
        assert {name for name, _ in library} == {entry.name for entry in ours.tensors}


# --- loading

MODEL_NAMES = ["llama", "mistral", "qwen2", "qwen2_tied", "qwen3", "qwen3_moe", "qwen3_moe_list", "mixtral"]


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders that transformers itself saved, by the name of the model; nobody may change them."""
    transformers: Any = pytest.importorskip("transformers")
    from tests.fixtures.models import MODELS, hf_config

    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            model = dataclasses.replace(
                MODELS[name], num_layers=2, num_experts=MODELS[name].num_experts and 4
            )
            if model.moe_layers:
                model = dataclasses.replace(model, moe_layers=(0, 1))
            made[name] = tmp_path_factory.mktemp(name) / "model"
            model_class = getattr(transformers, model.hf_class)
            model_class(hf_config(model)).save_pretrained(made[name], max_shard_size="100KB")
        return made[name]

    return make


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_model_loads(make_model: Callable[[str], Path], name: str) -> None:
    """A folder that transformers saved has no fault and loads: dense, tied, packed experts."""
    assert "HF_HUB_OFFLINE" not in os.environ
    result = verify_folder(make_model(name), load=True)
    assert result.faults == ()
    assert result.depth == "structure and load"
    assert "HF_HUB_OFFLINE" not in os.environ


def without_tensor(name: str) -> Damage:
    return change_tensors(lambda tensors: {key: value for key, value in tensors.items() if key != name})


def change_tensors(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Damage:
    """The folder's tensors changed, in one file with no index: sound in structure."""

    def damage(folder: Path) -> None:
        tensors: dict[str, torch.Tensor] = {}
        for path in sorted(folder.glob("*.safetensors")):
            tensors |= load_file(path)
            path.unlink()
        (folder / INDEX).unlink(missing_ok=True)
        save_file(change(tensors), folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def set_config(**values: object) -> Damage:
    return edit_json("config.json", lambda config: config.update(values))


UP = "model.layers.1.mlp.up_proj.weight"
EXPERT = "model.layers.1.mlp.experts.3.down_proj.weight"
LOAD_DEFECTS: dict[str, tuple[str, str | None, str, Damage]] = {  # name: model, tensor, kind, damage
    "missing": ("llama", UP, "load-missing", without_tensor(UP)),
    "unexpected": (
        "llama",
        "x",
        "load-unexpected",
        change_tensors(lambda tensors: {**tensors, "x": torch.ones(1)}),
    ),
    "other shape": (
        "llama",
        UP,
        "load-mismatch",
        change_tensors(lambda tensors: {**tensors, UP: torch.ones(2, 3)}),
    ),
    "missing expert": (
        "qwen3_moe",
        "model.layers.1.mlp.experts.down_proj",
        "load-mismatch",
        without_tensor(EXPERT),
    ),
    "more layers": (
        "llama",
        "model.layers.2.mlp.up_proj.weight",
        "load-missing",
        set_config(num_hidden_layers=3),
    ),
    "other heads": (
        "mistral",
        "model.layers.0.self_attn.k_proj.weight",
        "load-mismatch",
        set_config(num_key_value_heads=2),
    ),
    "unknown class": ("llama", None, "load-failed", set_config(architectures=["NobodyForCausalLM"])),
    "class that is no model": ("llama", None, "load-failed", set_config(architectures=["AutoTokenizer"])),
    "no class": ("llama", None, "load-failed", set_config(architectures=[])),
    "nonsense": ("llama", None, "load-failed", set_config(hidden_size="many")),
}


@pytest.mark.parametrize("name", LOAD_DEFECTS)
def test_model_that_does_not_fit(make_model: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    """A folder that is sound in itself but not what its config.json describes is found by loading it."""
    model, tensor, kind, damage = LOAD_DEFECTS[name]
    folder = Path(shutil.copytree(make_model(model), tmp_path / "model"))
    damage(folder)
    assert verify_folder(folder).ok
    faults = verify_folder(folder, load=True).faults
    assert (tensor, kind) in {(fault.tensor, fault.kind) for fault in faults}


def test_loading_runs_no_code_of_the_folder(make_model: Callable[[str], Path], tmp_path: Path) -> None:
    """Code that config.json points at is never run, and weights or kernels that it names are not fetched."""
    folder = Path(shutil.copytree(make_model("llama"), tmp_path / "model"))
    marker = tmp_path / "was run"
    (folder / "modeling_x.py").write_text(f"open({str(marker)!r}, 'w')\nclass X: pass\n")
    set_config(
        auto_map={"AutoConfig": "modeling_x.X", "AutoModelForCausalLM": "modeling_x.X"},
        attn_implementation="somebody/kernel",
        _attn_implementation="somebody/kernel",
        transformers_weights="other.safetensors",
    )(folder)
    assert verify_folder(folder, load=True).faults == ()
    assert not marker.exists()


def test_faulty_folder_is_not_loaded(folder: Path) -> None:
    """A folder with a fault is not handed to a loader that would trust it."""
    flip(MIDDLE, in_tensor(DOWN))(folder)
    result = verify_folder(folder, load=True)
    assert found(result) == {(MIDDLE, DOWN, "wrong-digest")}
    assert any("not loaded" in note for note in result.notes)


# --- walls

PACKAGE = Path(content.__file__).parent


def test_stranger_imports_only_words() -> None:
    """Verify shares no code with planner and writer: of pp_export it imports words and itself only."""
    allowed = {"pp_export", "pp_export.core.errors", "pp_export.core.dtypes", "pp_export.core.digest"}
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for module in modules:
                assert (
                    not module.startswith("pp_export")
                    or module in allowed
                    or "pp_export.verification" in module
                )
                assert module.split(".")[0] not in (
                    "torch",
                    "safetensors",
                    "transformers",
                    "accelerate",
                    "megatron",
                )


def test_stranger_needs_no_torch(sealed: Path) -> None:
    """A full verification imports neither torch nor safetensors nor transformers, so it starts at once."""
    code = (
        "import sys; from pathlib import Path; from pp_export.verification import verify_folder;"
        f"assert verify_folder(Path({str(sealed)!r})).ok;"
        "assert not {'torch', 'safetensors', 'transformers', 'numpy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent.parent, timeout=60)


def test_stranger_only_reads(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verification changes nothing in the folder, not even a time of modification."""
    before = {path: path.stat().st_mtime_ns for path in sealed.rglob("*")}
    verify_folder(sealed)
    assert before == {path: path.stat().st_mtime_ns for path in sealed.rglob("*")}


def test_many_tensors_take_linear_time(tmp_path: Path) -> None:
    """The structure of 20,000 tensors is checked in seconds."""
    entries: dict[str, Any] = {
        f"t{i}": {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]} for i in range(20_000)
    }
    header = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    name = "model-00001-of-00001.safetensors"
    (tmp_path / name).write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 20_000)
    (tmp_path / "config.json").write_text("{}")
    weight_map = dict.fromkeys(entries, name) | {"t0": "model-00001-of-00002.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {"total_size": 20_000}, "weight_map": weight_map}))
    started = time.process_time()
    assert verify_structure(tmp_path)
    assert time.process_time() - started < 4
