"""What a folder says about itself, and all that is wrong between its parts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pp_export.core.strict_json import JsonError, parse_object
from pp_export.verification.claims import Manifest
from pp_export.verification.findings import Fault, MalformedError
from pp_export.verification.folder import Listing
from pp_export.verification.header import Header


@dataclass
class Survey:
    """A folder as its headers, index, manifest and SHA256SUMS describe it; check after check fills it in.

    A part that is absent or has the wrong form is None or left out, and a fault says so.
    """

    listing: Listing
    made_by_us: bool
    headers: dict[str, Header] = field(default_factory=dict)
    config: dict[str, Any] | None = None
    weight_map: dict[str, str] | None = None
    index_metadata: dict[str, Any] | None = None
    manifest: Manifest | None = None
    sums: dict[str, str] | None = None
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def fault(self, kind: str, file: str, message: str, tensor: str | None = None) -> None:
        """Note a fault."""
        self.faults.append(Fault(kind, file, tensor, message))

    def parse(self, name: str, max_bytes: int, *, allow_infinity: bool = False) -> dict[str, Any] | None:
        """The JSON object in the file `name`; a fault and None where it holds something else."""
        try:
            return parse_object(self.listing.read(name, max_bytes), allow_infinity=allow_infinity)
        except (MalformedError, JsonError) as broken:
            self.fault("bad-json", name, str(broken))
            return None
