"""How long an export will take, and what bounds it: pure, from its work and a machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from heapq import nlargest

from pp_export.core.timeline import SPANS_SHOWN, Lane, RankTimeline, Span, Timeline, shown_ranks
from pp_export.planning.flow import simulate
from pp_export.planning.machine import GB, Machine
from pp_export.planning.work import Work

_NUM_BUSIEST = 8


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What an export takes on a machine, in seconds: its `phases` one after another, and, of each rank, when
    it has `ended` all that it does, counted from the start of the run.

    `bounds` are the seconds for which each resource alone is busy, whatever the others do: no export of this
    work is faster than the longest of them, `bound_by`; where they are all far below what is predicted, it is
    the order of the steps. The `timeline` has some of the ranks, the busiest among them.
    """

    machine: Machine
    phases: Mapping[str, float]
    bounds: Mapping[str, float]
    ended: tuple[float, ...]
    verified_bytes: tuple[int, ...]
    timeline: Timeline

    @property
    def wall_seconds(self) -> float:
        return sum(self.phases.values())

    @property
    def bound_by(self) -> str:
        name = max(self.bounds, key=lambda each: self.bounds[each])
        return name if name == "start" or self.bounds[name] > self.phases["bytes"] / 2 else ORDER


ORDER = "order of steps"


def predict(work: Work, machine: Machine) -> Prediction:
    """The prediction; its effort is linear in shards and their parts."""
    costs = machine.costs
    written = Counter[int]()
    verified = [0] * work.world_size
    for file in work.files:
        for shard in file.shards:
            written[shard.leader] += shard.num_bytes
        if file.verifier is not None:
            verified[file.verifier] += file.num_bytes
    shown = {*shown_ranks(work.world_size), *nlargest(_NUM_BUSIEST, written, key=lambda rank: written[rank])}
    flow = simulate(work, machine, shown)
    start = machine.start_seconds(work.world_size)
    plan = costs.box_seconds * work.num_boxes
    phases = {"start": start, "plan": plan, "bytes": flow.seconds, "publish": costs.publish_seconds}
    ranks = (
        _with_phases(each.since(-round((start + plan) * 1e9)).coarse(SPANS_SHOWN), phases)
        for each in flow.ranks
    )
    return Prediction(
        machine=machine,
        phases=phases,
        bounds={"start": start + plan, **_bounds(work, machine)},
        ended=tuple(start + plan + each if each else 0.0 for each in flow.ended),
        verified_bytes=tuple(verified),
        timeline=Timeline.of(ranks, _in_turn(phases)),
    )


def _bounds(work: Work, machine: Machine) -> dict[str, float]:
    """The seconds for which storage, cores and network are busy at least; of nodes, the busiest."""
    costs, cpu, network = machine.costs, [0.0] * machine.nodes, [0.0] * machine.nodes
    reading = writing = 0
    for file in work.files:
        for shard in file.shards:
            size, to = shard.num_bytes, machine.node_of(shard.leader, work.world_size)
            cpu[to] += size * (costs.hashes + costs.writes) + shard.encoded_bytes * costs.encodes
            network[to] += size
            writing += size
            for rank, part in shard.read_by:
                node = machine.node_of(rank, work.world_size)
                reading += part
                cpu[node] += part * costs.reads
                network[node] += part
                if rank != shard.leader:
                    cpu[node] += part * costs.sends
                    cpu[to] += part * (costs.sends + costs.pastes)
                if node != to:
                    network[node] += part
                    network[to] += part
        if file.verifier is not None:
            node, size = machine.node_of(file.verifier, work.world_size), file.num_bytes
            reading += size
            cpu[node] += size * costs.verifies
            network[node] += size
    return {
        "storage": (reading / machine.read_gbps + writing / machine.write_gbps) / GB,
        "cores": max(cpu) / GB / machine.cores,
        "network": max(network) / GB / machine.node_gbps,
    }


def _in_turn(phases: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    found, at = {}, 0.0
    for name, seconds in phases.items():
        found[name] = (at, at + seconds)
        at += seconds
    return found


def _with_phases(rank: RankTimeline, phases: Mapping[str, float]) -> RankTimeline:
    """The same, and what its main thread does before and after."""
    turns = _in_turn(phases)
    spans = (
        Span("starts", *turns["start"]),
        Span("plans" if rank.rank == 0 else "waits", *turns["plan"]),
        Span("publishes" if rank.rank == 0 else "waits", *turns["publish"]),
    )
    return replace(rank, lanes=(Lane("main", spans), *rank.lanes))
