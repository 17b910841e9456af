"""A prediction as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pp_export.core.json_values import to_json_value
from pp_export.options.cluster import ClusterOptions
from pp_export.options.texts import parse_rates
from pp_export.planning.machine import Machine
from pp_export.planning.prediction import predict
from pp_export.planning.work import work_of
from pp_export.process.cores import usable_cores

if TYPE_CHECKING:
    from pp_export.planning.export_plan import ExportPlan

_RANKS_OF_NODE = 8


@dataclass(frozen=True, kw_only=True)
class PredictionReport:
    """What an export is predicted to take on `nodes` of `cores`: seconds, by phase and in all, and for how
    many of them each resource is busy at least (`bounds`), whatever the others do.

    Rates are in GB/s: the storage's for all nodes together, the network's for one. `costs` are the CPU
    seconds per GB of each pass, and those that any run takes. `ended_seconds` and `verified_bytes` are of
    each rank; one that does nothing ends at 0. `timeline` is `core.timeline.Timeline` as JSON.
    """

    nodes: int
    cores: int
    read_gbps: float
    write_gbps: float
    network_gbps: float
    costs: Mapping[str, float]
    phases: Mapping[str, float]
    wall_seconds: float
    bounds: Mapping[str, float]
    bound_by: str
    verified_bytes: tuple[int, ...]
    ended_seconds: tuple[float, ...]
    links: tuple[Mapping[str, int], ...]
    timeline: Mapping[str, Any]


def predicted(plan: ExportPlan, num_boxes: int, cluster: ClusterOptions, *, verify: bool) -> PredictionReport:
    """The prediction for a plan of a checkpoint with `num_boxes` stored boxes."""
    machine = machine_of(cluster)
    found = predict(work_of(plan, num_boxes, verify=verify), machine)
    return PredictionReport(
        nodes=machine.nodes,
        cores=machine.cores,
        read_gbps=machine.read_gbps,
        write_gbps=machine.write_gbps,
        network_gbps=machine.node_gbps,
        costs=to_json_value(machine.costs),
        phases=_rounded(found.phases),
        wall_seconds=round(found.wall_seconds, 3),
        bounds=_rounded(found.bounds),
        bound_by=found.bound_by,
        verified_bytes=found.verified_bytes,
        ended_seconds=tuple(round(seconds, 3) for seconds in found.ended),
        links=tuple(
            {"sender": sender, "receiver": receiver, "bytes": count}
            for (sender, receiver), count in plan.links.items()
        ),
        timeline=found.timeline.to_json(),
    )


def machine_of(cluster: ClusterOptions) -> Machine:
    """The machine that a user describes; what is not said is as the options' help says."""
    read, write = parse_rates(cluster.storage_gbps)
    return Machine(
        nodes=cluster.nodes or -(-cluster.world_size // _RANKS_OF_NODE),
        cores=cluster.cores or usable_cores(),
        read_gbps=read,
        write_gbps=write,
        node_gbps=cluster.network_gbps,
    )


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {name: round(each, 3) for name, each in seconds.items()}
