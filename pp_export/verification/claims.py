"""What export_manifest.json, SHA256SUMS and the JSON of a staged shard claim, read without trusting them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pp_export.core.digest import json_digest
from pp_export.core.file_names import MANIFEST, SUMS, is_weight_file
from pp_export.core.strict_json import JsonError, is_count, parse_object
from pp_export.verification.findings import Fault, MalformedError, brief
from pp_export.verification.folder import is_sha256
from pp_export.verification.header import TensorEntry, parse_tensor

FORMAT = "pp_export manifest 1"
MAX_SHARD_JSON_BYTES = 512 << 20

_XXH3_128 = re.compile(r"[0-9a-f]{32}")
_SUMS_LINE = re.compile(r"([0-9a-f]{64})  ([^\n\\]+)")


@dataclass(frozen=True)
class FileClaim:
    """Size and SHA-256 of a file."""

    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardClaim:
    """A weight file and its tensors in file order, each with its XXH3-128, and that of its header."""

    file: str
    whole: FileClaim
    header_digest: str
    tensors: tuple[tuple[TensorEntry, str], ...]

    @property
    def data_begin(self) -> int:
        """Where the data start: they end with the file."""
        return self.whole.num_bytes - (self.tensors[-1][0].end if self.tensors else 0)

    @property
    def is_contiguous(self) -> bool:
        """Whether each tensor begins where the one before ends, so that one pass meets them in order, and the
        digests of header and tensors cover every byte of the file.
        """
        entries = [entry for entry, _ in self.tensors]
        starts = [0, *(entry.end for entry in entries[:-1])]
        return self.data_begin >= 0 and [entry.begin for entry in entries] == starts[: len(entries)]


@dataclass
class Manifest:
    """The parts of a manifest that have the right form, and a fault for each that has not."""

    files: dict[str, FileClaim] = field(default_factory=dict)
    shards: dict[str, ShardClaim] = field(default_factory=dict)
    contents: object = None
    """`folder`, or `model` or `weights` where files of others lie beside them."""
    total_size: object = None
    total_parameters: object = None
    is_readable: bool = False
    """Whether it is a manifest at all; if not, nothing can be compared with it."""
    faults: list[Fault] = field(default_factory=list)


def parse_manifest(data: bytes) -> Manifest:
    """Read a manifest; never raises."""
    manifest = Manifest()
    try:
        value = parse_object(data)
        if value.get("format") != FORMAT:  # nothing else can be relied on
            raise MalformedError(f"its format is {brief(value.get('format'))}; this release knows {FORMAT!r}")
        files, shards = value.get("files"), value.get("shards")
        if not isinstance(files, dict) or not isinstance(shards, list):
            raise MalformedError("it has no map of files or no list of shards")
        digest = json_digest({key: each for key, each in value.items() if key != "digest"})
    except (MalformedError, JsonError) as broken:
        manifest.faults.append(_manifest_fault(str(broken)))
        return manifest
    if digest != value.get("digest"):
        text = f"its content has digest {digest}, it says {brief(value.get('digest'))}"
        manifest.faults.append(_manifest_fault(text))
    manifest.is_readable = True
    for name, claim in files.items():
        _collect_file(manifest, name, claim)
    for claim in shards:
        _collect_shard(manifest, claim)
    manifest.contents = value.get("contents")
    manifest.total_size, manifest.total_parameters = value.get("total_size"), value.get("total_parameters")
    return manifest


def parse_shard_json(data: bytes, file: str) -> ShardClaim:
    """The JSON of the staged shard `file`; MalformedError or JsonError where it is none. Its SHA-256 may be
    empty: nobody knows it yet.
    """
    if not is_weight_file(file):
        raise MalformedError("its name is no plain name of a weight file; not opened")
    claim = parse_shard_claim(parse_object(data), is_staged=True)
    if claim.file != file:
        raise MalformedError(f"it is that of {claim.file}")
    return claim


def parse_shard_claim(value: object, *, is_staged: bool = False) -> ShardClaim:
    """One entry of the manifest's `shards`, or MalformedError."""
    if not isinstance(value, Mapping):
        raise MalformedError(f"it is {brief(value)}")
    file, tensors = value.get("file"), value.get("tensors")
    if not is_weight_file(file):
        raise MalformedError(f"it names the file {brief(file)}, which was not opened")
    whole, header_digest = _parse_file_claim(value, is_staged=is_staged), value.get("header_xxh3_128")
    if not _is_xxh3_128(header_digest):
        raise MalformedError(f"recorded digest {brief(header_digest)} of its header is no XXH3-128")
    if not isinstance(tensors, (list, tuple)) or not all(isinstance(each, Mapping) for each in tensors):
        raise MalformedError("it has no list of tensors")
    parsed = tuple(_parse_tensor_claim(each) for each in tensors)
    names: set[str] = set()
    for entry, _ in parsed:
        if entry.name in names:
            raise MalformedError("it is recorded twice", tensor=entry.name)
        names.add(entry.name)
    return ShardClaim(str(file), whole, str(header_digest), parsed)


