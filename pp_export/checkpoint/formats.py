"""Every kind of checkpoint folder there is a reader for, or a reason against."""

from __future__ import annotations

from pathlib import Path

from pp_export.checkpoint import locate, refused
from pp_export.checkpoint.catalog import Catalog
from pp_export.checkpoint.dcp.format import DcpFormat
from pp_export.checkpoint.dcp.metadata import OnFault
from pp_export.checkpoint.legacy.format import LegacyFormat
from pp_export.checkpoint.source import Format, Reader
from pp_export.core.errors import CheckpointError

# In the order in which they are tried: a folder is of the first kind that recognises it.
FORMATS: tuple[Format, ...] = (refused.MODELOPT, refused.ADAPTER, LegacyFormat(), DcpFormat())


def describe_checkpoint(
    checkpoint: Path, iteration: int | None, *, masters: bool = False, on_fault: OnFault | None = None
) -> Catalog:
    """What a checkpoint of any format holds, without values; called on rank 0 only.

    `checkpoint` is an iteration folder, or the root of several, where `iteration` or the tracker file
    chooses. With `masters`, the optimizer's float32 weights stand for the model's. `on_fault` is told what
    is missing or truncated of a folder of DCP, whose boxes need not fill their tensors then, nor lie in
    files. Raises CheckpointError where it is missing, unfinished, damaged or of a kind that can't be
    exported.
    """
    try:
        folder = locate.iteration_folder(checkpoint, iteration, is_checkpoint)
        found = format_of(folder)
        if isinstance(found, DcpFormat):
            return found.describe(folder, masters=masters, on_fault=on_fault)
        if not masters:
            return found.describe(folder)
        raise CheckpointError(
            "--weights master can't be taken from a checkpoint with one file per rank",
            where={"folder": folder},
            advice="leave --weights master out, or save with --ckpt-format torch_dist"
            " --dist-ckpt-optim-fully-reshardable",
        )
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint can't be read: {error.strerror}",
            where={"file": error.filename if error.filename is not None else checkpoint},
        ) from error


def open_checkpoint(catalog: Catalog, *, check_source: bool) -> Reader:
    """The reader of this rank for the files of a catalog that `describe_checkpoint` made on any rank."""
    found = next(known for known in FORMATS if known.name == catalog.description.reader)
    return found.open(catalog, check_source=check_source)


def is_checkpoint(folder: Path) -> bool:
    """Whether `folder` is itself a save, of a kind that can be exported or not."""
    return any(known.recognise(folder) for known in FORMATS)


def holds_checkpoint(folder: Path) -> bool:
    """Whether `folder` is a save of Megatron, or the root of several, and not a Hugging Face folder."""
    if refused.ADAPTER.recognise(folder):
        return False
    is_root = (folder / locate.TRACKER).is_file() or locate.is_nemo(folder)
    return is_root or is_checkpoint(folder) or (folder.is_dir() and bool(locate.iterations(folder)))


def is_finished(checkpoint: Path, iteration: int) -> bool:
    """Whether the iteration's save below the root is written to its end; a save that isn't there is not."""
    folder = locate.folder_of(checkpoint, iteration)
    found = next((known for known in FORMATS if known.recognise(folder)), None)
    try:
        return found is not None and found.is_finished(folder, locate.latest(checkpoint))
    except (OSError, CheckpointError):  # the tracker is just being written
        return False


def format_of(folder: Path) -> Format:
    """The kind of save that `folder` holds; CheckpointError where it holds none that is known."""
    found = next((known for known in FORMATS if known.recognise(folder)), None)
    if found is None:
        raise CheckpointError(
            "the folder holds no Megatron checkpoint (no .metadata)", where={"folder": folder}
        )
    return found
