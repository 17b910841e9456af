"""What people see: tables on stdout, progress on stderr (bars on a terminal, plain lines elsewhere)."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn
from rich.table import Table

from pp_export.process.log import logger

if TYPE_CHECKING:
    from pp_export.checkpoint.catalog import Catalog
    from pp_export.distributed.world import World
    from pp_export.planning.export_plan import ExportPlan
    from pp_export.steps.inputs import ExportInputs
    from pp_export.steps.report import ExportReport
    from pp_export.verification import Verification
    from pp_export.verification.diff import Difference

_CHECKED = {True: "CRC-32 of every record checked", False: "not checked", None: "a live model"}
_LAYOUT = (
    ("TP", "tensor_model_parallel_size"),
    ("PP", "pipeline_model_parallel_size"),
    ("VPP", "virtual_pipeline_model_parallel_size"),
    ("EP", "expert_model_parallel_size"),
    ("ETP", "expert_tensor_parallel_size"),
    ("CP", "context_parallel_size"),
    ("DP", "data_parallel_size"),
)
_SIZES = (
    *("num_layers", "hidden_size", "num_attention_heads", "num_query_groups", "ffn_hidden_size"),
    *("num_experts", "padded_vocab_size"),
)
_LINE_SECONDS = 5.0
_MAX_ROWS = 40
_WIDTH_OF_FILES = 200


def _bars() -> Progress:
    columns = (TextColumn("{task.description:<22}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True))


def _console() -> Console:
    """stdout, for text that is shown as it is: names may look like markup. What is no terminal is wide, so
    that names stay whole for whoever searches in it.
    """
    width = None if sys.stdout.isatty() else _WIDTH_OF_FILES
    return Console(width=width, markup=False, emoji=False, highlight=False)


def human_bytes(count: float) -> str:
    """`3.55 GB`."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


