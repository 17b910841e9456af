"""What an export is predicted for: nodes, cores, storage, network, and what each pass over a byte costs.

The costs were measured (docs/sizing.md says how and where); `python -m bench.prediction` measures them anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field

GB = 1e9


@dataclass(frozen=True, kw_only=True)
class Costs:
    """CPU seconds of one core for each GB (1e9 bytes) that passes, one field for each pass; seconds for each
    stored box, and those that a run takes whatever it moves.

    What a rank `reads`, with the source's CRC-32 along, goes to its place in the shard. What another has read
    it `sends`, which costs as much again where it is received, and `pastes`. What is cast it `encodes`. It
    `hashes` (SHA-256, and a look for NaN) and `writes`, with XXH3 along, and `verifies` by XXH3 what it reads
    back.

    A run of one rank takes `start_seconds` before its first byte; more ranks take `rank_cpu_seconds` each,
    and their launcher `launch_seconds`. `publish_seconds` are those after the last byte.
    """

    reads: float = 0.29
    sends: float = 0.30
    pastes: float = 0.19
    encodes: float = 0.50
    hashes: float = 0.95
    writes: float = 0.20
    verifies: float = 0.23
    box_seconds: float = 80e-6
    start_seconds: float = 1.0
    launch_seconds: float = 3.5
    rank_cpu_seconds: float = 4.0
    publish_seconds: float = 0.3


@dataclass(frozen=True, kw_only=True)
class Machine:
    """`nodes` with `cores` each, for which `read_gbps` or `write_gbps` (GB/s) are what the storage gives all
    of them together while it does nothing else: who reads and who writes share its time, as on a disk.
    `node_gbps` is what one node gets through its network, to the storage and to others.
    """

    nodes: int
    cores: int
    read_gbps: float
    write_gbps: float
    node_gbps: float
    costs: Costs = field(default_factory=Costs)

    def node_of(self, rank: int, world_size: int) -> int:
        """The node of a rank; as launchers do, each node has consecutive ones, as even as may be."""
        return rank * self.nodes // world_size

    def start_seconds(self, world_size: int) -> float:
        """Until the first byte is read: of the ranks of a node, each starts on its cores."""
        costs, ranks_of_node = self.costs, -(-world_size // self.nodes)
        if world_size == 1:
            return costs.start_seconds
        cpu_seconds = costs.rank_cpu_seconds * ranks_of_node / self.cores
        return max(costs.start_seconds, cpu_seconds) + costs.launch_seconds

    def threads(self, world_size: int) -> int:
        """The cores that one rank has to itself, at least one: as many workers as it has of each kind."""
        return max(1, self.cores * self.nodes // max(self.nodes, world_size))
