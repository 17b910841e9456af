"""What a folder answers in transformers, compared with what was recorded from the model in training.

Weights and everything that config.json says are tried at once: a wrong rotary base or epsilon is in no
tensor. transformers runs on the CPU in float32, and keeps on disk what does not fit into memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pp_export.core.errors import VerificationError
from pp_export.core.file_names import CONFIG
from pp_export.core.strict_json import JsonError, parse_object
from pp_export.verification.comparison import LogitComparison, measure
from pp_export.verification.findings import brief
from pp_export.verification.recording import Recording, read_recording
from pp_export.verification.running import run_folder

if TYPE_CHECKING:
    import torch

LIMITS = {"float32": (1e-4, 0.99), "float16": (1e-2, 0.75), "bfloat16": (5e-2, 0.75)}
"""By the precision in which the recorded model computed: the tolerance, and the share of the positions that
must lie within it. Where they come from: docs/compare_logits.md.
"""


def compare_folder(
    folder: Path, recording_file: Path, *, tolerance: float | None = None, max_memory: int | None = None
) -> LogitComparison:
    """Run the model of `folder` on the recorded token ids and compare; `max_memory` is for its weights, in
    bytes. Raises VerificationError where there is nothing to compare.
    """
    recording = read_recording(recording_file)
    vocab_size = _vocab_size(folder)
    _check_columns(recording, vocab_size, recording_file)
    logits, partly_on_disk = run_folder(folder, recording.token_ids, max_memory)
    if tuple(logits.shape) != (*recording.token_ids.shape, vocab_size):
        expected = [*recording.token_ids.shape, vocab_size]
        raise VerificationError(
            "the model gives logits of another shape",
            where={"folder": folder},
            expected=expected,
            got=list(logits.shape),
        )
    precision = _precision(recording.values)
    limit, share = LIMITS[precision]
    tolerance = limit if tolerance is None else tolerance
    figures = measure(logits, recording, tolerance, share, folder)
    return LogitComparison(
        folder=str(folder),
        recording=str(recording_file),
        recorded_dtype=recording.dtype,
        precision=precision,
        batch=logits.shape[0],
        sequence=logits.shape[1],
        num_columns=recording.num_columns if recording.ids is None else recording.ids.shape[-1],
        num_padding_columns=recording.num_columns - vocab_size,
        partly_on_disk=partly_on_disk,
        required_share=share,
        **figures,
    )


def _vocab_size(folder: Path) -> int:
    path = folder / CONFIG
    try:
        size = parse_object(path.read_bytes(), allow_infinity=True).get("vocab_size")
    except (OSError, JsonError) as error:
        raise VerificationError(f"{CONFIG} can't be read: {error}", where={"file": path}) from None
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise VerificationError(f"{CONFIG} has no vocab_size", where={"file": path}, got=brief(size))
    return size


def _check_columns(recording: Recording, vocab_size: int, file: Path) -> None:
    """Every column of the vocabulary is there, and every token id is one of it; more columns are padding."""
    import torch

    if recording.num_columns < vocab_size:
        raise VerificationError(
            "the recording is narrower than the folder's vocabulary",
            where={"file": file},
            expected=f"at least {vocab_size} columns",
            got=recording.num_columns,
            advice="gather the logits over tensor parallel ranks before record_logits",
        )
    for name, ids in (("token_ids", recording.token_ids), ("top_ids", recording.ids)):
        if ids is None:
            continue
        beyond = ids >= vocab_size if name == "token_ids" else (ids >= vocab_size).all(dim=-1, keepdim=True)
        if bool(beyond.any()):
            place = [int(each) for each in beyond.nonzero()[0]]
            raise VerificationError(
                f"{name} lie beyond the folder's vocabulary",
                where={"file": file, "tensor": name, "at": place[:2]},
                expected=f"below {vocab_size}",
                got=int(ids[tuple(place)]),
                advice="compare with the folder of the model that was recorded",
            )
    if recording.ids is None and not bool(torch.isfinite(recording.values[..., :vocab_size]).all()):
        raise VerificationError(
            "logits of the vocabulary are -inf",
            where={"file": file, "tensor": "logits"},
            expected=f"finite numbers in the first {vocab_size} columns",
            advice="record the logits before anything is masked",
        )


def _precision(values: torch.Tensor) -> str:
    """The narrowest type that holds all values: Megatron hands out as float32 what it computed in less."""
    import torch

    for dtype in (torch.bfloat16, torch.float16):
        if torch.equal(values.to(dtype).to(values.dtype), values):
            return str(dtype).removeprefix("torch.")
    return "float32"
