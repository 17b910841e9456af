"""Claims: an export begins when all of its ranks have come, and ends in bounded time, with one error that
names who is missing, when one doesn't; whoever started the ranks, and whatever they wait for, they hear
signals.
"""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from pp_export.distributed.address import wait_for_listener
from tests.fixtures.processes import Ended, Running, started

STALL_S = 10.0
TIMEOUT_S = 90.0
"""Imports of torch, by several processes of a busy machine, and the stall time."""


class Ranks:
    """Some ranks of one export, started as by a launcher that has no store of its own: not by torchrun.
    They end before they read anything, so there is nothing to read.
    """

    def __init__(self, root: Path, *, size: int = 3, address: str = "127.0.0.1") -> None:
        self.root, self.report = root, root / "report.json"
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.port = port
        self._launcher = {"WORLD_SIZE": str(size), "MASTER_ADDR": address, "MASTER_PORT": str(port)}
        self._command = ["-m", "pp_export", "export", "--output", str(root / "target")]
        self._command += ["--checkpoint", str(root / "absent"), "--reference", str(root / "absent")]
        self._command += ["--report", str(self.report), "--stall-seconds", str(STALL_S)]

    def start(self, stack: ExitStack, ranks: Sequence[int]) -> dict[int, Running]:
        """Start these ranks; they have ended at the latest when the stack is left."""
        return {
            rank: stack.enter_context(
                started(
                    self._command,
                    self.root / f"rank{rank}",
                    env=self._launcher | {"RANK": str(rank)},
                )
            )
            for rank in ranks
        }

    def wait_until_here(self, *of: int) -> None:
        """Return when these ranks wait for the others."""
        wait_for_listener("127.0.0.1", self.port, TIMEOUT_S)
        store = TCPStore("127.0.0.1", self.port, is_master=False, wait_for_workers=False)
        keys = [f"pp_export/0/meeting/here/0/{rank}" for rank in of]
        deadline = time.monotonic() + TIMEOUT_S
        while not store.check(keys):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def error(self) -> dict[str, Any]:
        """The error of the report, which every failure leaves."""
        report = json.loads(self.report.read_text())
        assert report["status"] == "failed"
        assert not (self.root / "target").exists()
        error: dict[str, Any] = report["error"]
        return error


def ended(running: dict[int, Running]) -> list[Ended]:
    """The ends of all, none of them well."""
    ends = [each.wait(TIMEOUT_S) for each in running.values()]
    assert [end.status for end in ends] == [1] * len(ends)
    return ends


def spoke(ends: Sequence[Ended]) -> list[str]:
    """What the ranks say that report an error."""
    return [end.stderr for end in ends if "error:" in end.stderr]


def test_a_rank_that_never_starts_is_named(tmp_path: Path) -> None:
    """Ranks 0 and 1 end after --stall-seconds; rank 0 says for both that rank 2 has not come."""
    ranks = Ranks(tmp_path)
    with ExitStack() as stack:
        ends = ended(ranks.start(stack, (0, 1)))
    error = ranks.error()
    assert (error["kind"], error["where"]) == ("PeerError", {"rank": "2"})
    assert error["what"] == "no progress for 10 s: rank 2 has not come"
    assert [error["what"] in text for text in spoke(ends)] == [True], "one rank speaks"


def test_rank_0_never_starts(tmp_path: Path) -> None:
    """Where rank 0 serves the store and isn't there, the others say where they looked for it."""
    ranks = Ranks(tmp_path)
    with ExitStack() as stack:
        ended(ranks.start(stack, (1, 2)))
    error = ranks.error()
    assert (error["kind"], error["where"]) == ("PeerError", {"rank": "0"})
    assert "no progress for 10 s: the store of rank 0 is not at 127.0.0.1:" in error["what"]
    assert "MASTER_ADDR" in error["advice"]


@pytest.mark.asks_elsewhere
def test_a_wrong_address_is_told(tmp_path: Path) -> None:
    """An address that leads nowhere ends a rank within --stall-seconds, and it says what to check."""
    ranks = Ranks(tmp_path, address="no-such-host.invalid")
    with ExitStack() as stack:
        ended(ranks.start(stack, (1,)))
    error = ranks.error()
    assert "no-such-host.invalid" in error["what"]
    assert "MASTER_ADDR" in error["advice"]


def test_a_signal_ends_the_wait_for_others(tmp_path: Path) -> None:
    """SIGTERM for a rank that waits for others ends all that are there at once, with a report."""
    ranks = Ranks(tmp_path)
    with ExitStack() as stack:
        running = ranks.start(stack, (0, 1))
        ranks.wait_until_here(0, 1)
        running[1].process.send_signal(signal.SIGTERM)
        stopped = time.monotonic()
        ended(running)
        assert time.monotonic() - stopped < 10
    error = ranks.error()
    assert (error["kind"], error["what"]) == ("StoppedError", "stopped by SIGTERM")
    assert error["where"] == {"rank": "1"}
    assert "rank 2 had not come by then" in error["findings"]
