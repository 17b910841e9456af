"""The story of an export, in ten steps. Every rank runs `export`; what rank 0 does alone, the steps say.

1. described   rank 0 reads the metadata: which slices are stored, of which model  (steps.inputs, checkpoint)
2. planned     rank 0 makes the plan; each rank gets its part, proved to be of it  (steps.inputs, planning)
3. read        each rank reads the slices it was dealt, checking their CRC-32      (checkpoint)
4. gathered    they travel as packed bytes to the leader of their shard            (distributed)
5. mapped      every view of them goes to its place in the Hugging Face tensors    (shards.assemble)
6. frozen      a full shard is encoded and becomes read-only                       (shards.encode)
7. written     file and shard JSON, both from the frozen shard                     (shards.write)
8. verified    every shard is re-read by a rank that did not write it              (verification)
9. indexed     rank 0 joins ranges, and merges headers, shard JSONs and plan       (shards.index, shards.join)
10. published  the staging folder gets the target's name                           (disk.publish)

Steps 3 to 8 run side by side: each gives its results one by one, and begins as soon as the one before
gives any. A file that several ranks write exists only when it is joined, and is re-read then. Beside them
rank 0 hears what the model's own definition says, if that was not known before  (steps.confirmation).
"""

from __future__ import annotations

from pp_export.checkpoint.source import Source
from pp_export.core.collector import paused_collector
from pp_export.distributed.world import World
from pp_export.options.kinds import TargetOptions
from pp_export.steps import report, resumption
from pp_export.steps.confirmation import Confirmation
from pp_export.steps.failure import ending_together
from pp_export.steps.folder import index_folder, make_staging_folder, publish_folder, seal
from pp_export.steps.inputs import agree_on_backend, agree_on_plan, describe, make_whole
from pp_export.steps.measured import Clock, Measured
from pp_export.steps.pending import PendingInputs, asking
from pp_export.steps.report import ExportReport
from pp_export.steps.target import Target
from pp_export.steps.telling import OnProgress, Step, Telling, ignore
from pp_export.steps.transfer import Transfer
from pp_export.steps.verification import verify_joined
from pp_export.steps.workers import Progress


def export(
    source: Source,
    options: TargetOptions,
    world: World,
    *,
    pending: PendingInputs | None = None,
    on_progress: OnProgress = ignore,
) -> ExportReport:
    """Export what `source` has to `options.output`; called by all ranks of `world`, which share a filesystem.

    Returns the report (whole on rank 0). If anything fails on any rank, raises the same ExportError on
    every rank; the target is then what it was before, and nothing is left beside it but, if the options say
    so, what a later run may go on with. `pending` is rank 0's, if it was started ahead; it is ended here.
    `on_progress` is told on rank 0 how far all ranks are, at each step and a few times a second.
    """
    target = Target.of(options, world.run_id)
    with (
        ending_together(world, target.staging, resumable=resumption.is_asked(options)),
        asking(world, options, pending) as library,
        paused_collector() as resume_collector,
    ):
        clock, progress = Clock(), Progress()
        world.liveness.counters = progress.snapshot
        telling = Telling(world, on_progress, options.verify)

        telling.step(Step.READING)
        inputs = describe(source, target, options, world, library)  # 1
        telling.step(Step.PLANNING)
        whole = make_whole(inputs, options, world)  # 2
        staging = make_staging_folder(world, target, whole, options)
        if resumption.is_asked(options):
            telling.step(Step.CHECKING)
            whole = resumption.take_up(world, target, whole, options, progress, telling.poll)
        own = agree_on_plan(whole, options, world)
        backend = agree_on_backend(source, own.plan, whole, options, world)
        confirmation = Confirmation(whole, library)
        if whole is not None:
            telling.plan(whole.inputs, whole.plan)
        resume_collector()
        clock.lap("plan")
        telling.step(Step.MOVING)

        def poll() -> None:
            confirmation.look()
            telling.poll()

        transferring = Transfer(own.plan, world, backend, staging, progress, values_on=source.device)
        with transferring as transfer, source.open(own.catalog) as reader:
            read = transfer.read(reader)  # 3
            gathered = transfer.gather(read)  # 4
            mapped = transfer.map(gathered)  # 5
            frozen = transfer.freeze(mapped)  # 6
            written = transfer.write(frozen)  # 7
            committed = transfer.commit(written)
            verified = transfer.verify(committed) if options.verify else committed  # 8
            transfer.finish(verified, poll)
        clock.lap("export")

        telling.step(Step.CONFIRMING)
        whole = confirmation.wait(world)
        telling.step(Step.COMPLETING)
        indexed = index_folder(world, staging, whole, options)  # 9
        digests = verify_joined(world, staging, own.plan, progress, telling.poll)
        facts = Measured.of(world, progress.recorder, transfer.sent, digests)
        measured = [Measured.from_bytes(image) for image in world.control.gather(facts.to_bytes())]
        seal(world, indexed, measured)
        clock.lap("index")

        telling.step(Step.PUBLISHING)
        completed = publish_folder(world, target, indexed, options)  # 10
        clock.lap("publish")
        telling.step(Step.DONE)
        return report.share(
            world, lambda: report.succeeded(whole, options, backend, completed, measured, clock.laps)
        )
