"""What verification finds: faults, and the result that carries them."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from dataclasses import dataclass

KINDS = {
    "missing-file": "a file that is needed, or that the index, the manifest or SHA256SUMS names, is gone",
    "unlisted-file": "a file that the manifest does not list",
    "unindexed-file": "a weight file that the index does not name; loaders read or prefer it all the same",
    "leftover-file": "a temporary file of a writer that died",
    "second-index": "a second *.index.json; accelerate refuses the folder",
    "not-a-file": "neither a regular file nor a folder",
    "unsafe-name": "a file name that could lead out of the folder; it was not opened",
    "unsafe-link": "a symbolic link that leads out of the folder or to no file; it was not followed",
    "unreadable-file": "the system could not read a file, twice",
    "transient-read": "a read failed or gave other bytes than the next one: the way to the file is at fault",
    "wrong-size": "a file is shorter or longer than recorded or than its header says",
    "wrong-digest": "bytes differ from their recorded digest",
    "bad-header": "a safetensors header breaks a rule of the format",
    "empty-shard": "a weight file without tensors",
    "bad-json": "a file is not the JSON that it should be",
    "bad-index": "the index has the wrong form",
    "bad-manifest": "the manifest has the wrong form, or its own digest is wrong",
    "bad-sums": "SHA256SUMS has the wrong form",
    "wrong-numbering": "files named model-N-of-M are not numbered 1 to M",
    "missing-tensor": "the index names a tensor that no header has",
    "unindexed-tensor": "a header has a tensor that the index does not name",
    "misplaced-tensor": "the index names another file than the one that has the tensor",
    "duplicate-tensor": "two files have a tensor of the same name",
    "wrong-total": "total_size or total_parameters is not the sum over the tensors",
    "manifest-mismatch": "the manifest disagrees with a header, or with SHA256SUMS",
    "definition-refused": "the model's class in transformers refuses config.json",
    "definition-missing": "the model's definition has a tensor that no file has",
    "definition-unexpected": "a file has a tensor that the model's definition lacks",
    "definition-shape": "a tensor has another shape than in the model's definition",
    "wrong-dtype": "a tensor is of a type for quantized weights, and nothing says that it is quantized",
    "quantized-form": "a quantized weight, or its scales, are not stored as config.json says",
    "token-beyond-vocabulary": "a token that will be used has an id that the embedding has no row for",
    "load-failed": "transformers cannot build or load the model",
    "load-missing": "the model has a parameter that the folder lacks",
    "load-unexpected": "the folder has a tensor that the model lacks",
    "load-mismatch": "a tensor has another shape than the model's parameter",
}
"""Every kind of fault and what it means."""

_MAX_SHOWN = 200


@dataclass(frozen=True)
class Fault:
    """One finding: of which kind (a key of `KINDS`), in which file, in which tensor where there is one."""

    kind: str
    file: str
    tensor: str | None
    message: str

    def __str__(self) -> str:
        place = shown(self.file) + (f", tensor {shown(self.tensor)}" if self.tensor is not None else "")
        text = f"{place}: {self.message} [{self.kind}]"
        return text if text.isprintable() else ascii(text)

    def to_json(self) -> dict[str, object]:
        """The four fields, for the report."""
        return {"kind": self.kind, "file": self.file, "tensor": self.tensor, "message": self.message}


@dataclass(frozen=True)
class Verification:
    """What was looked at, how deeply, and what was found."""

    folder: str
    faults: tuple[Fault, ...]
    num_files: int
    num_tensors: int
    num_bytes_read: int
    depth: str
    made_by_us: bool
    notes: tuple[str, ...] = ()
    definition: str | None = None
    """The class whose definition names, shapes and types were held against; None where none was."""

    @property
    def ok(self) -> bool:
        """Whether nothing at all was found; a transient read counts as a finding."""
        return not self.faults

    def __repr__(self) -> str:
        return (
            f"Verification(folder={self.folder!r}, ok={self.ok}, faults={len(self.faults)},"
            f" files={self.num_files}, depth={self.depth!r})"
        )

    def to_json(self) -> dict[str, object]:
        """Everything as JSON values, as `pp_export verify --json` gives it; see `schemas/verify.json`."""
        return {
            "schema_version": 1,
            "folder": self.folder,
            "ok": self.ok,
            "depth": self.depth,
            "definition": self.definition,
            "made_by_us": self.made_by_us,
            "num_files": self.num_files,
            "num_tensors": self.num_tensors,
            "num_bytes_read": self.num_bytes_read,
            "faults": [fault.to_json() for fault in self.faults],
            "notes": list(self.notes),
        }


class MalformedError(Exception):
    """Input has the wrong form. Stays inside this package: its caller makes a fault of it."""

    def __init__(self, message: str, tensor: str | None = None) -> None:
        super().__init__(message)
        self.message, self.tensor = message, tensor


def shown(name: str) -> str:
    """A name from untrusted input, safe to print: bounded, without control characters."""
    if len(name) > _MAX_SHOWN:
        name = name[:_MAX_SHOWN] + "..."
    return name if name.isprintable() else ascii(name)


def brief(value: object) -> str:
    """A value from untrusted input, bounded in length and depth."""
    return shown(reprlib.repr(value))


def once(faults: Iterable[Fault]) -> list[Fault]:
    """The faults in order, one for each kind, file and tensor: two lists may miss the same file."""
    unique: dict[tuple[str, str, str | None], Fault] = {}
    for fault in faults:
        unique.setdefault((fault.kind, fault.file, fault.tensor), fault)
    return list(unique.values())
