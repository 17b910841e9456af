"""docs/clients.md, made of what was recorded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.clients.explained import EXPLAINED
from tests.clients.faults import FAULTS
from tests.clients.outcomes import CHANCE, DIES, OF_FILES, REFUSES, RIGHT, UNKNOWN, WARNED, WRONG
from tests.fixtures.processes import ROOT

PAGE = ROOT / "docs" / "clients.md"
_NAMES = {
    "transformers-4": "transformers 4",
    "transformers-5": "transformers 5",
    "older transformers-4": "transformers 4, reference by release 4",
    "older transformers-5": "transformers 5, reference by release 4",
    "peft": "PEFT, with transformers 5",
    "peft, transformers-4": "PEFT, with transformers 4",
    "vllm": "vLLM, on the CPU",
}
_CELLS = {
    CHANCE: "right or **wrong**, by the disk's order of files",
    RIGHT: "right",
    WRONG: "**answers wrongly**",
    WARNED: "**answers wrongly**, and warns",
}
_WORDS = 70
_HEAD = """\
# What loads exports

Other people's software loads what an export wrote, and answers as transformers does. `make test-clients`
holds it to that, and to this page; `make test-vllm` does for vLLM, which is too large for every run of
CI. Made of real runs by `python -m tests.clients.record`; versions move, so please run it again before
you quote it.
"""
_MODELS = """\
## Models

Small models with random values in every tensor, one or more of each class ([families](families.md)):
exported, loaded by the client, and its logits held against those of the model in transformers 5 that the
values were drawn in (to 1e-4 of the largest). "Known" is what the client itself says of the class.
Loaders of files gave every tensor bit for bit. mergekit merges each folder with itself, ctranslate2
converts it first, accelerate leaves half of it on the disk; of vLLM the log-probabilities and 12 greedy
tokens are compared. A reference by release 4 is a config.json as that release writes it, without
`rope_parameters`. transformers 5 with references of its own is held by the tests of every family.
"""
_FAULTS = """\
## Folders that `verify` faults

What happens to a folder after its export (a disk, a copy, a script), and what each then says to it. The
model is a small Qwen2 in float32, in several shards, one fault at a time. "right" is the right logits;
"answers wrongly" is other logits than were exported, without an error; "warns" means that it also printed
that something is missing or left over. `pp_export verify` names each.

Most of this is not for a loader to find: it is given tensors, not what they should be. fastsafetensors and
runai-model-streamer are handed the files that the index names, and leave names and shapes to who asked
them: "right" is every tensor bit for bit, "passes it on" are other tensors, or fewer. An empty cell
wasn't asked.
"""


def page(recorded: Mapping[str, Any]) -> str:
    """The whole page."""
    return "\n".join([_HEAD, *_versions(recorded), _MODELS, *_models(recorded), _FAULTS, *_faults(recorded)])


def _name(client: str) -> str:
    return _NAMES.get(client, client)


def _versions(recorded: Mapping[str, Any]) -> list[str]:
    told = ", ".join(dict.fromkeys(recorded["versions"].values()))
    dates = sorted(set(recorded["date"].values()))
    return [f"Asked on {' and '.join(dates)}: {told}.", ""]


def _models(recorded: Mapping[str, Any]) -> list[str]:
    lines = ["| client | known | right | else |", "| --- | --- | --- | --- |"]
    for client, of in recorded["models"].items():
        counts = Counter(each[0] for each in of.values())
        known = len(of) - counts[UNKNOWN]
        other = known - counts[RIGHT]
        what = f"{len(of)} folders" if client in (*OF_FILES, "vllm") else f"{len(of)} models"
        told = "" if not other else f"{other}, see below"
        lines.append(f"| {_name(client)} | {known} of {what} | {counts[RIGHT]} | {told} |")
    lines.append("")
    for client, reasons in EXPLAINED.items():
        if reasons:
            lines += [f"{_name(client)}:", ""]
            by_reason: dict[str, list[str]] = {}
            for name, reason in reasons.items():
                by_reason.setdefault(reason, []).append(name)
            lines += [f"- {', '.join(names)}: {reason}" for reason, names in by_reason.items()]
            lines.append("")
    return lines


def _faults(recorded: Mapping[str, Any]) -> list[str]:
    clients = list(recorded["faults"])
    lines = [f"| | verify | {' | '.join(map(_name, clients))} |", "| --- |" + " --- |" * (1 + len(clients))]
    for fault, each in FAULTS.items():
        named = ", ".join(f"`{kind}`" for kind in recorded["verify"][fault])
        cells = [_cell(client, recorded["faults"][client].get(fault, [""])) for client in clients]
        lines.append(f"| {each.words} | {named} | {' | '.join(cells)} |")
    return [*lines, "", "What they say when they refuse:", "", *_words(recorded, clients)]


def _cell(client: str, outcome: list[str]) -> str:
    if outcome[0] == DIES:
        return f"ends ({outcome[1]})"
    if outcome[0] == WRONG and client in OF_FILES:
        return "passes it on"
    return _CELLS.get(outcome[0], outcome[0])


def _words(recorded: Mapping[str, Any], clients: list[str]) -> list[str]:
    """Each client's first words, once for all faults to which it says the same."""
    lines = []
    for client in clients:
        said: dict[str, list[str]] = {}
        for fault in FAULTS:
            outcome = recorded["faults"][client].get(fault, [""])
            if outcome[0] == REFUSES:
                said.setdefault(_short(outcome[1]), []).append(FAULTS[fault].words)
        lines += [f"- {_name(client)}: `{text}` ({'; '.join(faults)})" for text, faults in said.items()]
    return [*lines, ""] if lines else lines


def _short(text: str) -> str:
    text = text.replace("`", "'").replace("|", "/")
    return text if len(text) <= _WORDS else text[:_WORDS].rpartition(" ")[0] + " ..."


def write(recorded: Mapping[str, Any], file: Path = PAGE) -> None:
    file.write_text(page(recorded), encoding="utf-8")
