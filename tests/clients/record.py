"""Asks every client and writes down what it said, from the repository's root:

    python -m tests.clients.record [CLIENT ...]

The Makefile says how clients are installed and told of (`PP_EXPORT_TEST_CLIENTS`, `PP_EXPORT_TEST_VLLM`).
vLLM is asked only by its name, alone.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Collection, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from pp_export.verification import verify_folder
from tests.clients import outcomes, page, with_vllm
from tests.clients.asking import versions
from tests.clients.faults import FAULTS

VLLM = "vllm"
ORDER = tuple(dict.fromkeys([*outcomes.OF_MODELS, *outcomes.WITH_FAULTS, VLLM]))


def found_by_verify(root: Path) -> dict[str, list[str]]:
    """The kinds of faults that `verify` names in each damaged folder below `root`."""
    return {
        fault: sorted({each.kind for each in verify_folder(root / "faults" / fault).faults})
        for fault in FAULTS
    }


def main(clients: Collection[str]) -> None:
    """Ask, and write outcomes.json and the page."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        if set(clients) == {VLLM}:
            models, with_faults = with_vllm.of_models(root / "models"), [VLLM]
        else:
            models = outcomes.of_models(root / "models", [c for c in outcomes.OF_MODELS if c in clients])
            with_faults = [c for c in outcomes.WITH_FAULTS if c in clients]
        _keep({"models": models, **_when(models)})
        faults = outcomes.of_faults(root / "faults", with_faults)
        _keep({"faults": faults, **_when(faults)}, verify=found_by_verify(root / "faults"))


def _when(clients: Collection[str]) -> dict[str, Mapping[str, Any]]:
    return {"date": dict.fromkeys(clients, date.today().isoformat()), "versions": versions(list(clients))}


def _keep(new: Mapping[str, Mapping[str, Any]], **rest: Any) -> None:
    """What was recorded of other clients stays, and clients keep their order."""
    recorded: dict[str, Any] = outcomes.recorded() if outcomes.RECORDED.exists() else {}
    for key, of in new.items():
        every = {**recorded.get(key, {}), **of}
        recorded[key] = {
            client: every[client] for client in dict.fromkeys([*ORDER, *every]) if client in every
        }
    recorded |= rest
    outcomes.RECORDED.write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")
    if "faults" in recorded:
        page.write(recorded)


if __name__ == "__main__":
    main(sys.argv[1:] or {*outcomes.OF_MODELS, *outcomes.WITH_FAULTS})
