"""What a user can ask of a plan alone: for which cluster it is."""

from __future__ import annotations

from dataclasses import dataclass

from pp_export.core.errors import OptionError
from pp_export.options.kinds import Options, option_of
from pp_export.options.texts import parse_rates


@dataclass(frozen=True, kw_only=True)
class ClusterOptions(Options):
    """What `plan` plans for, beside what is exported: options of that command alone."""

    world_size: int = option_of("number of ranks to plan for", 1, positive=True)
    nodes: int | None = option_of(
        "nodes that they are on; default: one for every 8 ranks", None, positive=True
    )
    cores: int | None = option_of(
        "cores of a node; default: as many as this process may use here", None, positive=True
    )
    storage_gbps: str = option_of(
        "R,W: gigabytes per second that the storage reads, or writes, for all nodes together", "2,1"
    )
    network_gbps: float = option_of(
        "gigabytes per second that one node gets through its network, to the storage and to others",
        12.5,
        positive=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_rates(self.storage_gbps)
        if self.nodes is not None and self.nodes > self.world_size:
            raise OptionError(
                "--nodes is more than --world-size, the number of ranks",
                expected=f"at most {self.world_size}",
                got=self.nodes,
            )
