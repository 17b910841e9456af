"""Stands where a bridge of Megatron-Bridge (`AutoBridge`) or mbridge stands when a framework saves.

Signatures are those of Megatron-Bridge's `save_hf_weights`, `save_hf_pretrained` and
`hf_pretrained.save_artifacts` and of mbridge's `save_weights`, so that calls by position and by name bind.
Options that only say how to write are accepted and don't change the bytes; what would leave tensors out is
refused.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn

from pp_export.api import export_model
from pp_export.core.errors import OptionError
from pp_export.disk import files, folders
from pp_export.options.keywords import Contents, Folder, TargetKeywords
from pp_export.reference import config_json
from pp_export.reference.reference_folder import copy_assets, read_reference
from pp_export.steps.report import ExportReport

if TYPE_CHECKING:
    from typing_extensions import Unpack

Model = Sequence[torch.nn.Module] | torch.nn.Module
Bridge = TypeVar("Bridge", bound="ExportBridge")


class ExportBridge:
    """Exports live models of one architecture: that of the Hugging Face folder `reference`.

    `options` are fields of `TargetOptions` for all exports. `report` is that of the last one.
    """

    def __init__(self, reference: Folder, **options: Unpack[TargetKeywords]) -> None:
        self.reference = Path(reference)
        self.options: TargetKeywords = options
        self.report: ExportReport | None = None
        self.hf_pretrained = Artifacts(self)

    @classmethod
    def from_hf_pretrained(
        cls: type[Bridge],
        path: Folder,
        trust_remote_code: bool | None = None,
        **options: Unpack[TargetKeywords],
    ) -> Bridge:
        """As `AutoBridge.from_hf_pretrained`. No code of the folder is ever run, whatever
        `trust_remote_code` says.
        """
        return cls(path, **options)

    def save_hf_weights(
        self,
        model: Model,
        path: Folder,
        show_progress: bool = True,
        strict: bool = True,
        merge_adapter_weights: bool = True,
        distributed_save: bool = False,
        save_every_n_ranks: int = 1,
        weight_dtype: torch.dtype | str | None = None,
    ) -> None:
        """Weights and index into `path`, beside what else it holds; called by all ranks.

        Every tensor is accounted for, so nothing is ever missing that `strict=False` could forgive. With
        `distributed_save` each `save_every_n_ranks`-th rank of a stage writes.
        """
        self._export(
            model, path, "weights", show_progress, weight_dtype, distributed_save, save_every_n_ranks
        )

    def save_hf_pretrained(
        self,
        model: Model,
        path: Folder,
        show_progress: bool = True,
        source_path: Folder | None = None,
        strict: bool = True,
        merge_adapter_weights: bool = True,
        distributed_save: bool = False,
        save_every_n_ranks: int = 1,
        weight_dtype: torch.dtype | str | None = None,
    ) -> None:
        """The whole folder: weights, config, tokenizer and what else the reference (or `source_path`) has;
        called by all ranks.
        """
        self._export(
            model,
            path,
            "model",
            show_progress,
            weight_dtype,
            distributed_save,
            save_every_n_ranks,
            reference=source_path or self.reference,
        )

    def save_weights(
        self,
        models: Model,
        weights_path: Folder,
        memory_efficient: bool = False,
        distributed_filesystem: bool = False,
        strict: bool = True,
    ) -> None:
        """As mbridge's: weights and index into `weights_path`, always with bounded memory; called by all
        ranks.
        """
        self._export(models, weights_path, "weights")

    def save_hf_adapter(self, model: Model, path: Folder, *_: Any, **__: Any) -> None:
        """Adapters of a live model are not exported: raises OptionError."""
        raise OptionError(
            "an adapter of a live model can't be exported by itself",
            where={"output": path},
            advice="save a checkpoint, and export it with --lora adapter, or use the framework's own bridge",
        )

    def _export(
        self,
        model: Model,
        path: Folder,
        contents: Contents,
        show_progress: bool = False,
        weight_dtype: torch.dtype | str | None = None,
        distributed_save: bool = False,
        save_every_n_ranks: int = 1,
        reference: Folder | None = None,
    ) -> None:
        options: dict[str, Any] = {"overwrite": True, "parents": True, **self.options}
        if weight_dtype is not None:
            options["dtype"] = str(weight_dtype).removeprefix("torch.")
        if distributed_save and save_every_n_ranks > 1:
            options["leaders_per_stage"] = max(1, _ranks_per_stage() // save_every_n_ranks)
        self.report = export_model(
            model,
            reference=reference or self.reference,
            output=path,
            contents=contents,
            show_progress=show_progress,
            **options,
        )


class Artifacts:
    """What belongs to a model beside its weights; the part of `hf_pretrained` that frameworks use."""

    def __init__(self, bridge: ExportBridge) -> None:
        self._bridge = bridge

    def save_artifacts(
        self,
        save_directory: Folder,
        original_source_path: Folder | None = None,
        additional_files: Sequence[str] | None = None,
    ) -> None:
        """config.json, tokenizer, generation config, and the code that config.json's `auto_map` names, as
        data; called by one rank.

        What `auto_map` names and is missing is an error: the folder could not be loaded. Files of these names
        in `save_directory` are replaced; `additional_files` of the reference are copied too.
        """
        folder = Path(save_directory)
        source = Path(original_source_path or self._bridge.reference)
        code = bool(self._bridge.options.get("code", True))
        reference = read_reference(source, code=code)
        folders.make_parents(folder / "config.json")
        copy_assets(reference, folder)
        report = self._bridge.report
        config, _ = config_json.corrected(
            reference.config,
            dtype=report.dtype if report else None,
            vocab_size=report.vocab_size if report else None,
        )
        files.write_file(folder / "config.json", [config_json.to_bytes(config)])
        for name in additional_files or ():
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise OptionError("an additional file must lie in the reference folder", got=name)
            files.copy_file(source / name, folder / name)


def _ranks_per_stage() -> int:
    """From megatron-core's parallel state, where a model is live."""
    state = sys.modules.get("megatron.core.parallel_state")
    if state is None or not state.model_parallel_is_initialized():
        return 1
    size = state.get_tensor_and_data_parallel_group(with_context_parallel=True).size()
    return int(size)
