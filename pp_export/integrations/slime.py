"""For slime: `--save-hf DIR/{rollout_id}`, from the live model or from the checkpoint that was just saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pp_export.api import export_checkpoint
from pp_export.core.errors import OptionError
from pp_export.integrations.bridge import ExportBridge, Model
from pp_export.options.keywords import Folder
from pp_export.steps.report import ExportReport


def save_hf_model_to_path(
    args: Any,
    output_dir: Folder,
    model: Model,
    *,
    model_name: str | None = None,
    quantization_config: Any = None,
    progress_desc: str = "",
) -> None:
    """As slime's function of this name: the whole folder from the live model; called by all ranks.

    `args.hf_checkpoint` is the reference. `model_name` is not needed: the reference says which model it is.
    """
    _check(args, output_dir, quantization_config)
    ExportBridge(args.hf_checkpoint).save_hf_pretrained(model, output_dir)


def save_hf_from_checkpoint(args: Any, output_dir: Folder, iteration: int | None = None) -> ExportReport:
    """The same folder, byte for byte, from the checkpoint in `args.save`; called by one rank, when all have
    saved.

    For when the model is no longer in memory, and for processes outside the job.
    """
    _check(args, output_dir, None)
    return export_checkpoint(
        args.save,
        iteration=iteration,
        reference=args.hf_checkpoint,
        output=output_dir,
        contents="model",
        overwrite=True,
        parents=True,
    )


def _check(args: Any, output_dir: Folder, quantization_config: Any) -> None:
    if quantization_config is not None:
        raise OptionError(
            "a quantized target is not supported: weights are exported in the training's own precision",
            got="a quantization_config",
        )
    if Path(output_dir).absolute() == Path(args.hf_checkpoint).absolute():
        raise OptionError(
            "the output is the reference's own folder (--hf-checkpoint)", where={"output": output_dir}
        )