def shard_claim_fault(value: object, broken: MalformedError) -> Fault:
    """The fault of a record that `parse_shard_claim` refused, under its file's name if that is safe."""
    name = value.get("file") if isinstance(value, Mapping) else None
    file = str(name) if is_weight_file(name) else MANIFEST
    return Fault("bad-manifest", file, broken.tensor, f"its shard record: {broken.message}")


def parse_sums(data: bytes) -> tuple[dict[str, str], list[Fault]]:
    """The digests of SHA256SUMS by path, and a fault for what is not as `sha256sum` writes it."""
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        return {}, [Fault("bad-sums", SUMS, None, "it is not UTF-8 text")]
    faults = [] if lines.pop() == "" else [Fault("bad-sums", SUMS, None, "its last line is cut off")]
    matches = [_SUMS_LINE.fullmatch(line) for line in lines]
    sums = {match[2]: match[1] for match in matches if match}
    broken = [line for line, match in zip(lines, matches, strict=True) if not match]
    if broken:
        faults.append(Fault("bad-sums", SUMS, None, f"not a line of sha256sum: {brief(broken[0])}"))
    elif list(sums) != sorted(sums) or len(sums) != len(lines):
        faults.append(Fault("bad-sums", SUMS, None, "its lines are not sorted by path, each path once"))
    return sums, faults


def is_safe_path(name: str) -> bool:
    """Whether `name` is a relative path that stays in the folder, as `SHA256SUMS` can hold it."""
    return (
        0 < len(name) < 4096
        and not any(character in "\\\0\n\r" for character in name)
        and all(part not in ("", ".", "..") for part in name.split("/"))
    )


def _manifest_fault(message: str) -> Fault:
    return Fault("bad-manifest", MANIFEST, None, message)


def _collect_file(manifest: Manifest, name: str, claim: Any) -> None:
    if not is_safe_path(name):
        text = f"it lists {brief(name)}, which may lead out of the folder; not opened"
        manifest.faults.append(Fault("unsafe-name", MANIFEST, None, text))
        return
    try:
        manifest.files[name] = _parse_file_claim(claim)
    except MalformedError as broken:
        text = f"its record in the manifest: {broken.message}"
        manifest.faults.append(Fault("bad-manifest", name, None, text))


def _collect_shard(manifest: Manifest, value: Any) -> None:
    try:
        claim = parse_shard_claim(value)
        if claim.file in manifest.shards:
            raise MalformedError("there are two")
        manifest.shards[claim.file] = claim
    except MalformedError as broken:
        manifest.faults.append(shard_claim_fault(value, broken))


def _parse_file_claim(value: object, *, is_staged: bool = False) -> FileClaim:
    fields = value if isinstance(value, Mapping) else {}
    is_digest = is_sha256(fields.get("sha256")) or (is_staged and fields.get("sha256") == "")
    if not is_count(fields.get("bytes")) or not is_digest:
        raise MalformedError("bytes and sha256 are not a size and a digest")
    return FileClaim(fields["bytes"], fields["sha256"])


def _parse_tensor_claim(value: Mapping[str, Any]) -> tuple[TensorEntry, str]:
    name, digest = value.get("name"), value.get("xxh3_128")
    if not isinstance(name, str):
        raise MalformedError(f"it names a tensor {brief(name)}")
    if not _is_xxh3_128(digest):
        raise MalformedError(f"recorded digest {brief(digest)} is no XXH3-128", tensor=name)
    try:
        offsets = [value.get("begin"), value.get("end")]
        entry = parse_tensor(name, value.get("dtype"), value.get("shape"), offsets)
    except MalformedError as broken:
        raise MalformedError(broken.message, tensor=name) from None
    return entry, str(digest)


def _is_xxh3_128(value: object) -> bool:
    return isinstance(value, str) and _XXH3_128.fullmatch(value) is not None
