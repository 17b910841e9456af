"""Asks one client about many folders, each in a child of its own that the client's own crash may end.

    python -m tests.clients.ask CLIENT JOBS

JOBS is a JSON file: a list of [folder, where to put the answer, whether it knows the class anyway].
Beside each answer (`answer.safetensors`,
what the client gave) lie `said.json`, whether it knows the model's class and how it refused or died, and
`printed`, all that it printed.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from tests.clients.known import CLIENTS, Client

ANSWER, SAID, PRINTED = "answer.safetensors", "said.json", "printed"
PATIENCE_S = {"vllm": 600}
USUAL_PATIENCE_S = 120


def _answer(client: Client, folder: Path, out: Path, *, known: bool) -> dict[str, Any]:
    from safetensors.torch import save_file

    if not known and not client.knows(folder):
        return {"knows": False}
    work = out / "work"
    work.mkdir()
    answer = client.ask(folder, work)
    save_file({name: value.contiguous().clone() for name, value in answer.items()}, out / ANSWER)
    return {"knows": True}


def _child(client: Client, folder: Path, out: Path, *, known: bool) -> None:
    """Answer, with all that is printed going to a file; never returns."""
    with (out / PRINTED).open("wb") as printed:
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
    try:
        said = _answer(client, folder, out, known=known)
    except BaseException as error:  # noqa: BLE001  whatever a client raises is what it says
        traceback.print_exc()
        sys.stderr.flush()
        said = {"knows": True, "refused": f"{type(error).__name__}: {error}"}
    (out / SAID).write_text(json.dumps(said))
    os._exit(0)


def _ask(client: Client, folder: Path, out: Path, patience_s: float, *, known: bool) -> None:
    out.mkdir(parents=True)
    child = os.fork()
    if not child:
        _child(client, folder, out, known=known)
    until = time.monotonic() + patience_s
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            (out / SAID).write_text(json.dumps({"knows": True, "died": f"no answer in {patience_s} s"}))
            return
        time.sleep(0.005)
    if not (out / SAID).exists():
        how = os.waitstatus_to_exitcode(status)
        died = signal.Signals(-how).name if how < 0 else f"exit status {how}"
        (out / SAID).write_text(json.dumps({"knows": True, "died": died}))


def main() -> None:
    """Import the client, then ask it about each folder."""
    client = CLIENTS[sys.argv[1]]
    client.prepare()
    patience_s = PATIENCE_S.get(sys.argv[1], USUAL_PATIENCE_S)
    for folder, out, known in json.loads(Path(sys.argv[2]).read_text()):
        _ask(client, Path(folder), Path(out), patience_s, known=known)


def words(text: str) -> str:
    """An error's first sentence, without paths of this run."""
    return re.sub(r"(/[\w.\-+]+)+/", "", " ".join(text.split()))[:200]


if __name__ == "__main__":
    main()
