"""The JSON that accompanies the weights: shard manifests, the index, the manifest, SHA256SUMS. Values
only, no disk.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pp_export.core.digest import json_digest

MANIFEST_FORMAT = "pp_export manifest 1"


class LargestError(NamedTuple):
    """The largest error that quantizing made of any value of a tensor: `absolute`, and the largest one as a
    part of the largest value that has the same scale.
    """

    absolute: float
    relative: float


Errors = Mapping[str, LargestError]
"""Of the tensors that are quantized, by the names that the model has for them."""


@dataclass(frozen=True)
class TensorManifest:
    """A tensor of a shard as it was frozen, in the words of the safetensors header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    xxh3_128: str


@dataclass(frozen=True)
class ShardManifest:
    """A committed shard: what is written to its JSON, beside the file while staging, inside the manifest at
    last. `not_finite` counts the NaNs and infinities of the tensors that have any, `quantized` are the
    largest errors of those that are quantized.

    The fast digests of header and tensors cover every byte of the file: what is read back is held against
    them. `sha256` is empty as long as nobody has seen the whole file: several ranks wrote it, and it is not
    yet read back.
    """

    file: str
    bytes: int
    sha256: str
    header_xxh3_128: str
    tensors: tuple[TensorManifest, ...]
    not_finite: Mapping[str, int] = field(default_factory=dict)
    quantized: Errors = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        # Not `asdict`, which copies every value on its own: there may be a million tensors.
        told = {"schema_version": 1, **vars(self), "tensors": [vars(tensor) for tensor in self.tensors]}
        return _with_errors(told, self.quantized)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ShardManifest:
        return cls(
            value["file"],
            value["bytes"],
            value["sha256"],
            value["header_xxh3_128"],
            _tensors(value),
            value["not_finite"],
            _errors(value),
        )


@dataclass(frozen=True)
class RangeManifest:
    """A committed range of a shard, as its leader froze it: bytes [begin, end) of the file.

    `head` and `tail` are its bytes in the blocks that it shares with its neighbours; they are not written
    yet, and as Base64 in the JSON. `xxh3_128` is the digest of all its bytes, edges and header among them.
    """

    file: str
    number: int
    begin: int
    end: int
    tensors: tuple[TensorManifest, ...]
    not_finite: Mapping[str, int]
    head: bytes
    tail: bytes
    xxh3_128: str
    quantized: Errors = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        edges = {"head": b64encode(self.head).decode(), "tail": b64encode(self.tail).decode()}
        told = {**vars(self), "tensors": [vars(tensor) for tensor in self.tensors], **edges}
        return _with_errors(told, self.quantized)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RangeManifest:
        edges = {name: b64decode(value[name], validate=True) for name in ("head", "tail")}
        return cls(**{**value, **edges, "tensors": _tensors(value), "quantized": _errors(value)})


def _tensors(value: Mapping[str, Any]) -> tuple[TensorManifest, ...]:
    return tuple(TensorManifest(**{**tensor, "shape": tuple(tensor["shape"])}) for tensor in value["tensors"])


def _with_errors(told: dict[str, Any], errors: Errors) -> dict[str, Any]:
    """What is told of a shard, with the errors of what is quantized if anything is."""
    del told["quantized"]
    return {**told, "quantized": {n: e._asdict() for n, e in errors.items()}} if errors else told


def _errors(value: Mapping[str, Any]) -> Errors:
    return {name: LargestError(**error) for name, error in value.get("quantized", {}).items()}


def index(weight_map: Mapping[str, str], total_size: int, total_parameters: int) -> dict[str, Any]:
    """`model.safetensors.index.json`: sizes in bytes and in elements, names sorted."""
    return {
        "metadata": {"total_parameters": total_parameters, "total_size": total_size},
        "weight_map": dict(sorted(weight_map.items())),
    }


def manifest(
    shards: Iterable[ShardManifest],
    files: Mapping[str, tuple[int, str]],
    *,
    total_size: int,
    total_parameters: int,
    provenance: Mapping[str, Any],
    contents: str = "folder",
) -> dict[str, Any]:
    """`export_manifest.json`: everything that is needed to verify the folder offline, and where it came from.

    `files` gives bytes and SHA-256 of every file but the manifest and SHA256SUMS; of the weights' files only
    where `contents` is `weights` and others put the rest beside them.
    """
    value = {
        "format": MANIFEST_FORMAT,
        "schema_version": 1,
        "contents": contents,
        "files": {path: {"bytes": size, "sha256": sha256} for path, (size, sha256) in sorted(files.items())},
        "shards": [shard.to_json() for shard in shards],
        "total_size": total_size,
        "total_parameters": total_parameters,
        "provenance": dict(provenance),
    }
    return {
        "format": value.pop("format"),
        "digest": json_digest({"format": MANIFEST_FORMAT, **value}),
        **value,
    }


def sums(files: Mapping[str, tuple[int, str]]) -> str:
    """`SHA256SUMS` as `sha256sum -c` reads it.

    The manifest is left out: it tells how this export was made, so it differs between layouts, and these
    lines must not.
    """
    return "".join(f"{sha256}  {path}\n" for path, (_, sha256) in sorted(files.items()))
