"""What `model.safetensors.index.json` says: in which file each tensor is. Bytes in, values out.

Nothing is raised for a wrong entry, because those who read an index differ in what they do then: refuse the
folder, list a fault, or go by the other entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pp_export.core.file_names import is_weight_file
from pp_export.core.strict_json import JsonError, parse_object

MAX_BYTES = 128 << 20
"""An honest index of a million tensors is smaller."""


@dataclass(frozen=True)
class WrongEntry:
    """The entry of `tensor`, or with None a whole section: what is wrong with it, and what stands there."""

    tensor: str | None
    what: str
    value: object


@dataclass(frozen=True)
class WeightIndex:
    """The entries that can be followed, and all that is wrong with the others."""

    weight_map: dict[str, str] | None
    """Tensor -> file, a plain name of a weight file; None where the index has no map at all."""
    metadata: dict[str, Any] | None
    wrong: tuple[WrongEntry, ...]

    @property
    def unsafe(self) -> list[WrongEntry]:
        """The entries of the map that name no plain weight file, so might lead out of the folder."""
        return [entry for entry in self.wrong if entry.tensor is not None]


def parse(data: bytes) -> WeightIndex:
    """Read an index; JsonError where it is larger than `MAX_BYTES` or no JSON object."""
    if len(data) > MAX_BYTES:
        raise JsonError(f"it has more than {MAX_BYTES:,} bytes")
    value = parse_object(data)
    sections: dict[str, dict[str, Any]] = {}
    wrong = []
    for key in ("metadata", "weight_map"):
        if isinstance(section := value.get(key), dict):
            sections[key] = section
        else:
            wrong.append(WrongEntry(None, f"{key} is not an object", section))
    what = "it maps to no plain name of a weight file; not opened"
    entries = sections.get("weight_map", {})
    wrong += [WrongEntry(tensor, what, file) for tensor, file in entries.items() if not is_weight_file(file)]
    weight_map = {tensor: file for tensor, file in entries.items() if is_weight_file(file)}
    return WeightIndex(
        weight_map if "weight_map" in sections else None, sections.get("metadata"), tuple(wrong)
    )
