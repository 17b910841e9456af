"""The story of a comparison with a checkpoint, or of two, in five steps.

1. described   what each checkpoint would be exported as; what a folder has  (steps.compared, verification)
2. paired      names, dtypes and shapes; what both say of the function       (steps.functions)
3. planned     the memory to assemble checkpoints in, shard by shard         (steps.comparing)
4. compared    frozen shards with each other, or with the folder's files     (steps.comparing)
5. told        what differs, by tensor and by layer                          (verification.diff)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pp_export.checkpoint.formats import holds_checkpoint
from pp_export.core.file_names import CONFIG
from pp_export.distributed.alone import alone
from pp_export.options.comparison import SideOptions
from pp_export.steps.compared import ComparedCheckpoint, describe_compared
from pp_export.steps.comparing import Comparing, plan_walks, planned_bytes
from pp_export.steps.failure import ending_together
from pp_export.steps.functions import Function, config_differences
from pp_export.verification.by_layer import by_layer
from pp_export.verification.diff import Difference, SpecDifference, check_comparison
from pp_export.verification.side_by_side import EXACT, Tolerance
from pp_export.verification.weights import StoredTensor, tensors_of

OnBytes = Callable[[int], None]


@dataclass(frozen=True)
class ComparedFolder:
    """A Hugging Face folder as a side."""

    stored: dict[str, StoredTensor]
    function: Function | None

    @property
    def specs(self) -> dict[str, str]:
        return {name: tensor.spec for name, tensor in self.stored.items()}


def diff_checkpoints(
    a: Path,
    b: Path,
    options: tuple[SideOptions, SideOptions],
    *,
    threads: int,
    tolerance: Tolerance = EXACT,
    on_total: OnBytes = lambda _: None,
    on_bytes: OnBytes = lambda _: None,
) -> Difference:
    """Compare two sides with the `options` of each: one at least is a checkpoint, the other may be a Hugging
    Face folder; called by one process.

    Memory is bounded by the plan, and nothing is written. `on_total` is told the bytes of both sides that
    will be compared, `on_bytes` those of each step, by one thread at a time. Raises OptionError,
    VerificationError where a folder can't be read, and of a checkpoint what its export would raise, but that
    tensors are missing or too many.
    """
    check_comparison(threads, tolerance)
    is_checkpoint = [holds_checkpoint(side) for side in (a, b)]
    sides = [
        _checkpoint(side, other, own, threads) if is_one else _folder(side)  # 1
        for side, other, own, is_one in zip((a, b), (b, a), options, is_checkpoint)
    ]
    left, right = (side.specs for side in sides)
    common = sorted(left.keys() & right.keys())  # 2
    names = [name for name in common if left[name] == right[name]]
    config = config_differences(*(side.function for side in sides))

    checkpoints = [side for side in sides if isinstance(side, ComparedCheckpoint)]
    walks = plan_walks(checkpoints, names)  # 3
    stored = next((side.stored for side in sides if isinstance(side, ComparedFolder)), {})
    on_total(2 * sum(checkpoints[0].inputs.account.outputs[name].num_bytes for name in names))
    comparing = Comparing(walks, stored, tolerance, on_bytes)
    if walks:
        world = alone(stall_seconds=checkpoints[0].options.stall_seconds)
        try:
            with ending_together(world, None):
                comparing.run(world)  # 4
        finally:
            world.close()
    values = [comparing.found[name] for name in names if name in comparing.found]
    return Difference(  # 5
        a=str(a),
        b=str(b),
        only_in_a=tuple(sorted(left.keys() - right.keys())),
        only_in_b=tuple(sorted(right.keys() - left.keys())),
        other_spec=tuple(
            SpecDifference(name, left[name], right[name]) for name in common if left[name] != right[name]
        ),
        other_values=tuple(values),
        num_equal=len(names) - len(values),
        num_equal_by_digest=0,
        num_bytes_read=comparing.num_bytes_read,
        tolerance=tolerance,
        config=config,
        by_layer=by_layer(names, values),
        planned_bytes=planned_bytes(walks),
        notes=(*(note for side in checkpoints for note in _notes(side)), *_type_notes(left, right)),
    )


def _checkpoint(side: Path, other: Path, options: SideOptions, threads: int) -> ComparedCheckpoint:
    is_reference = not holds_checkpoint(other) and (other / CONFIG).is_file()
    return describe_compared(
        replace(options.export_of(side, other if is_reference else None), threads=threads)
    )


def _folder(side: Path) -> ComparedFolder:
    return ComparedFolder(tensors_of(side), Function.of_folder(side))


def _notes(side: ComparedCheckpoint) -> list[str]:
    """What a user should know of a checkpoint's tensors: which of them are no part of the comparison."""
    sizes, left_out = side.inputs.sizes, Counter(side.inputs.account.dropped.values())
    found = [f"{side.options.checkpoint}: {num} tensors are left out: {why}" for why, num in left_out.items()]
    num_cut = sizes.padded_vocab_size - sizes.vocab_size
    if num_cut > 0:
        found.append(
            f"{side.options.checkpoint}: {num_cut:,} rows of the vocabulary are padding, and cut off"
        )
    return found


def _type_notes(left: Mapping[str, str], right: Mapping[str, str]) -> list[str]:
    """What helps where tensors have other types alone."""
    differ = (name for name in left.keys() & right.keys() if left[name] != right[name])
    if not any(left[name].partition("[")[2] == right[name].partition("[")[2] for name in differ):
        return []
    return ["values of other types were not compared; --dtype casts those of a checkpoint, as an export does"]