class ExportView:
    """Rank 0's view of all ranks while they export and verify: a bar, or now and then a line, per stage."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._plan: ExportPlan | None = None
        self._verifiers: list[int] = []
        self._bars = _bars() if world.rank == 0 and sys.stderr.isatty() else None
        self._tasks: dict[tuple[str, int], TaskID] = {}
        self._begun: dict[str, float] = {}
        self._shown = 0.0

    def __enter__(self) -> ExportView:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def plan(self, sources: ExportInputs, plan: ExportPlan) -> None:
        """The plan is known."""
        self._plan, self._verifiers = plan, plan.verifiers()
        if self._world.rank == 0:
            logger.info(
                "exporting %s: %d tensors, %s, in %d files by %d ranks in %d stages",
                sources.architecture.serves[0] if sources.architecture.serves else sources.architecture.name,
                sum(len(shard.tensors) for shard in plan.shards),
                human_bytes(plan.total_size),
                len(plan.shards),
                plan.world_size,
                len(plan.stages),
            )

    def poll(self, phase: str) -> None:
        """Called often while `phase` (`export` or `verify`) runs."""
        now = time.monotonic()
        if (
            self._world.rank != 0
            or now - self._shown < (0.2 if self._bars else _LINE_SECONDS)
            or self._plan is None
        ):
            return
        begun = self._begun.setdefault(phase, now)
        if self._bars is None and begun == now:
            self._shown = now
            return
        self._shown = now
        posted = self._world.progress_of(range(self._world.size))
        counter = "written" if phase == "export" else "verified"
        for stage, ranks in enumerate(self._plan.stages):
            done = sum(posted.get(rank, {}).get(counter, 0) for rank in ranks)
            shards = sum(posted.get(rank, {}).get("shards", 0) for rank in ranks)
            self._show(phase, stage, done, shards, now - begun)

    def _show(self, phase: str, stage: int, done: int, num_done: int, seconds: float) -> None:
        assert self._plan is not None
        writers, ranks = [s.leader for s in self._plan.shards], self._plan.stages[stage]
        doers = writers if phase == "export" else self._verifiers
        shards = [shard for shard, rank in zip(self._plan.shards, doers) if rank in ranks]
        total = sum(shard.num_bytes for shard in shards)
        note = f"{num_done} of {len(shards)} shards" if phase == "export" else f"{len(shards)} shards"
        if self._bars is None:
            rate = human_bytes(done / max(seconds, 1e-3))
            logger.info(
                "%s stage %d: %s of %s, %s/s, %s",
                phase,
                stage,
                human_bytes(done),
                human_bytes(total),
                rate,
                note,
            )
            return
        key = (phase, stage)
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task(f"{phase} stage {stage}", total=total, note=note)
        self._bars.update(self._tasks[key], completed=done, note=note)

    def summary(self, report: ExportReport) -> None:
        """The table at the end."""
        plan, seconds = report.plan, report.seconds
        table = Table(title=f"exported to {report.options.output}", show_header=False)
        rate = plan.total_size / max(seconds.get("export", 0), 1e-3)
        rows = {
            "model": f"{report.sources.architecture.name}, {plan.total_parameters:,} parameters",
            "files": f"{len(plan.shards)} shards, {human_bytes(plan.total_size)}",
            "accounted": f"every tensor once, against {report.sources.account.truth}",
            "dropped": ", ".join(report.sources.account.dropped) or "nothing",
            "source": _CHECKED[getattr(report.options, "check_source", None)],
            "export": f"{seconds['export']:.1f} s, {human_bytes(rate)}/s",
            "verified": f"every byte re-read, {seconds['verify']:.1f} s"
            if report.options.verify
            else "NOT verified",
            "config.json": "; ".join(report.corrections) or "as in the reference",
            "peak memory": ", ".join(human_bytes(peak) for peak in report.peaks[:8])
            + " (anonymous, per rank)",
        }
        for name, value in rows.items():
            table.add_row(name, value)
        _console().print(table)


def plan_json(sources: ExportInputs, plan: ExportPlan) -> dict[str, Any]:
    """The plan for machines."""
    return {
        "architecture": sources.architecture.name,
        "expected_from": sources.account.truth,
        "dropped": dict(sources.account.dropped),
        "sizes": {**sources.sizes.values, "padded_vocab_size": sources.sizes.padded_vocab_size},
        "sizes_from": sources.sizes.source,
        "total_size": plan.total_size,
        "total_parameters": plan.total_parameters,
        "fingerprint": plan.fingerprint,
        "shards": [
            {
                "file": shard.file,
                "unit": shard.unit,
                "stage": shard.stage,
                "leader": shard.leader,
                "bytes": shard.num_bytes,
                "tensors": {
                    place.name: {"dtype": place.spec.dtype.torch_name, "shape": place.spec.shape}
                    for place in shard.tensors
                },
            }
            for shard in plan.shards
        ],
        "ranks": [
            {
                "rank": rank,
                "stage": plan.stage_of_rank.get(rank),
                "read_bytes": plan.read_bytes(rank),
                "sent_bytes": plan.sent_bytes(rank),
                "written_bytes": sum(shard.num_bytes for shard in plan.led_by(rank)),
                "peak_bytes": plan.peak_bytes(rank),
            }
            for rank in range(plan.world_size)
        ],
    }


def print_plan(sources: ExportInputs, plan: ExportPlan) -> None:
    """The plan for people."""
    value = plan_json(sources, plan)
    console = _console()
    shards = Table(title=f"{len(plan.shards)} files, {human_bytes(plan.total_size)}")
    for column in ("file", "unit", "stage", "leader", "tensors", "size"):
        shards.add_column(column, justify="left" if column in ("file", "unit") else "right", overflow="fold")
    for shard in plan.shards[:_MAX_ROWS]:
        size = human_bytes(shard.num_bytes)
        shards.add_row(
            shard.file, shard.unit, str(shard.stage), str(shard.leader), str(len(shard.tensors)), size
        )
    if len(plan.shards) > _MAX_ROWS:
        shards.add_row(f"and {len(plan.shards) - _MAX_ROWS} more (--json lists all)")
    console.print(shards)
    ranks = Table(title=f"{plan.world_size} ranks in {len(plan.stages)} stages")
    for column in ("rank", "stage", "reads", "sends", "writes", "peak memory"):
        ranks.add_column(column, justify="right")
    for rank in value["ranks"][:_MAX_ROWS]:
        sizes = (
            human_bytes(rank[key]) for key in ("read_bytes", "sent_bytes", "written_bytes", "peak_bytes")
        )
        ranks.add_row(str(rank["rank"]), str(rank["stage"]), *sizes)
    console.print(ranks)
    dropped = "; ".join(f"{name} ({why})" for name, why in sources.account.dropped.items()) or "nothing"
    console.print(
        f"accounted: every tensor once, against {sources.account.truth}; dropped: {dropped}", soft_wrap=True
    )


def catalog_json(catalog: Catalog) -> dict[str, Any]:
    """A checkpoint for machines."""
    description = catalog.description
    return {
        "folder": description.folder,
        "format": description.format,
        "iteration": description.iteration,
        "writer": description.writer,
        "layout": dict(description.layout),
        "stacked": catalog.is_stacked,
        "args": description.args,
        "weights": {
            "num_tensors": len(catalog.specs),
            "num_boxes": sum(len(tensor.boxes) for tensor in catalog.tensors),
            "num_parameters": sum(spec.num_elements for spec in catalog.specs.values()),
            "bytes": sum(spec.num_bytes for spec in catalog.specs.values()),
            "files": list(catalog.files),
        },
        "tensors": {
            t.key: {"dtype": t.dtype.torch_name, "shape": t.shape, "num_boxes": len(t.boxes)}
            for t in catalog.tensors
        },
        "other": {kind: {"items": items, "bytes": size} for kind, (items, size) in description.other.items()},
        "notes": list(description.notes),
    }


def print_catalog(catalog: Catalog) -> None:
    """A checkpoint for people."""
    value, console = catalog_json(catalog), _console()
    about = Table(title=value["folder"], show_header=False)
    args, weights = value["args"] or {}, value["weights"]
    sizes = ", ".join(f"{name} {args[name]}" for name in _SIZES if args.get(name) is not None)
    layout = ", ".join(f"{short}{args[name]}" for short, name in _LAYOUT if args.get(name) is not None)
    kind = "all layers" if value["stacked"] else "each layer"
    keys = "one file per rank" if catalog.is_one_file_per_rank else f"one key for {kind}"
    rows = {
        "format": f"{value['format']}, {keys}",
        "written by": value["writer"],
        "iteration": str(value["iteration"]),
        "layout": layout or "unknown (no training args)",
        "model": sizes or "unknown",
        "weights": f"{weights['num_tensors']:,} tensors, {weights['num_parameters']:,} parameters,"
        f" {human_bytes(weights['bytes'])} in {weights['num_boxes']:,} stored boxes"
        f" of {len(weights['files']):,} files",
        **{kind: f"{o['items']:,} items, {human_bytes(o['bytes'])}" for kind, o in value["other"].items()},
        **{f"note {number}": note for number, note in enumerate(value["notes"], start=1)},
    }
    for name, text in rows.items():
        about.add_row(name, text)
    console.print(about)
    tensors = Table()
    for column in ("stored key", "type", "shape", "boxes"):
        tensors.add_column(column, overflow="fold")
    for key, tensor in value["tensors"].items():
        tensors.add_row(key, tensor["dtype"], str(list(tensor["shape"])), str(tensor["num_boxes"]))
    console.print(tensors)


def print_verification(result: Verification) -> None:
    """What verify found."""
    console = _console()
    for fault in result.faults:
        console.print(f"FAULT {fault}", soft_wrap=True)
    for note in result.notes:
        console.print(f"note: {note}", soft_wrap=True)
    verdict = "ok" if result.ok else f"{len(result.faults)} faults"
    console.print(
        f"{result.folder}: {verdict} ({result.depth}; {result.num_files} files, {result.num_tensors} tensors,"
        f" {human_bytes(result.num_bytes_read)} read)",
        soft_wrap=True,
    )


def print_difference(result: Difference) -> None:
    """How two folders differ."""
    sys.stdout.write(f"{result}\n")


@contextmanager
def bytes_bar(what: str) -> Iterator[Callable[[int], None]]:
    """A bar for bytes of unknown total, on a terminal only."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    with _bars() as bars:
        task = bars.add_task(what, total=None, note="")
        yield lambda count: bars.update(task, advance=count)
