"""Runs `tests.clients.ask` with the client's own packages, and reads what it left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.clients.ask import ANSWER, PRINTED, SAID, words
from tests.clients.known import CLIENTS
from tests.fixtures.processes import ROOT

PLACE = "PP_EXPORT_TEST_CLIENTS"
"""The folder in which `make test-clients` installs clients; those of vLLM are in an environment of their own,
of which `VLLM` is the Python.
"""
VLLM = "PP_EXPORT_TEST_VLLM"
OF_RELEASE_4 = ("ctranslate2",)
"""Clients that know config objects as release 4 of transformers has them."""
_TIMEOUT_S = 7200


@dataclass(frozen=True)
class Said:
    """What a client made of a folder: it `knows` the class or doesn't; it gave an `answer`, or says in words
    why not; and all that it `printed`.
    """

    knows: bool
    refused: str | None
    died: str | None
    answer: Mapping[str, torch.Tensor] | None
    printed: str


def is_installed() -> bool:
    return bool(os.environ.get(PLACE))


def python_of(client: str) -> tuple[str, list[Path]]:
    """The Python that runs a client, and what lies before the packages of that Python."""
    if client == "vllm":
        return os.environ[VLLM], []
    client = client.removeprefix("older ")
    place = Path(os.environ[PLACE])
    older = [place / "transformers-4"] if client.endswith("transformers-4") or client in OF_RELEASE_4 else []
    return sys.executable, [*older, place / "beside"]


def ask(client: str, folders: Mapping[str, Path], out: Path, *, known: bool = False) -> dict[str, Said]:
    """Ask one client about each of the folders, of classes `known` to it or not; what it left is below
    `out`, a new folder.
    """
    out.mkdir(parents=True)
    jobs = out / "jobs.json"
    jobs.write_text(json.dumps([[str(folder), str(out / name), known] for name, folder in folders.items()]))
    python, paths = python_of(client)
    run(python, ["-m", "tests.clients.ask", client.removeprefix("older "), str(jobs)], paths, out / "printed")
    return {name: _said(out / name) for name in folders}


def ask_each(
    asked: Mapping[str, Mapping[str, Path]], out: Path, *, known: bool = False
) -> dict[str, dict[str, Said]]:
    """Ask several clients, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        answers = {
            client: pool.submit(ask, client, folders, out / client, known=known)
            for client, folders in asked.items()
        }
        return {client: answer.result() for client, answer in answers.items()}


def run(python: str, arguments: list[str], paths: list[Path], printed: Path) -> None:
    """Run a Python with packages of its own; AssertionError with what it printed if it fails."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, [ROOT, *paths])),
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
    }
    with printed.open("wb") as file:
        ended = subprocess.run(
            [python, *arguments],
            check=False,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            timeout=_TIMEOUT_S,
        )
    assert ended.returncode == 0, printed.read_text(errors="replace")[-8000:]


def _said(out: Path) -> Said:
    said = json.loads((out / SAID).read_text())
    answer = load_file(out / ANSWER) if (out / ANSWER).exists() else None
    refused = said.get("refused")
    return Said(
        said["knows"],
        None if refused is None else words(refused),
        said.get("died"),
        answer,
        (out / PRINTED).read_text(errors="replace"),
    )


def versions(clients: Sequence[str]) -> dict[str, str]:
    """`NAME VERSION` of what each was installed as; asked of the Python that runs it."""
    told = {}
    for client in dict.fromkeys(each.removeprefix("older ") for each in clients):
        python, paths = python_of(client)
        name = CLIENTS[client].distribution
        code = f"from importlib.metadata import version; print(version({name!r}))"
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
        ended = subprocess.run(
            [python, "-c", code], check=True, env=environment, capture_output=True, text=True
        )
        told[client] = f"{name} {ended.stdout.strip()}"
    return told
