"""The tasks of an export: how the bytes of each shard go from storage through a rank to storage, and are read
back.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from pp_export.core.timeline import Lane, RankTimeline, Span, Word
from pp_export.planning.machine import GB, Machine
from pp_export.planning.simulation import Shared, Task, Worker, run
from pp_export.planning.work import ShardWork, Work

_WORKERS: dict[Word, str] = {
    "reads": "reader",
    "sends": "sender",
    "pastes": "paster",
    "encodes": "encoder",
    "hashes": "hasher",
    "writes": "writer",
    "verifies": "verifier",
}
_PIECE_BYTES = 64 << 20
"""What is read, sent and pasted at once. Buckets are smaller, and many more."""

_ORDER = {word: number for number, word in enumerate(_WORKERS)}


@dataclass(frozen=True)
class Flow:
    """When the bytes have moved: `seconds` for all, and for each rank, 0 for one that does nothing; and what
    the ranks that were asked for do meanwhile.
    """

    seconds: float
    ended: tuple[float, ...]
    ranks: tuple[RankTimeline, ...]


def simulate(work: Work, machine: Machine, shown: Collection[int]) -> Flow:
    """All bytes of `work` on their way; `shown` are the ranks of which the spans are kept."""
    tasks = list(_Tasks(work, machine).of_all())
    seconds = run(each.task for each in tasks)
    ended = [0.0] * work.world_size
    lanes: dict[int, defaultdict[tuple[int, str], list[Span]]] = {rank: defaultdict(list) for rank in shown}
    for each in tasks:
        task, rank = each.task, each.rank
        ended[rank] = max(ended[rank], task.end)
        if rank in lanes and task.end > task.begin:
            worker = (_ORDER[each.word], f"{_WORKERS[each.word]} {task.slot + 1}")
            lanes[rank][worker].append(Span(each.word, task.begin, task.end, each.num_bytes, each.file))
    ranks = (
        RankTimeline(rank, 0, tuple(Lane(name, tuple(spans)) for (_, name), spans in sorted(of_rank.items())))
        for rank, of_rank in sorted(lanes.items())
    )
    return Flow(seconds, tuple(ended), tuple(ranks))


@dataclass(frozen=True, slots=True)
class _Done:
    """A task, and what it is for people."""

    task: Task
    rank: int
    word: Word
    num_bytes: int
    file: str


class _Tasks:
    """Makes the tasks of all ranks; each comes after those that it waits for."""

    def __init__(self, work: Work, machine: Machine) -> None:
        self._work, self._machine, self._costs = work, machine, machine.costs
        self._num_threads = machine.threads(work.world_size)
        self._cores = [Shared(machine.cores, most=1.0) for _ in range(machine.nodes)]
        self._network = [Shared(machine.node_gbps * GB) for _ in range(machine.nodes)]
        self._storage = Shared(1.0)
        self._workers: dict[tuple[int, Word], Worker] = {}

    def of_all(self) -> Iterator[_Done]:
        """File by file, as the plan has them."""
        costs, in_flight = self._costs, defaultdict[int, deque[list[Task]]](deque)
        for file in self._work.files:
            written: list[Task] = []
            for shard in file.shards:
                rank, name = shard.leader, file.file
                # One shard is filled while each thread hashes and writes another; then memory is free again.
                held = in_flight[rank]
                freed = held.popleft() if len(held) == self._num_threads + 1 else []
                gathered: list[Task] = []
                for each in self._gathering(shard, freed):
                    yield each
                    gathered.append(each.task)
                encode = self._of(rank, "encodes", shard.encoded_bytes, name, costs.encodes, gathered)
                after, size = [encode.task], shard.num_bytes
                hash_ = self._of(rank, "hashes", size, name, costs.hashes, after)
                write = self._of(rank, "writes", size, name, costs.writes, after, self._machine.write_gbps)
                yield from (encode, hash_, write)
                held.append([hash_.task, write.task])
                written += held[-1]
            if (verifier := file.verifier) is not None:
                size, cost = file.num_bytes, costs.verifies
                gbps = self._machine.read_gbps
                yield self._of(verifier, "verifies", size, file.file, cost, written, gbps)

    def _gathering(self, shard: ShardWork, freed: list[Task]) -> Iterator[_Done]:
        """Each part of a shard is read by its rank, piece by piece, and goes to its place; if that rank isn't
        the leader, it is sent and pasted.
        """
        costs, file = self._costs, shard.file
        for rank, part in shard.read_by:
            for begin in range(0, part, _PIECE_BYTES):
                size = min(_PIECE_BYTES, part - begin)
                read = self._of(rank, "reads", size, file, costs.reads, freed, self._machine.read_gbps)
                yield read
                if rank != shard.leader:
                    send = self._sending(rank, shard.leader, size, file, read.task)
                    yield send
                    yield self._of(shard.leader, "pastes", size, file, costs.pastes, [send.task])

    def _sending(self, rank: int, leader: int, num_bytes: int, file: str, read: Task) -> _Done:
        nodes = (self._node(rank), self._node(leader))
        uses = [(self._cores[node], num_bytes / GB * self._costs.sends) for node in nodes]
        if nodes[0] != nodes[1]:
            uses += [(self._network[node], float(num_bytes)) for node in nodes]
        return _Done(Task(self._worker(rank, "sends"), uses, [read]), rank, "sends", num_bytes, file)

    def _of(
        self,
        rank: int,
        word: Word,
        num_bytes: int,
        file: str,
        cost: float,
        after: list[Task],
        storage_gbps: float | None = None,
    ) -> _Done:
        """A task that passes over so many bytes, and whether the storage moves them: those that read and
        those that write share its time.
        """
        node = self._node(rank)
        uses = [(self._cores[node], num_bytes / GB * cost)]
        if storage_gbps is not None:
            uses += [
                (self._storage, num_bytes / GB / storage_gbps),
                (self._network[node], float(num_bytes)),
            ]
        return _Done(Task(self._worker(rank, word), uses, after), rank, word, num_bytes, file)

    def _node(self, rank: int) -> int:
        return self._machine.node_of(rank, self._work.world_size)

    def _worker(self, rank: int, word: Word) -> Worker:
        """One worker does one word, with as many slots as the rank has cores."""
        worker = self._workers.get((rank, word))
        if worker is None:
            worker = self._workers[rank, word] = Worker(self._num_threads)
        return worker
