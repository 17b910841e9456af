"""The store through which the ranks of a launcher find each other, by the variables that torch defines.

torch's own rendezvous waits for all ranks in C++, for as long as it likes and deaf to signals. So here a
thread connects, and nobody waits for others before the meeting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta

from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from pp_export.core.errors import PeerError
from pp_export.distributed.address import wait_for_listener
from pp_export.distributed.broken import first_line
from pp_export.distributed.caller import Caller

LONGEST_SECONDS = 30 * 86400.0
"""More than any wait is meant to take, and what every clock can count."""
_MAX_PORT = 65535


@dataclass(frozen=True)
class Place:
    """This rank's place among those of the launcher, and where their store is: served by the launcher's
    own process, or by rank 0.
    """

    rank: int
    size: int
    host: str
    port: int
    is_agents: bool
    attempt: str

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Place:
        """The place that the variables name. Raises PeerError where one is missing or makes no sense."""
        numbers = {}
        for name, most in (("WORLD_SIZE", None), ("RANK", None), ("MASTER_PORT", _MAX_PORT)):
            text = environment.get(name, "")
            if not text.isdecimal() or (most is not None and int(text) > most):
                raise _lost(environment, f"{name} is {text or 'not set'}")
            numbers[name] = int(text)
        if numbers["RANK"] >= numbers["WORLD_SIZE"]:
            raise _lost(environment, f"RANK is {numbers['RANK']} of {numbers['WORLD_SIZE']}")
        if not environment.get("MASTER_ADDR"):
            raise _lost(environment, "MASTER_ADDR is not set")
        return cls(
            numbers["RANK"],
            numbers["WORLD_SIZE"],
            environment["MASTER_ADDR"],
            numbers["MASTER_PORT"],
            environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
            environment.get("TORCHELASTIC_RESTART_COUNT", "0"),
        )

    @property
    def serves(self) -> bool:
        """Whether the store lives in this process."""
        return self.rank == 0 and not self.is_agents

    @property
    def whose(self) -> str:
        """Whose store it is, for errors."""
        return "the launcher's store" if self.is_agents else "the store of rank 0"


def launcher_store(place: Place, seconds: float, meanwhile: Callable[[], None]) -> Store:
    """The store, connected; another attempt of the same launcher sees other keys in it. Raises PeerError
    where it isn't there within `seconds`; `meanwhile` is called every second, and may raise.
    """
    seconds = min(seconds, LONGEST_SECONDS)

    def connect() -> Store:
        if not place.serves:
            wait_for_listener(place.host, place.port, seconds)
        return TCPStore(
            place.host,
            place.port,
            place.size,
            is_master=place.serves,
            timeout=timedelta(seconds=seconds),
            wait_for_workers=False,
            multi_tenant=True,
        )

    caller = Caller(f"{place.whose} at {place.host}:{place.port}", seconds + 1.0, meanwhile)
    try:
        return PrefixStore(f"pp_export/{place.attempt}", caller.call(connect))
    except (OSError, RuntimeError, ValueError) as error:
        raise _unreachable(place, seconds, error) from error
    finally:
        caller.end()


def _unreachable(place: Place, seconds: float, error: Exception) -> PeerError:
    where = {"rank": place.rank if place.serves or place.is_agents else 0}
    if place.serves:
        what = f"rank 0 could not serve a store at {place.host}:{place.port}"
    else:
        what = f"no progress for {seconds:.0f} s: {place.whose} is not at {place.host}:{place.port}"
    return PeerError(
        what,
        where=where,
        got=first_line(error),
        advice="was rank 0 started? MASTER_ADDR and MASTER_PORT must be the same on all ranks, and name its "
        "node and a port that is free there",
    )


def _lost(environment: Mapping[str, str], what: str) -> PeerError:
    return PeerError(
        f"the ranks could not find each other: {what}",
        where={"rank": environment.get("RANK")},
        advice="start all ranks with torchrun, or set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT for each",
    )
