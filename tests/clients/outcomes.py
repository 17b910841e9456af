"""What came of asking clients, in a few words for each folder; and what was recorded of it.

`outcomes.json` is what `python -m tests.clients.record` saw; docs/clients.md is made of it, and
`make test-clients` holds it against what the clients say now.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from tests.clients.asking import Said, ask_each, python_of, run
from tests.clients.faults import FAULTS, write_damaged
from tests.clients.folders import (
    ALL,
    DAMAGED,
    DAMAGED_TIED,
    QUANTIZED,
    TOLERANCE,
    USUAL,
    is_right,
    truth_of,
    write_adapter,
    write_exports,
    write_older_exports,
    write_quantized,
)

RECORDED = Path(__file__).with_name("outcomes.json")
RIGHT, WRONG, WARNED, REFUSES, DIES, UNKNOWN = (
    "right",
    "unlike",
    "unlike, warns",
    "refuses",
    "dies",
    "unknown",
)
CHANCE, BY_CHANCE = "by chance", {("mlx-lm", "older_shard"), ("mlx-lm", "older_single")}
"""It reads every `model*.safetensors`, in the order in which the disk lists them."""
OLDER = "older transformers-4", "older transformers-5"
OF_CLASSES = ("transformers-4", *OLDER, "accelerate", "mergekit", "ctranslate2", "mlx-lm")
OF_FILES = ("fastsafetensors", "runai-model-streamer")
OF_ADAPTERS = ("peft", "peft, transformers-4")
OF_MODELS = (*OF_CLASSES, *OF_FILES, *OF_ADAPTERS)
WITH_FAULTS = ("transformers-4", "transformers-5", *OF_CLASSES[3:], *OF_FILES)
_WARNINGS = re.compile(
    r"missing|newly initialized|mismatch|unexpected|not initialized|not used", re.IGNORECASE
)
Outcome = list[str]
"""What it was, and for a refusal its words."""
Outcomes = dict[str, dict[str, Outcome]]
"""By client, then by folder."""


def outcome(said: Said, folder: Path, export: str = "export", tolerance: float = TOLERANCE) -> Outcome:
    """`folder` holds the truth and, as `export`, what was exported."""
    if not said.knows:
        return [UNKNOWN]
    if said.died is not None:
        return [DIES, said.died]
    if said.refused is not None or said.answer is None:
        return [REFUSES, said.refused or ""]
    return [RIGHT if is_right(said.answer, truth_of(folder), folder / export, tolerance) else WRONG]


def of_models(root: Path, clients: Collection[str] = OF_MODELS) -> Outcomes:
    """Every model, of every client that may know its class, and of the others a selection."""
    models = root / "models"
    write_exports(models, ALL)
    python, paths = python_of("transformers-4")
    run(python, ["-m", "tests.clients.older_references", str(models)], paths, root / "older")
    older = [name for name in ALL if (models / name / "older").exists()]
    write_older_exports(models, older)
    files = {name: models / name / "export" for name in USUAL}
    for scheme in QUANTIZED:
        write_quantized(scheme, models / scheme)
        files[scheme] = models / scheme / "export"
    write_adapter(models / "adapter")
    every = {name: models / name / "export" for name in ALL}
    from_older = {name: models / name / "older_export" for name in older}
    asked: dict[str, Mapping[str, Path]] = {client: every for client in OF_CLASSES if client not in OLDER}
    asked |= dict.fromkeys(OLDER, from_older) | dict.fromkeys(OF_FILES, files)
    asked |= {client: {"adapter": models / "adapter" / "export"} for client in OF_ADAPTERS}
    answers = ask_each({client: asked[client] for client in clients}, root / "answers")
    return {
        client: {name: outcome(said, models / name, asked[client][name].name) for name, said in of.items()}
        for client, of in answers.items()
    }


def of_faults(root: Path, clients: Collection[str] = WITH_FAULTS) -> Outcomes:
    """Every fault, of every client."""
    write_exports(root, {"plain": DAMAGED, "tied": DAMAGED_TIED}, tokens=True)
    folders = {name: root / name / "export" for name in ("plain", "tied")}
    truths = {fault: root / ("tied" if each.tied else "plain") for fault, each in FAULTS.items()}
    damaged = {
        fault: write_damaged(fault, truths[fault] / "export", root / "faults" / fault) for fault in FAULTS
    }
    answers = ask_each({client: {**folders, **damaged} for client in clients}, root / "answers", known=True)
    for of in answers.values():
        for name in folders:
            assert outcome(of[name], root / name) == [RIGHT], of[name]
    return {
        client: {
            fault: [CHANCE]
            if (client, fault) in BY_CHANCE
            else _of_fault(of[fault], of[truths[fault].name], truths[fault])
            for fault in FAULTS
        }
        for client, of in answers.items()
    }


def _of_fault(said: Said, whole: Said, folder: Path) -> Outcome:
    """Also whether it printed that something is missing or left over, and doesn't of the `whole` folder."""
    found = outcome(said, folder)
    warns = bool(_WARNINGS.search(said.printed)) and not _WARNINGS.search(whole.printed)
    return [WARNED] if found == [WRONG] and warns else found


def recorded() -> Any:
    return json.loads(RECORDED.read_text(encoding="utf-8"))


def kinds(outcomes: Mapping[str, Mapping[str, Outcome]]) -> dict[str, dict[str, str]]:
    """Without the words, which tell of paths and versions."""
    return {client: {name: each[0] for name, each in of.items()} for client, of in outcomes.items()}
